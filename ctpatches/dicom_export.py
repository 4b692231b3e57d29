"""Source slices, and DICOM files of new pixels derived from them."""

from __future__ import annotations

import io
import math
import re
import zlib
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import RE_VALID_UID, DeflatedExplicitVRLittleEndian, generate_uid

from ctpatches.files import atomic_write, open_regular
from ctpatches.messages import CallError, RunError, errors_naming, printable, quoted
from ctpatches.normalisation import AIR_HU
from ctpatches.stitching import Image

#: Limit for files, and for Deflated files when they are inflated.
MAX_FILE_BYTES = 64 << 20
#: No scanner writes a slope or an intercept beyond, nor a slope below its inverse.
MAX_RESCALE = 1e9
#: Elements that a source slice must have, with any value.
REQUIRED = (
    *("SOPClassUID", "SOPInstanceUID", "Rows", "Columns"),
    *("BitsStored", "RescaleSlope", "RescaleIntercept"),
)
#: Values that other elements of it must have; None: the element is missing.
PERMITTED: dict[str, tuple[object, ...]] = {
    "Modality": ("CT",),
    "ModalityLUTSequence": (None,),
    "SamplesPerPixel": (1,),
    "NumberOfFrames": (None, 1),
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2"),
    "BitsAllocated": (8, 16),
    "PixelRepresentation": (0, 1),
}
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
    source = read_slice(path, position_mm, pixels=True)
    if (source.Rows, source.Columns) != shape:
        found = f"{source.Rows} x {source.Columns} pixels"
        raise RunError(f"{quoted(path)} has {found}; expected: {' x '.join(map(str, shape))}")
    with errors_naming(path, "has pixels that cannot be decoded"):
        stored = source.pixel_array
    unused = 8 * stored.dtype.itemsize - source.BitsStored
    stored = stored << unused >> unused  # without the bits above, and with the sign
    slope, intercept = float(source.RescaleSlope), float(source.RescaleIntercept)
    out = stored.astype(np.float32)
    if (padding := source.get("PixelPaddingValue")) is not None:
        # As the pixels: the tag may be read as signed where these are not, and the reverse.
        ends = [int(padding), int(source.get("PixelPaddingRangeLimit", padding))]
        low, high = sorted(np.array(ends).astype(stored.dtype))
        out[(stored >= low) & (stored <= high)] = (AIR_HU - intercept) / slope
    hu: Image = out * np.float32(slope) + np.float32(intercept)
    return hu


def read_slice(path: str, position_mm: float, pixels: bool = False) -> Dataset:
    """Return a source slice, every element of it decoded; without `pixels` only its header."""
    with errors_naming(path, "cannot be read"), open(open_regular(path), "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    with errors_naming(path, "has a damaged header"):
        try:
            if _inflated_bytes(data) > MAX_FILE_BYTES:
                raise RunError(f"{quoted(path)} is larger than {MAX_FILE_BYTES} bytes")
            # From bytes in memory: whatever length a damaged file claims, no more is read.
            header = dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
        except InvalidDicomError as error:
            raise RunError(f"{quoted(path)} is not a DICOM file; expected: a CT slice") from error
        for _ in header.iterall():  # decodes every element, so that any byte order can be written
            pass
        if problem := _problem(header):
            raise RunError(
                f"{quoted(path)} has {problem}; expected: a CT slice of one frame, with 8 or 16 "
                "bits per pixel and a rescale slope and intercept"
            )
        # The tolerance is that of input and target of a pair, see `pairing.tolerance_mm`.
        position, thickness = header.get("ImagePositionPatient"), header.get("SliceThickness")
        orientation = header.get("ImageOrientationPatient")
        if position and orientation:
            normal = np.cross(*np.array(orientation, float).reshape(2, 3))
            found_mm = float(np.array(position, float) @ normal)
            if abs(found_mm - position_mm) > max(0.01, 0.1 * float(thickness or 0)):
                raise RunError(
                    f"{quoted(path)} lies at {found_mm:g} mm, the pair at {position_mm:g} mm; "
                    "expected: the slice that the patches were cut from"
                )
    return header


def _inflated_bytes(data: bytes) -> int:
    """Return the size of a file, or of a Deflated data set up to one byte beyond the limit."""
    if DeflatedExplicitVRLittleEndian.encode() in data:
        stream = io.BytesIO(data)
        read_preamble(stream, False)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            return len(inflater.decompress(data[stream.tell() :], MAX_FILE_BYTES + 1))
    return len(data)


def _problem(header: Dataset) -> str:
    """Return what prevents that new pixels replace those of a slice; "" if nothing does."""
    for name in REQUIRED:
        if header.get(name) in (None, ""):
            return f"no {name}"
    for name, values in PERMITTED.items():
        if header.get(name) not in values:
            return f"{name} {printable(header.get(name))[:16]}"
    if not 1 <= header.BitsStored <= header.BitsAllocated:
        return f"{header.BitsStored} of {header.BitsAllocated} bits stored"
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    if not 1 / MAX_RESCALE <= abs(slope) <= MAX_RESCALE or not abs(intercept) <= MAX_RESCALE:
        return f"RescaleSlope {slope:g}, RescaleIntercept {intercept:g}"
    return ""
