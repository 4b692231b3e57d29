"""DICOM files of new pixels, derived from source slices."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
from pydicom import Dataset

from ctpatches.dicom.compressed import read_header
from ctpatches.dicom.header import slice_of
from ctpatches.dicom.slice_file import check_position, check_size, opened, parsing, require
from ctpatches.files import atomic_write, named_errors
from ctpatches.messages import quoted
from ctpatches.normalisation import AIR_HU
from ctpatches.stitching import Image

#: Elements that do not apply to new pixels: extremes, padding, icons, signatures.
STALE = (
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "IconImageSequence", "MACParametersSequence"),
    *("DigitalSignaturesSequence", "DataSetTrailingPadding"),
)


def write_dicom(
    image_hu: Image,
    source_path: str,
    position_mm: float,
    out_path: str,
    series_uid: str,
    description: str,
) -> Counter[tuple[float, float]]:
    """Write an image as a CT slice derived from another, which must lie at `position_mm`.

    Everything is the source's, the patient's name and the geometry too, except for: SOP and series
    UIDs, Image Type DERIVED\\SECONDARY, the descriptions (0008,103E) and (0008,2111), Source Image
    Sequence (PS3.3 C.7.6.1.1 and C.12.4), and the pixels. Those are stored uncompressed, in the
    source's type and by its rescale slope and intercept: rounded to the nearest stored value
    (halves to the even one) and clipped to what its bits can hold; NaN as air.
    Returns how many pixels were clipped, by the lowest and the highest HU that can be stored.
    """
    source = read_dataset(source_path, position_mm)
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
    derived.SeriesInstanceUID = series_uid
    derived.SeriesDescription = derived.DerivationDescription = description
    kind = source.get("ImageType") or []
    derived.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(kind, str) else kind[2:])]
    dtype = f"{'i' if source.PixelRepresentation else 'u'}{source.BitsAllocated // 8}"
    # Also sets a new SOP Instance UID, and the transfer syntax Explicit VR Little Endian.
    derived.set_pixel_data(
        stored.astype(dtype), source.PhotometricInterpretation, source.BitsStored
    )
    encoded = io.BytesIO()
    with parsing(source_path, "has elements that cannot be written"):
        derived.save_as(encoded, enforce_file_format=True)
    with named_errors(out_path), atomic_write(out_path) as partial:
        Path(partial).write_bytes(encoded.getbuffer())
    low_hu, high_hu = sorted((low * slope + intercept, high * slope + intercept))
    return Counter({(low_hu, high_hu): int((stored != exact).sum())})


def read_dataset(path: str, position_mm: float) -> Dataset:
    """Return the header of a source slice, every element of it decoded."""
    with opened("", path) as (descriptor, stamp):
        check_size(stamp[0])
        data = os.pread(descriptor, stamp[0], 0)
    with parsing(path, "has a damaged header"):
        # From bytes in memory: whatever length a damaged file claims, no more is read.
        dataset, syntax, _ = read_header(data, tags=None)
        list(dataset.iterall())  # decodes every element, so that any byte order can be written
        one = slice_of(dataset, syntax, path)
        for name in ("SOPClassUID", "SOPInstanceUID"):
            require(bool(dataset.get(name)), f"no {name}", "a CT slice, which has one")
    check_position(one, position_mm)
    return dataset
