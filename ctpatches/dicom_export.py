"""DICOM files of new pixels, derived from source slices."""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.uid import RE_VALID_UID, generate_uid

from ctpatches.dicom import header, pixels
from ctpatches.dicom.compressed import read_header
from ctpatches.dicom.slice_file import MAX_FILE_BYTES, Slice, opened, parsing, require
from ctpatches.files import atomic_write
from ctpatches.messages import CallError, RunError, errors_naming, quoted
from ctpatches.normalisation import AIR_HU
from ctpatches.stitching import Image

#: Elements that do not apply to new pixels: extremes, padding, icons, signatures.
STALE = (
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "IconImageSequence", "MACParametersSequence"),
    *("DigitalSignaturesSequence", "DataSetTrailingPadding"),
)


class Derived(NamedTuple):
    """The series of a derived slice; how many pixels were clipped to the range it can store."""

    series_uid: str
    clipped: int
    low_hu: float
    high_hu: float


def check_texts(series_uid: str | None, description: str) -> None:
    """Refuse a series UID or a description that is not valid in the header of every slice.

    A slice may have any character set, and a backslash separates two values (PS3.5 6.2).
    """
    for name, text, pattern, expected in (
        ("series UID", series_uid, RE_VALID_UID, "digits and dots, as in 2.25.1234"),
        ("description", description, r"[ -\[\]-~]*", "plain ASCII without backslash"),
    ):
        if text is not None and (len(text) > 64 or not re.fullmatch(pattern, text)):
            raise CallError(f"{name} {quoted(text)}; expected: up to 64 characters, {expected}")


def write_dicom(
    image_hu: Image,
    source_path: str,
    out_path: str,
    *,
    description: str,
    series_uid: str | None = None,
    position_mm: float = math.nan,
) -> Derived:
    """Write an image as a CT slice derived from another, which must lie at `position_mm` if given.

    Everything is the source's, the patient's name and the geometry too, except for: SOP and series
    UIDs, Image Type DERIVED\\SECONDARY, the descriptions (0008,103E) and (0008,2111), Source Image
    Sequence (PS3.3 C.7.6.1.1 and C.12.4), and the pixels. Those are stored uncompressed, in the
    source's type and by its rescale slope and intercept: rounded to the nearest stored value
    (halves to the even one) and clipped to what its bits can hold; NaN as air.
    """
    source = read_slice(source_path, position_mm)
    if image_hu.shape != (source.Rows, source.Columns):
        raise ValueError(
            f"an image of {' x '.join(map(str, image_hu.shape))} pixels; {quoted(source_path)} has "
            f"{source.Rows} x {source.Columns}"
        )
    slope, intercept = float(source.RescaleSlope), float(source.RescaleIntercept)
    low = -(1 << (source.BitsStored - 1)) if source.PixelRepresentation else 0
    high = low + (1 << source.BitsStored) - 1
    hu = np.nan_to_num(image_hu.astype(np.float64), nan=AIR_HU)
    exact = np.rint((hu - intercept) / slope)
    stored = exact.clip(low, high)

    reference, derived = Dataset(), Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    derived.update({element.tag: element for element in source if element.keyword not in STALE})
    derived.SourceImageSequence = [reference]
    derived.SeriesInstanceUID = series_uid or generate_uid()
    derived.SeriesDescription = derived.DerivationDescription = description
    kind = source.get("ImageType") or []
    derived.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(kind, str) else kind[2:])]
    dtype = f"{'i' if source.PixelRepresentation else 'u'}{source.BitsAllocated // 8}"
    # Also sets a new SOP Instance UID, and the transfer syntax Explicit VR Little Endian.
    derived.set_pixel_data(
        stored.astype(dtype), source.PhotometricInterpretation, source.BitsStored
    )
    with errors_naming(out_path, "cannot be written"), atomic_write(out_path) as partial:
        derived.save_as(partial, enforce_file_format=True)
    low_hu, high_hu = sorted((low * slope + intercept, high * slope + intercept))
    return Derived(derived.SeriesInstanceUID, int((stored != exact).sum()), low_hu, high_hu)


def read_hu(path: str, shape: tuple[int, ...], position_mm: float = math.nan) -> Image:
    """Return the image of a source slice in HU, padding as air, as `main.py` reads it."""
    one = header.read_slice("", path)
    _check_position(one, position_mm)
    if (one.rows, one.columns) != shape:
        found = f"{one.rows} x {one.columns} pixels"
        raise RunError(f"{quoted(path)} has {found}; expected: {' x '.join(map(str, shape))}")
    return pixels.read_hu("", one)


def read_slice(path: str, position_mm: float) -> Dataset:
    """Return the header of a source slice, every element of it decoded."""
    with opened("", path) as (descriptor, stamp):
        require(stamp[0] <= MAX_FILE_BYTES, "is too large", f"at most {MAX_FILE_BYTES} bytes")
        data = os.pread(descriptor, stamp[0], 0)
    with parsing(path, "has a damaged header"):
        # From bytes in memory: whatever length a damaged file claims, no more is read.
        dataset, syntax, _ = read_header(data, tags=None)
        for _ in dataset.iterall():  # decodes every element, so that any byte order can be written
            pass
        one = header.slice_of(dataset, syntax, path)
        for name in ("SOPClassUID", "SOPInstanceUID"):
            require(bool(dataset.get(name)), f"no {name}", "a CT slice, which has one")
    _check_position(one, position_mm)
    return dataset


def _check_position(one: Slice, position_mm: float) -> None:
    """Refuse a slice that does not lie at that position, where both are known."""
    # The tolerance is that of input and target of a pair, see `pairing.tolerance_mm`.
    near = max(0.01, 0.1 * (one.thickness_mm or 0))
    if one.position_mm is not None and abs(one.position_mm - position_mm) > near:
        raise RunError(
            f"{quoted(one.file)} lies at {one.position_mm:g} mm, the pair at {position_mm:g} mm; "
            "expected: the slice that the patches were cut from"
        )
