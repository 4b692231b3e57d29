"""Slices as DICOM files, derived from the slices that their patches were cut from."""

from __future__ import annotations

import io
import os
import re
import zlib
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    RE_VALID_UID,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from ctpatches.files import Invalid, atomic_write, open_regular
from ctpatches.messages import RunError, errors_naming, quoted
from ctpatches.stitching import DESCRIPTION, Image

#: Pixels outside of the patient and of the image, HU.
AIR_HU = -1024.0
#: Larger files are refused, and files that become larger when they are inflated.
MAX_FILE_BYTES = 64 << 20
#: Steeper slopes and higher intercepts than any scanner writes.
MAX_RESCALE = 1e9
#: Without one of them, no slice can be derived.
REQUIRED = (
    *("Modality", "SOPClassUID", "SOPInstanceUID", "Rows", "Columns", "SamplesPerPixel"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
)
#: What would be wrong about new pixels: extremes, padding, small pictures, signatures.
STALE = (
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "IconImageSequence", "MACParametersSequence"),
    *("DigitalSignaturesSequence", "DataSetTrailingPadding"),
)


# --- the source ------------------------------------------------------------------------------


def read_header(path: str | os.PathLike[str]) -> Dataset:
    """Return the header of a CT slice, every element of it decoded.

    Raises
    ------
    RunError
        The file cannot be read, or is not a CT slice with one frame and a rescale slope.
    """
    data = _contents(path)
    with errors_naming(path, "has a damaged header"):
        try:
            _check_inflated(data)
            # From bytes in memory: whatever length a damaged file claims, no more is read.
            header = dcmread(io.BytesIO(data), stop_before_pixels=True)
        except InvalidDicomError as error:
            raise RunError(f"{quoted(path)} is no DICOM file; expected: a CT slice") from error
        for _ in header.iterall():  # decodes every element, so that any byte order can be written
            pass
        problem = _problem(header)
    if problem:
        raise RunError(f"{quoted(path)} {problem}")
    return header


def position_of(path: str | os.PathLike[str]) -> tuple[float | None, float]:
    """Return the position of a slice along its normal, if it has one, and its thickness, mm.

    Raises
    ------
    RunError
        As `read_header`.
    """
    header = read_header(path)
    with errors_naming(path, "has a damaged header"):
        thickness = float(header.get("SliceThickness") or 0)
        position = header.get("ImagePositionPatient")
        orientation = header.get("ImageOrientationPatient")
        if not position or not orientation:
            return None, thickness
        along_row, along_column = np.array(orientation, float).reshape(2, 3)
        return float(np.array(position, float) @ np.cross(along_row, along_column)), thickness


def _contents(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(open_regular(os.fspath(path)), "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RunError(f"{quoted(path)} cannot be read: {error.strerror}") from error
    except Invalid as error:
        raise RunError(f"{quoted(path)} {error.reason}; expected: a CT slice") from error
    if len(data) > MAX_FILE_BYTES:
        raise RunError(f"{quoted(path)} is larger than {MAX_FILE_BYTES} bytes")
    return data


def _check_inflated(data: bytes) -> None:
    """Refuse a Deflated file that would grow beyond the limit, without letting it."""
    if DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    stream = io.BytesIO(data)
    read_preamble(stream, False)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        if len(inflater.decompress(data[stream.tell() :], MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
            raise ValueError("too large")


def _problem(header: Dataset) -> str:
    """Return why new pixels cannot take the place of those of a slice; "" if they can."""
    missing = [name for name in REQUIRED if header.get(name) in (None, "")]
    if missing:
        return f"has no {missing[0]}; expected: a CT slice"
    bits, signed, stored = header.BitsAllocated, header.PixelRepresentation, header.BitsStored
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    if header.Modality != "CT" or header.get("ModalityLUTSequence"):
        return "is not CT with a rescale slope and intercept"
    if not 1 / MAX_RESCALE <= abs(slope) <= MAX_RESCALE or not abs(intercept) <= MAX_RESCALE:
        return f"has RescaleSlope {slope:g}, RescaleIntercept {intercept:g}; expected: HU"
    if header.SamplesPerPixel != 1 or header.get("NumberOfFrames", 1) != 1:
        return "has several samples per pixel or frames; expected: one"
    if header.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        return "has a PhotometricInterpretation other than MONOCHROME2"
    valid = bits in (8, 16) and signed in (0, 1) and 1 <= stored <= bits
    if not valid or header.get("HighBit", stored - 1) != stored - 1:
        return f"has {stored} of {bits} bits stored; expected: at most 16, from the lowest bit"
    return ""


# --- the derived slice -----------------------------------------------------------------------


class Derived(NamedTuple):
    """What `write_dicom` wrote.

    Attributes
    ----------
    series_uid : str
        Series Instance UID (0020,000E).
    clipped : int
        Number of pixels outside of what can be stored, which became the nearest that can.
    low_hu, high_hu : float
        The range that can be stored, by the type and the rescale slope and intercept of the source.
    """

    series_uid: str
    clipped: int
    low_hu: float
    high_hu: float


def write_dicom(
    image_hu: Image,
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    series_uid: str | None = None,
    description: str = DESCRIPTION,
    fill: float = AIR_HU,
) -> Derived:
    """Write an image as a CT slice derived from another.

    Everything is the source's, the patient's name and the geometry too, but for: new SOP and series
    UIDs, Image Type DERIVED\\SECONDARY, the descriptions, the source in Source Image Sequence
    (PS3.3 C.7.6.1.1 and C.12.4), and the pixels. Those are stored uncompressed, in the source's
    type and by its rescale slope and intercept: rounded to the nearest stored value (halves to the
    even one) and clipped to what its bits can hold.

    Parameters
    ----------
    image_hu : ndarray of float32, shape (rows, columns)
    source_path : path
        A CT slice of the same rows and columns.
    out_path : path
        Replaced if it exists.
    series_uid : str, optional
        Series Instance UID (0020,000E), the same for all slices of a series; by default a new one.
    description : str
        What was done: Series Description (0008,103E), Derivation Description (0008,2111).
    fill : float
        For NaN, HU.

    Returns
    -------
    Derived
        The series, and how many pixels were clipped.

    Raises
    ------
    RunError
        The source is no CT slice, or a file cannot be read or written.
    ValueError
        The image has another shape than the source, or a text does not fit its tag.
    """
    check_texts(series_uid, description)
    source = read_header(source_path)
    if image_hu.shape != (source.Rows, source.Columns):
        raise ValueError(
            f"an image of {' x '.join(map(str, image_hu.shape))} pixels; {quoted(source_path)} has "
            f"{source.Rows} x {source.Columns}"
        )
    derived = _derived(source, series_uid, description)
    clipped, low_hu, high_hu = _set_pixels(derived, image_hu, fill)
    _save(derived, os.fspath(out_path))
    return Derived(str(derived.SeriesInstanceUID), clipped, low_hu, high_hu)


def check_texts(series_uid: str | None, description: str) -> None:
    """Refuse what cannot stand in a DICOM header.

    Raises
    ------
    ValueError
        The UID is none, or the description is too long or not plain ASCII: a source may name any
        character set, and a backslash would part it into two values (PS3.5 6.2).
    """
    if series_uid is not None and not (
        re.fullmatch(RE_VALID_UID, series_uid) and len(series_uid) <= 64
    ):
        raise ValueError(f"series UID {series_uid!r}; wanted: digits and dots, as in 2.25.1234")
    plain = description.isascii() and description.isprintable() and "\\" not in description
    if not plain or len(description) > 64:
        raise ValueError(
            f"description {description!r}; wanted: up to 64 plain ASCII characters, no backslash"
        )


def _derived(source: Dataset, series_uid: str | None, description: str) -> Dataset:
    """Return the header of a slice that is derived from another, without pixels."""
    out = Dataset()
    out.update(source)
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    for name in STALE:
        if name in out:
            del out[name]
    out.SOPInstanceUID = generate_uid()
    out.SeriesInstanceUID = UID(series_uid) if series_uid else generate_uid()
    kind = out.get("ImageType") or []
    out.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(kind, str) else kind[2:])]
    out.SeriesDescription = out.DerivationDescription = description
    out.SourceImageSequence = [reference]
    return out


def _set_pixels(derived: Dataset, image_hu: Image, fill: float) -> tuple[int, float, float]:
    """Set the pixels; return how many were clipped, and the lowest and highest HU of others."""
    slope, intercept = float(derived.RescaleSlope), float(derived.RescaleIntercept)
    bits, signed = int(derived.BitsStored), int(derived.PixelRepresentation)
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    hu = np.where(np.isnan(image_hu), fill, image_hu).astype(np.float64)
    exact = np.rint((hu - intercept) / slope)
    stored = exact.clip(low, high)
    width = int(derived.BitsAllocated) // 8
    raw = stored.astype(f"<{'i' if signed else 'u'}{width}").tobytes()
    # Of an even length, PS3.5 8.1.1.
    derived.add_new(0x7FE00010, "OW" if width == 2 else "OB", raw + b"\0" * (len(raw) % 2))
    low_hu, high_hu = sorted((low * slope + intercept, high * slope + intercept))
    return int((stored != exact).sum()), low_hu, high_hu


def _save(derived: Dataset, path: str) -> None:
    """Write the file under another name first: what stands at `path` is always whole."""
    derived.file_meta = FileMetaDataset()
    derived.file_meta.MediaStorageSOPClassUID = derived.SOPClassUID
    derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with errors_naming(path, "cannot be written"), atomic_write(path) as partial:
        derived.save_as(partial, enforce_file_format=True)
