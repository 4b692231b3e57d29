"""The header of a plain CT slice, read without a DICOM library.

Most slices are native Explicit VR Little Endian with nothing unusual in them. Reading those here
costs a tenth of a full parse, and a job of nothing else need not even import pydicom. Whatever is
unusual in any way is left to pydicom: `read` returns None.
"""

from __future__ import annotations

import re
import struct
from typing import Any

#: Transfer syntaxes (PS3.6 table A-1).
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG)
PIXEL_DATA = 0x7FE00010

_ELEMENT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<L")
#: Value representations with a length of four bytes, and of two (PS3.5 7.1.2).
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_BINARY = {b"US": struct.Struct("<H"), b"SS": struct.Struct("<h"), b"FD": struct.Struct("<d")}
_NUMBER = r" *[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)? *"
#: Printable ASCII without backslash; no space at its ends.
_WORD = r"([!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?)?"
#: Text that is read here, by value representation; several values are separated by backslashes.
_TEXT = {vr: re.compile(_WORD) for vr in (b"CS", b"DA", b"LO", b"TM", b"UI")} | {
    b"IS": re.compile(r"( *[+-]?\d+)?"),
    b"DS": re.compile(rf"({_NUMBER}(\\{_NUMBER})*)?"),
    b"SH": re.compile(rf"{_WORD}(\\{_WORD})*"),
}

#: Specific Character Sets (0008,0005) that encode ASCII as itself (PS3.3 C.12.1.1.2).
_CHARACTER_SETS = ("", "ISO_IR 6", "ISO_IR 100", "ISO_IR 192")

#: What is read: name and value representations by tag (PS3.6).
_TAGS: dict[int, tuple[str, tuple[bytes, ...]]] = {
    0x00020010: ("TransferSyntaxUID", (b"UI",)),
    0x00080005: ("SpecificCharacterSet", (b"CS",)),
    0x00080016: ("SOPClassUID", (b"UI",)),
    0x00080020: ("StudyDate", (b"DA",)),
    0x00080030: ("StudyTime", (b"TM",)),
    0x00080060: ("Modality", (b"CS",)),
    0x00083010: ("IrradiationEventUID", (b"UI",)),
    0x00100020: ("PatientID", (b"LO",)),
    0x00180050: ("SliceThickness", (b"DS",)),
    0x00181152: ("Exposure", (b"IS",)),
    0x00181210: ("ConvolutionKernel", (b"SH",)),
    0x00189345: ("CTDIvol", (b"FD",)),
    0x0020000D: ("StudyInstanceUID", (b"UI",)),
    0x00200013: ("InstanceNumber", (b"IS",)),
    0x00200032: ("ImagePositionPatient", (b"DS",)),
    0x00200037: ("ImageOrientationPatient", (b"DS",)),
    0x00280002: ("SamplesPerPixel", (b"US",)),
    0x00280004: ("PhotometricInterpretation", (b"CS",)),
    0x00280006: ("PlanarConfiguration", (b"US",)),
    0x00280008: ("NumberOfFrames", (b"IS",)),
    0x00280010: ("Rows", (b"US",)),
    0x00280011: ("Columns", (b"US",)),
    0x00280030: ("PixelSpacing", (b"DS",)),
    0x00280100: ("BitsAllocated", (b"US",)),
    0x00280101: ("BitsStored", (b"US",)),
    0x00280102: ("HighBit", (b"US",)),
    0x00280103: ("PixelRepresentation", (b"US",)),
    0x00280120: ("PixelPaddingValue", (b"US", b"SS")),
    0x00280121: ("PixelPaddingRangeLimit", (b"US", b"SS")),
    0x00281052: ("RescaleIntercept", (b"DS",)),
    0x00281053: ("RescaleSlope", (b"DS",)),
    0x00282110: ("LossyImageCompression", (b"CS",)),
    0x00283000: ("ModalityLUTSequence", ()),  # always left to pydicom
}
#: What pydicom reads of a header that is left to it.
TAGS = [*(name for name, _ in _TAGS.values()), "ExtendedOffsetTable"]


def read(data: bytes) -> tuple[dict[str, Any], str, int] | None:
    """Return values by keyword, the transfer syntax, and where Pixel Data (7FE0,0010) begins.

    `data` is the beginning of a file. None where anything is unusual: another transfer syntax, a
    sequence of undefined length, a value that is not as its value representation says, or the end
    of `data` before the pixels. The group of an element alone decides whether it belongs to the
    File Meta Information, as for pydicom: its length may be wrong.
    """
    if data[128:132] != b"DICM" or data[132:140] != b"\2\0\0\0UL\4\0":
        return None
    out: dict[str, Any] = {}
    at, last = 144, 0x00020000  # behind File Meta Information Group Length, the first element
    try:
        while True:
            group, element, vr, length = _ELEMENT.unpack_from(data, at)
            tag = group << 16 | element
            if tag == PIXEL_DATA:
                break
            # Not in ascending order, hence perhaps repeated; or other elements of group 7FE0
            # (PS3.3 C.7.6.3): their offset tables and floating-point pixels.
            if tag <= last or group >= PIXEL_DATA >> 16:
                return None
            start = at + 8
            if vr in _LONG_VRS:
                (length,) = _LONG.unpack_from(data, start)
                start += 4
            elif vr not in _SHORT_VRS:
                return None
            last, at = tag, start + length
            if at > len(data):  # an undefined length, or more than there is
                return None
            if tag in _TAGS:
                name, expected = _TAGS[tag]
                if vr not in expected:
                    return None
                out[name] = _value(vr, data[start:at])
    except (ValueError, struct.error):
        return None
    syntax = out.get("TransferSyntaxUID", "")
    usual = syntax == EXPLICIT_LITTLE and out.get("SpecificCharacterSet", "") in _CHARACTER_SETS
    return (out, syntax, at) if usual else None


def _value(vr: bytes, raw: bytes) -> Any:
    """Return a value as pydicom reads it; raise ValueError where that is uncertain."""
    if vr in _BINARY:
        return _BINARY[vr].unpack(raw)[0]
    text = raw.decode("ascii").rstrip(" \0")
    if not _TEXT[vr].fullmatch(text):
        raise ValueError
    if vr == b"IS":
        return int(text) if text else None
    return text.split("\\") if "\\" in text else text
