"""DICOM files of made-up slices: small, quickly written, with the headers that scanners write."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from pipeline.cohort.pairing import pair_up
from pipeline.cohort.patients import Patient, find_patients, read_headers
from pipeline.config import Config

Stored = NDArray[Any]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
#: Not square, so that rows taken for columns show; patches of 24 fit into every view.
SHAPE = (64, 80)
INTERCEPT = -1024
#: Pairs of each patient of the tree that most tests run on: ten, so that 40 % are four.
PATIENTS = {"A01": 4, "B02": 1, "C03": 5}
_COMPRESSED = {
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
}


@dataclass(frozen=True)
class Made:
    """A pair on the disk: its files below the input folder, and the values written to them."""

    patient: str
    input_file: str
    target_file: str
    z: float
    input: Stored
    target: Stored


def phantom(shape: tuple[int, int], number: int, seed: int = 0) -> tuple[Stored, Stored]:
    """Return an input and a target slice of stored values (HU + 1024), each of 12 bits.

    A body of tissue lies below and right of the middle, with air above and left of it; no
    two slices, and no two orientations of one, are alike.
    """
    rng = np.random.default_rng([seed, number])
    rows, cols = np.indices(shape)
    centre = (0.62 + 0.01 * (number % 5)) * shape[0], 0.6 * shape[1]
    inside = ((rows - centre[0]) / (0.36 * shape[0])) ** 2 + (
        (cols - centre[1]) / (0.34 * shape[1])
    ) ** 2 < 1
    texture = rng.integers(-250, 250, (shape[0] // 4 + 1, shape[1] // 4 + 1))
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)[: shape[0], : shape[1]]
    body = 1000 + 2 * rows + cols + texture
    target = np.where(inside, body, rng.integers(0, 40, shape))
    noisy = target + rng.normal(0, 25, shape).round().astype(int)
    return tuple(np.clip(image, 0, 4095).astype(np.uint16) for image in (noisy, target))  # type: ignore[return-value]


def write_slice(
    path: Path,
    stored: Stored,
    *,
    z: float = 0.0,
    instance: int | None = 1,
    slope: float = 1,
    intercept: float = INTERCEPT,
    bits_stored: int | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    **tags: object,
) -> Path:
    """Write one CT slice; further keywords set header fields, and None leaves one out.

    Parameters
    ----------
    path : Path
        Its folder is made.
    stored : ndarray of 8 or 16 bit integers, shape (rows, columns)
    z : float
        Position along the axis of the body, mm.
    """
    bits = stored.dtype.itemsize * 8
    kept = bits_stored or (12 if stored.dtype == np.uint16 else bits)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if syntax in _COMPRESSED else syntax
    )
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    unique = [path.name, str(z), str(zlib.crc32(stored.tobytes()))]  # and the same in every run
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=unique)
    header: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": dataset.file_meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "PatientID": "Anonymous",
        "PatientName": "Anonymous",
        "SliceThickness": 3.0,
        "InstanceNumber": instance,
        "ImagePositionPatient": [-100.0, -120.0, z],
        "ImageOrientationPatient": list(AXIAL),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.75, 0.75],
        "BitsAllocated": bits,
        "BitsStored": kept,
        "HighBit": kept - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleIntercept": intercept,
        "RescaleSlope": slope,
    }
    for name, value in (header | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    big = syntax == ExplicitVRBigEndian
    raw = stored.astype(stored.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset.add_new(0x7FE00010, "OB" if bits == 8 else "OW", raw + b"\0" * (len(raw) % 2))
    if syntax in _COMPRESSED:
        dataset.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_patient(
    root: Path,
    patient: str,
    slices: int = 3,
    *,
    shape: tuple[int, int] = SHAPE,
    folders: Sequence[str] = ("quarter_3mm", "full_3mm"),
    seed: int | None = None,
    **tags: Any,
) -> list[Made]:
    """Write a patient and return its pairs in the order of their positions.

    Names run against each other in the two folders, and instance numbers in the target's
    alone against the positions: nothing but the position pairs them.
    """
    made = []
    seed = sum(patient.encode()) if seed is None else seed
    for number in range(slices):
        images = phantom(shape, number, seed)
        z = -150.0 + 3 * number
        files = (
            f"{patient}/{folders[0]}/{number:04d}.dcm",
            f"{patient}/{folders[1]}/{slices - number:04d}.dcm",
        )
        instances = (number + 1, slices - number)
        for file, image, instance in zip(files, images, instances, strict=True):
            write_slice(root / file, image, **({"z": z, "instance": instance} | tags))
        made.append(Made(patient, *files, z, *images))
    return made


def write_tree(root: Path, patients: Mapping[str, int] | None = None, **options: Any) -> list[Made]:
    """Write several patients (name: number of pairs) and return all pairs in the file's order."""
    made = []
    for name, slices in sorted((PATIENTS if patients is None else patients).items()):
        made += write_patient(root, name, slices, **options)
    return made


def find_pairs(root: str, name: str, low: str, full: str) -> Patient:
    """Read the headers of a patient's slices in these two folders, and pair them."""
    config = Config(root, input_gen_folder=low, target_gen_folder=full)
    (patient,) = [one for one in find_patients(config) if one.name == name]
    files = [file for series in patient.files.values() for file in series]
    pair_up(patient, read_headers(root, files))
    return patient
