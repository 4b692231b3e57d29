"""Reading the header of a CT slice, and refusing what the tool has no rule for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom import fast_header
from pipeline.dicom.compressed import (
    DEFLATED,
    EXPLICIT_BIG,
    IMPLICIT_LITTLE,
    NATIVE,
    check_decoder,
    check_inflated,
)
from pipeline.dicom.fast_header import EXPLICIT_LITTLE, TAGS
from pipeline.dicom.padding import padding_range
from pipeline.dicom.slice_file import (
    MAX_FILE_BYTES,
    BadFile,
    opened,
    refusal,
    stamp_of,
    too_large,
)
from pipeline.model import Slice
from utils import quoted

if TYPE_CHECKING:
    from pipeline.dicom.slice_file import Header

#: Larger images, and larger files, are refused before any of their pixels is decoded.
MAX_SIDE_PIXELS = 4096
#: Longest value of VR CS (PS3.5 6.2): in a damaged file what comes next may pass for a part of it.
CS_LETTERS = 16
#: No scanner writes a slope or an intercept beyond, nor a slope below its inverse.
MAX_RESCALE = 1e9
#: Most headers are shorter than this.
HEAD_BYTES = 64 << 10
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
    """Read the header of one slice.

    Parameters
    ----------
    root : str
        The input folder.
    file : str
        Path below it.

    Raises
    ------
    BadFile
        Not a DICOM file, not a CT slice, or one that the tool has no rule for.
    """
    with opened(root, file) as stream:
        stamp = stamp_of(stream)
        if stamp[0] > MAX_FILE_BYTES:
            raise too_large(file, f"{stamp[0]} bytes", f"{MAX_FILE_BYTES}")
        if not stamp[0]:  # as are those of /proc, which may have no end
            raise refusal(file, "is empty", "a CT slice")
        head = os.read(stream.fileno(), HEAD_BYTES)
        if len(head) < stamp[0]:
            try:
                return _parse(file, head, stamp)
            except BadFile:
                pass  # perhaps a header that is longer than most: judged by the whole file
        return _parse(file, head + (stream.read() or b""), stamp)


def _parse(file: str, data: bytes, stamp: tuple[int, int, int]) -> Slice:
    """Read the header from the first bytes of a file.

    A length in a damaged file may claim gigabytes: from bytes in memory, no more can be read than
    there are.
    """
    plain = fast_header.read(data)
    if plain:
        header, offset = plain
        with contextlib.suppress(ValueError, TypeError):  # an odd value, for pydicom to judge
            tail = data[offset : offset + 12]
            return _slice_of(header, file, EXPLICIT_LITTLE, tail, offset, stamp)

    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_inflated(file, data)
            stream = io.BytesIO(data)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
            syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
            offset = stream.tell()
            return _slice_of(dataset, file, syntax, data[offset : offset + 12], offset, stamp)
    except BadFile:
        raise
    except InvalidDicomError:
        raise refusal(file, "is no DICOM file", "a CT slice") from None
    except Exception as error:  # whatever a parser meets in a damaged file
        # Its words stay out: they may quote any tag, names among them.
        raise BadFile(file, f"has a damaged header ({type(error).__name__})") from None


def _slice_of(
    dataset: Header, file: str, syntax: str, tail: bytes, offset: int, stamp: tuple[int, int, int]
) -> Slice:
    """Turn a header into a `Slice`, refusing what the tool has no rule for."""
    rows, columns = _check_image(dataset, file)
    slope, intercept = _rescale(dataset, file)
    dtype, bits = _stored_type(dataset, file, syntax)
    pixel_offset = _native_offset(
        file, syntax, tail, offset, stamp[0], rows * columns * dtype.itemsize
    )
    if "ExtendedOffsetTable" in dataset or (syntax == EXPLICIT_BIG and dtype.itemsize == 1):
        pixel_offset = None  # no table is expected; and bytes may be swapped (PS3.5 8.1.1)
    position, in_plane, orientation = _geometry(dataset)
    thickness = _numbers(dataset, "SliceThickness", 1)
    event = str(dataset.get("IrradiationEventUID") or "")
    return Slice(
        file=file,
        rows=rows,
        columns=columns,
        position_mm=position,
        in_plane_mm=in_plane,
        orientation=orientation,
        spacing_mm=_numbers(dataset, "PixelSpacing", 2) or (),
        thickness_mm=thickness[0] if thickness else None,
        instance=_instance(dataset),
        slope=slope,
        intercept=intercept,
        pixel_offset=pixel_offset,
        dtype=dtype.str,
        bits_stored=bits,
        padding=padding_range(file, dataset, syntax, dtype, slope, intercept),
        event=_digest(event) if event else "",
        persons=_persons(dataset),
        stamp=stamp,
        kernel=_kernel(dataset.get("ConvolutionKernel")),
        exposure_mas=_optional_number(dataset, "Exposure"),
        ctdi_mgy=_optional_number(dataset, "CTDIvol"),
    )


def _check_image(dataset: Header, file: str) -> tuple[int, int]:
    """Refuse everything but a single monochrome CT image; return its rows and columns."""
    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise refusal(file, f"Modality {quoted(modality[:CS_LETTERS])}", "CT")
    if (samples := _integer(dataset, file, "SamplesPerPixel")) != 1:
        raise refusal(file, f"{samples} samples a pixel", "1")
    dataset.get("PlanarConfiguration")  # without effect, but where damaged, pydicom reads no pixels
    if (frames := _integer(dataset, file, "NumberOfFrames", 1)) != 1:
        raise refusal(file, f"{frames} frames", "one slice a file")
    photometric = dataset.get("PhotometricInterpretation", "")
    if not isinstance(photometric, str) or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"PhotometricInterpretation {quoted(str(photometric)[:CS_LETTERS])}"
        raise refusal(file, found, "MONOCHROME2")
    rows, columns = (_integer(dataset, file, name) for name in ("Rows", "Columns"))
    if not (0 < rows <= MAX_SIDE_PIXELS and 0 < columns <= MAX_SIDE_PIXELS):
        found = f"{rows} x {columns} pixels exceeds the limit"
        raise refusal(file, found, f"1 to {MAX_SIDE_PIXELS} a side")
    return rows, columns


def _rescale(dataset: Header, file: str) -> tuple[float, float]:
    """Return the slope and the intercept that turn stored values into HU."""
    slopes, intercepts = (_numbers(dataset, n, 1) for n in ("RescaleSlope", "RescaleIntercept"))
    if slopes is None or intercepts is None:
        raise refusal(file, "no RescaleSlope or RescaleIntercept", "both, they give the HU")
    slope, intercept = slopes[0], intercepts[0]
    if slope == 0:
        raise refusal(file, "RescaleSlope 0", "any other")
    if not 1 / MAX_RESCALE <= abs(slope) <= MAX_RESCALE or abs(intercept) > MAX_RESCALE:
        # Beyond it float32 would make infinity of some values, or NaN when they are normalised.
        found = f"RescaleSlope {slope:g} with RescaleIntercept {intercept:g}"
        raise refusal(file, found, f"slopes from {1 / MAX_RESCALE:g} to {MAX_RESCALE:g}")
    if dataset.get("ModalityLUTSequence"):
        raise refusal(file, "a Modality LUT Sequence", "RescaleSlope and RescaleIntercept")
    return slope, intercept


def _stored_type(dataset: Header, file: str, syntax: str) -> tuple[np.dtype[Any], int]:
    """Return the NumPy type of stored values and how many of its bits count."""
    names = ("BitsAllocated", "PixelRepresentation", "BitsStored")
    allocated, signed, stored = (_integer(dataset, file, name) for name in names)
    if signed not in (0, 1):
        raise refusal(file, f"PixelRepresentation {signed}", "0 or 1")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise refusal(file, f"{stored} of {allocated} bits stored", "at most 16 of 8 or 16")
    if (high := _integer(dataset, file, "HighBit", stored - 1)) != stored - 1:
        raise refusal(file, f"HighBit {high} with {stored} bits stored", str(stored - 1))
    order = ">" if syntax == EXPLICIT_BIG else "<"
    return np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}"), stored


def _native_offset(
    file: str, syntax: str, tail: bytes, offset: int, size: int, expected: int
) -> int | None:
    """Return where native pixels begin; None where pydicom has to read them.

    That is in compressed files and in those of unusual structure. `tail` is what follows the
    header: tag, VR and length of Pixel Data (7FE0,0010).
    """
    order = ">" if syntax == EXPLICIT_BIG else "<"
    tag = (0x7FE0, 0x0010)
    if tuple(np.frombuffer(tail[:4].ljust(4, b"\0"), f"{order}u2")) != tag and syntax != DEFLATED:
        raise refusal(file, "no pixels: the file ends before them", "a CT slice with pixels")
    if syntax not in NATIVE:
        check_decoder(file, syntax)
        return None
    head = 8 if syntax == IMPLICIT_LITTLE else 12
    length = int(np.frombuffer(tail[head - 4 : head].ljust(4, b"\0"), f"{order}u4")[0])
    there = size - offset - head
    if length not in (expected, expected + expected % 2) or there < expected:
        raise refusal(file, f"{min(length, there)} bytes of pixels", f"{expected}")
    # Elements behind the pixels may repeat some of the header.
    usual = there == length and (syntax == IMPLICIT_LITTLE or tail[4:6] in (b"OB", b"OW"))
    return offset + head if usual else None


def _geometry(dataset: Header) -> tuple[float | None, tuple[float, ...], tuple[float, ...]]:
    """Return the position along the slice normal, the position in the plane, the orientation."""
    position = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None, (), orientation or ()
    at = np.array(position)
    with np.errstate(all="ignore"):
        places = [float(at @ axis) for axis in _axes(orientation)]
    if not all(map(math.isfinite, places)):
        raise ValueError("ImagePositionPatient")
    return places[0], (places[1], places[2]), orientation


@functools.lru_cache  # most slices of a series lie alike
def _axes(orientation: tuple[float, ...]) -> tuple[NDArray[np.float64], ...]:
    """Return the slice normal, and the directions along a row and along a column."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    with np.errstate(all="ignore"):
        return np.cross(along_row, along_column), along_row, along_column


def _persons(dataset: Header) -> tuple[str, ...]:
    """Return digests of what identifies the person scanned, each behind the name of its tag."""

    def value(name: str) -> str:
        text = str(dataset.get(name) or "").strip()
        plain = text.casefold()
        if name == "StudyTime":
            plain = plain.partition(".")[0]
        return "" if plain in PLACEHOLDERS or not plain.strip("0-_ ") else text

    found = [f"{name} {_digest(value(name))}" for name in _PERSON_TAGS if value(name)]
    date, time = value("StudyDate"), value("StudyTime")
    if date and time:
        found.append(f"StudyDate with StudyTime {_digest(f'{date} {time}')}")
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _digest(value: str) -> str:
    """Return a digest of an identifying value, which reveals nothing but equality."""
    return hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _kernel(value: Any) -> str:
    """Return the words of Convolution Kernel, of which there may be several."""
    words = [value] if isinstance(value, str) else (value or [])
    return " ".join(str(word) for word in words)


def _integer(dataset: Header, file: str, name: str, default: int | None = None) -> int:
    """Return an integer that a slice must have, unless there is a default."""
    value = dataset.get(name, default)
    if value is None or value == "":
        raise refusal(file, f"no {name}", "a CT slice with pixels")
    if not isinstance(value, int):
        raise refusal(file, f"a {name} that is no integer", "an integer")
    return int(value)


def _instance(dataset: Header) -> int | None:
    """Return the Instance Number; a VR of IS has 32 bits (PS3.5 6.2)."""
    value = dataset.get("InstanceNumber")
    if value is None or value == "":
        return None
    if not -(1 << 31) <= int(value) < 1 << 31:
        raise ValueError("InstanceNumber")
    return int(value)


def _numbers(dataset: Header, name: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    if count > 1 and isinstance(value, str):
        raise ValueError(name)
    numbers = tuple(float(v) for v in (value if count > 1 else [value]))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(name)
    return numbers


def _optional_number(dataset: Header, name: str) -> float | None:
    """Return a number for display only; None where it is missing or not valid."""
    try:
        numbers = _numbers(dataset, name, 1)
    except (ValueError, TypeError):
        return None
    return numbers[0] if numbers else None
