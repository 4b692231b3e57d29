"""Reading the header of a CT slice, and refusing what the tool has no rule for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ctpatches.dicom import fast_header
from ctpatches.dicom.fast_header import DEFLATED, EXPLICIT_BIG, IMPLICIT_LITTLE, NATIVE
from ctpatches.dicom.slice_file import (
    BadFile,
    Slice,
    Stamp,
    check_size,
    opened,
    parsing,
    require,
)
from ctpatches.messages import quoted
from ctpatches.normalisation import AIR_HU
from ctpatches.schema import MAX_IMAGE_SIDE

if TYPE_CHECKING:
    from pydicom import Dataset

    #: The elements of a header by keyword.
    Header: TypeAlias = Mapping[str, Any] | Dataset

#: Longest value of VR CS (PS3.5 6.2): in a damaged file what comes next may pass for a part of it.
MAX_CS_LETTERS = 16
#: No scanner writes a slope or an intercept beyond, nor a slope below its inverse.
MAX_RESCALE = 1e9
#: Padding in lossy files is at most as bright as air, -1000 HU by definition.
MAX_PADDING_HU = -1000.0
#: Most headers are shorter than this.
HEAD_BYTES = 64 << 10
#: JPEG Baseline, JPEG Extended, JPEG-LS Near-lossless, JPEG 2000 and High-Throughput JPEG 2000: all
#: that need not be lossless, of those that can be decoded (PS3.6 table A-1).
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
#: Each alone identifies a person across folders; the date does with the time.
_PERSON_TAGS = ("PatientID", "StudyInstanceUID", "IrradiationEventUID")
#: Values that identify no person.
PLACEHOLDERS = frozenset(
    (
        *("anonymous", "anonymized", "anonymised", "anon", "deidentified", "de-identified"),
        *("removed", "unknown", "none", "null", "na", "n/a", "test", "patient", "noid", "no_id"),
        *("xxx", "19000101"),
    )
)


def read_slice(root: str, file: str) -> Slice:
    """Read the header of one slice, from its path below the input folder.

    Raises `BadFile` if it is not a DICOM file, not a CT slice, or the tool has no rule for it.
    """
    with opened(root, file) as (descriptor, stamp):
        size = stamp[0]
        check_size(size)
        require(size > 0, "is empty", "a CT slice")  # as are files of /proc, which may have no end
        head = os.pread(descriptor, HEAD_BYTES, 0)
        if len(head) < size:
            with contextlib.suppress(BadFile):  # perhaps a longer header: judged by the whole file
                return _parse(file, head, stamp)
        return _parse(file, os.pread(descriptor, size, 0), stamp)


def _parse(file: str, data: bytes, stamp: Stamp) -> Slice:
    """Read the header from the first bytes of a file: a damaged length cannot claim more memory."""
    if plain := fast_header.read(data):
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # for pydicom to judge
            return _slice_in(*plain, file, data, stamp)
    from ctpatches.dicom.compressed import check_decoder, read_header  # here: needs pydicom

    with parsing(file, "has a damaged header"):
        header, syntax, offset = read_header(data)
        one = _slice_in(header, syntax, offset, file, data, stamp)
        check_decoder(syntax)
        return one


def _slice_in(
    header: Header, syntax: str, offset: int, file: str, data: bytes, stamp: Stamp
) -> Slice:
    """Return the slice in a file that begins with `data`, and where its native pixels begin.

    The latter is None if pydicom has to read them: in compressed files and in those of unusual
    structure. The header ends at `offset`, with tag, VR and length of Pixel Data (7FE0,0010).
    """
    one = slice_of(header, syntax, file)
    start = offset + (8 if syntax == IMPLICIT_LITTLE else 12)
    tail = data[offset:start].ljust(start - offset, b"\0")
    order = ">" if syntax == EXPLICIT_BIG else "<"
    group, element, length = struct.unpack(f"{order}HH{len(tail) - 8}xL", tail)
    there = (group, element) == (0x7FE0, 0x0010) or syntax == DEFLATED
    require(there, "no pixels: the file ends before them", "a CT slice with pixels")
    if syntax not in NATIVE:
        return dataclasses.replace(one, stamp=stamp)
    dtype, rest = np.dtype(one.dtype), stamp[0] - start
    expected = one.rows * one.columns * dtype.itemsize
    complete = length in (expected, expected + expected % 2) and rest >= expected
    require(complete, f"{min(length, rest)} bytes of pixels", expected)
    # Elements behind the pixels may repeat some of the header.
    usual = rest == length and (syntax == IMPLICIT_LITTLE or tail[4:6] in (b"OB", b"OW"))
    swapped = syntax == EXPLICIT_BIG and dtype.itemsize == 1  # perhaps, see PS3.5 8.1.1
    usual &= not swapped and "ExtendedOffsetTable" not in header  # no table is expected
    return dataclasses.replace(one, stamp=stamp, pixel_offset=start if usual else None)


def slice_of(header: Header, syntax: str, file: str) -> Slice:
    """Return the slice of a header, without stamp and offset; refuse all but a CT image."""
    rows, columns, dtype, bits = _image(header, syntax)
    slope, intercept = _rescale(header)
    position, in_plane, orientation = _geometry(header)
    instance = _number(header, "InstanceNumber")
    if instance is not None and not -(1 << 31) <= instance < 1 << 31:  # IS: 32 bits (PS3.5 6.2)
        raise ValueError("InstanceNumber")
    kernel = header.get("ConvolutionKernel") or []
    return Slice(
        file=file,
        rows=rows,
        columns=columns,
        position_mm=position,
        in_plane_mm=in_plane,
        orientation=orientation,
        spacing_mm=_numbers(header, "PixelSpacing", 2),
        thickness_mm=_number(header, "SliceThickness"),
        instance=None if instance is None else int(instance),
        slope=slope,
        intercept=intercept,
        pixel_offset=None,
        dtype=dtype.str,
        bits_stored=bits,
        padding=_padding_range(header, syntax, dtype, slope, intercept),
        persons=_persons(header),
        kernel=kernel if isinstance(kernel, str) else " ".join(map(str, kernel)),
        exposure_mas=_number(header, "Exposure", optional=True),
        ctdi_mgy=_number(header, "CTDIvol", optional=True),
    )


def _image(header: Header, syntax: str) -> tuple[int, int, np.dtype[Any], int]:
    """Return rows, columns, type of stored values, and how many of their bits count.

    Everything but a single monochrome CT image is refused.
    """
    modality = str(header.get("Modality", ""))
    require(modality == "CT", f"Modality {quoted(modality[:MAX_CS_LETTERS])}", "CT")
    samples = _integer(header, "SamplesPerPixel")
    require(samples == 1, f"{samples} samples per pixel", 1)
    header.get("PlanarConfiguration")  # without effect, but where damaged, pydicom reads no pixels
    frames = _integer(header, "NumberOfFrames", 1)
    require(frames == 1, f"{frames} frames", "one slice per file")
    photometric = header.get("PhotometricInterpretation", "")
    known = isinstance(photometric, str) and photometric in ("MONOCHROME1", "MONOCHROME2")
    found = f"PhotometricInterpretation {quoted(str(photometric)[:MAX_CS_LETTERS])}"
    require(known, found, "MONOCHROME2")
    rows, columns = _integer(header, "Rows"), _integer(header, "Columns")
    fits = 0 < rows <= MAX_IMAGE_SIDE and 0 < columns <= MAX_IMAGE_SIDE
    found = f"{rows} x {columns} pixels exceeds the limit"
    require(fits, found, f"1 to {MAX_IMAGE_SIDE} along each edge")
    allocated, signed = _integer(header, "BitsAllocated"), _integer(header, "PixelRepresentation")
    require(signed in (0, 1), f"PixelRepresentation {signed}", "0 or 1")
    bits = _integer(header, "BitsStored")
    fits = allocated in (8, 16) and 1 <= bits <= allocated
    require(fits, f"{bits} of {allocated} bits stored", "at most 16 of 8 or 16")
    high = _integer(header, "HighBit", bits - 1)
    require(high == bits - 1, f"HighBit {high} with {bits} bits stored", bits - 1)
    order = ">" if syntax == EXPLICIT_BIG else "<"
    return rows, columns, np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}"), bits


def _rescale(header: Header) -> tuple[float, float]:
    """Return the slope and the intercept that turn stored values into HU."""
    slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
    if slope is None or intercept is None:
        raise BadFile("no RescaleSlope or RescaleIntercept; expected: both, which give the HU")
    require(slope != 0, "RescaleSlope 0", "any other")
    # Beyond it float32 would make infinity of some values, or NaN when they are normalised.
    fits = 1 / MAX_RESCALE <= abs(slope) <= MAX_RESCALE and abs(intercept) <= MAX_RESCALE
    found = f"RescaleSlope {slope:g} with RescaleIntercept {intercept:g}"
    require(fits, found, f"slopes from {1 / MAX_RESCALE:g} to {MAX_RESCALE:g}")
    table = bool(header.get("ModalityLUTSequence"))
    require(not table, "a Modality LUT Sequence", "RescaleSlope and RescaleIntercept")
    return slope, intercept


def _geometry(header: Header) -> tuple[float | None, tuple[float, ...], tuple[float, ...]]:
    """Return the position along the slice normal, the position in the plane, the orientation."""
    position = _numbers(header, "ImagePositionPatient", 3)
    orientation = _numbers(header, "ImageOrientationPatient", 6)
    if not position or not orientation:
        return None, (), orientation
    a, b, c, x, y, z = orientation  # directions along a row, and along a column
    normal = (b * z - c * y, c * x - a * z, a * y - b * x)
    with np.errstate(all="ignore"):
        at, *in_plane = (float(np.dot(position, d)) for d in (normal, (a, b, c), (x, y, z)))
    if not all(map(math.isfinite, (at, *in_plane))):
        raise ValueError("ImagePositionPatient")
    return at, tuple(in_plane), orientation


def _padding_range(
    header: Header, syntax: str, dtype: np.dtype[Any], slope: float, intercept: float
) -> tuple[int, int] | None:
    """Return the range of stored values that mean 'no image here' (PS3.3 C.7.5.1.1.2).

    Lossy compression changes padding, and leaves ringing at its edge. The range is then extended to
    all values below the lowest of a CT scale, -1024 HU, as no tissue has those; padding brighter
    than air would not differ from tissue, and is refused.
    """
    value = _number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(header, "PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    # The tag is read as signed or unsigned by its VR, which does not always follow the pixels'.
    info = np.iinfo(dtype)
    ends = [(end - info.min) % (1 << info.bits) + info.min for end in ends]
    if syntax not in _LOSSY and str(header.get("LossyImageCompression", "")) != "01":
        return min(ends), max(ends)
    brightest = max(slope * end + intercept for end in ends)
    found = f"lossy compression with padding of {brightest:g} HU, which cannot be told from tissue"
    expected = f"padding of at most {MAX_PADDING_HU:g} HU, or lossless compression"
    require(brightest <= MAX_PADDING_HU, found, expected)
    lowest_stored = (AIR_HU - intercept) / slope
    if slope > 0:
        return info.min, max(*ends, math.ceil(lowest_stored) - 1)
    return min(*ends, math.floor(lowest_stored) + 1), info.max


def _persons(header: Header) -> tuple[str, ...]:
    """Return digests of what identifies the person scanned, each behind the name of its tag.

    A digest reveals nothing but equality.
    """
    values = {}
    for name in (*_PERSON_TAGS, "StudyDate", "StudyTime"):
        text = str(header.get(name) or "").strip()
        plain = text.casefold()
        if name == "StudyTime":
            plain = plain.partition(".")[0]
        if plain not in PLACEHOLDERS and plain.strip("0-_ "):
            values[name] = text
    date, time = values.pop("StudyDate", ""), values.pop("StudyTime", "")
    if date and time:
        values["StudyDate with StudyTime"] = f"{date} {time}"
    out = []
    for name, text in values.items():
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8)
        out.append(f"{name} {digest.hexdigest()}")
    return tuple(out)


def _integer(header: Header, name: str, default: int | None = None) -> int:
    """Return an integer that a slice must have, unless there is a default."""
    value = header.get(name, default)
    require(value not in (None, ""), f"no {name}", "a CT slice with pixels")
    require(isinstance(value, int), f"a {name} that is not an integer", "an integer")
    return int(value)


def _numbers(header: Header, name: str, count: int) -> tuple[float, ...]:
    """Return so many finite numbers, or () where there is no value."""
    value = header.get(name)
    if value is None or value == "":
        return ()
    if count > 1 and isinstance(value, str):
        raise ValueError(name)
    numbers = tuple(map(float, value if count > 1 else [value]))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(name)
    return numbers


def _number(header: Header, name: str, optional: bool = False) -> float | None:
    """Return a number; None where it is missing, or if it is `optional` where it is not valid."""
    try:
        return next(iter(_numbers(header, name, 1)), None)
    except (ValueError, TypeError, OverflowError):
        if optional:
            return None
        raise
