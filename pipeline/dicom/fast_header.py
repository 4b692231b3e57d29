"""The header of a plain CT slice, read without a DICOM library.

Most slices are native Explicit VR Little Endian with nothing odd in them. Reading those here costs
a tenth of a full parse, and a job of nothing else need not even import pydicom. Whatever is odd in
any way is left to pydicom: `read` returns None.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
PIXEL_DATA = 0x7FE00010
_PIXEL_GROUP = PIXEL_DATA >> 16
#: File Meta Information Group Length, the first element of a file.
_GROUP_LENGTH = 0x00020000

_ELEMENT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<L")
_DOUBLE = struct.Struct("<d")
#: Value representations with a length of four bytes (PS3.5 7.1.2).
_LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_SHORT_VRS = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
        *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")


class _Odd(Exception):
    """Something that is left to pydicom."""


def _text(raw: bytes) -> str:
    text = raw.decode("ascii").rstrip(" \0")
    if not text.isprintable() or "\\" in text or text != text.strip():
        raise _Odd
    return text


def _decimals(raw: bytes) -> str | list[str]:
    parts = raw.decode("ascii").rstrip(" \0").split("\\")
    parts = [part.strip(" ") for part in parts]
    if parts != [""] and not all(_DECIMAL.fullmatch(part) for part in parts):
        raise _Odd
    return parts if len(parts) > 1 else parts[0]


def _integer(raw: bytes) -> int | None:
    text = raw.decode("ascii").strip(" ").rstrip("\0")
    if text and not _INTEGER.fullmatch(text):
        raise _Odd
    return int(text) if text else None


def _unsigned(raw: bytes) -> int:
    if len(raw) != 2:
        raise _Odd
    return int.from_bytes(raw, "little")


def _signed(raw: bytes) -> int:
    if len(raw) != 2:
        raise _Odd
    return int.from_bytes(raw, "little", signed=True)


def _words(raw: bytes) -> list[str]:
    return [_text(part) for part in raw.split(b"\\")]


def _double(raw: bytes) -> float:
    (value,) = _DOUBLE.unpack(raw)
    return float(value)


_READ: Mapping[bytes, Callable[[bytes], Any]] = {
    b"CS": _text,
    b"DA": _text,
    b"LO": _text,
    b"TM": _text,
    b"UI": _text,
    b"DS": _decimals,
    b"IS": _integer,
    b"US": _unsigned,
    b"SS": _signed,
    b"SH": _words,
    b"FD": _double,
}

#: Specific Character Sets (0008,0005) that encode ASCII as itself (PS3.3 C.12.1.1.2).
_CHARACTER_SETS = ("", "ISO_IR 6", "ISO_IR 100", "ISO_IR 192")

#: What is read: name and value representation by tag (PS3.6).
_TAGS: Mapping[int, tuple[str, tuple[bytes, ...]]] = {
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
    0x00283000: ("ModalityLUTSequence", (b"SQ",)),
}
#: What pydicom reads of a header that is left to it.
TAGS = [*(name for name, _ in _TAGS.values()), "ExtendedOffsetTable"]


def read(data: bytes) -> tuple[dict[str, Any], int] | None:
    """Read the header of a slice from the first bytes of its file.

    Parameters
    ----------
    data : bytes
        The file up to the pixels, at least.

    Returns
    -------
    tuple of dict and int, or None
        Values by keyword, and where Pixel Data (7FE0,0010) begins. None where anything is odd:
        another transfer syntax, a sequence of undefined length, a value that is not as its value
        representation says, or the end of `data`.
    """
    if data[128:132] != b"DICM" or data[132:140] != b"\2\0\0\0UL\4\0":
        return None
    out: dict[str, Any] = {}
    try:
        for tag, vr, value, at in _elements(data, 144):
            if tag == PIXEL_DATA:
                usual = (
                    out.pop("TransferSyntaxUID", "") == EXPLICIT_LITTLE
                    and out.pop("SpecificCharacterSet", "") in _CHARACTER_SETS
                )
                return (out, at) if usual else None
            name, expected = _TAGS[tag]
            if vr not in expected:
                return None
            out[name] = _READ[vr](value)
    except (_Odd, KeyError, UnicodeDecodeError, struct.error):
        pass
    return None


def _elements(data: bytes, at: int) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Yield tag, value representation, value and first byte of the elements that are asked for.

    Pixel Data comes without its value, and ends the header. The group of an element alone decides
    whether it belongs to the File Meta Information, as for pydicom: its length may be wrong.
    """
    last = _GROUP_LENGTH
    while True:
        group, element, vr, length = _ELEMENT.unpack_from(data, at)
        tag = group << 16 | element
        if tag == PIXEL_DATA:
            yield tag, vr, b"", at
            return
        # Not in ascending order, hence perhaps repeated; or other elements of group 7FE0 (PS3.3
        # C.7.6.3): their offset tables and floating-point pixels.
        if tag <= last or group >= _PIXEL_GROUP:
            raise _Odd
        last = tag
        if vr in _SHORT_VRS:
            value = at + 8
        elif vr in _LONG_VRS:
            (length,) = _LONG.unpack_from(data, at + 8)
            value = at + 12
        else:
            raise _Odd
        end = value + length
        if end > len(data):  # an undefined length, or more than there is
            raise _Odd
        if tag in _TAGS:
            yield tag, vr, data[value:end], at
        at = end
