"""Volumes as NIfTI files, with the geometry of their source slices."""

from __future__ import annotations

import gzip
from collections.abc import Iterable

import nibabel
import numpy as np
from numpy.typing import NDArray

from ctpatches.dicom_export import read_dataset
from ctpatches.files import atomic_write, named_errors
from ctpatches.messages import RunError, quoted
from ctpatches.stitching import Image

#: Elements that give the geometry of a slice, and their numbers of values.
NEEDED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
#: Largest difference of two equal direction cosines or pixel spacings.
SAME = 1e-4
#: Largest distance of a slice from its place in an evenly spaced series, per spacing.
MAX_DISPLACEMENT = 0.1


def affine(sources: Iterable[tuple[str, float]], path: str) -> NDArray[np.float64]:
    """Return the affine map from indices (column, row, slice) to mm in the axes of NIfTI.

    It is that of PS3.3 C.7.6.2.1.1 with the axes x and y reversed: DICOM's point to the left and
    to the back of the patient, those of NIfTI to the right and to the front. `RunError` is raised
    where the slices, given in order by path and position, have no such map; it names the path of
    the output.
    """
    slices = [read_dataset(*source) for source in sources]
    for one in slices:
        for name, values in NEEDED.items():
            if name not in one or values != one[name].VM:
                problem = f"a slice has no valid {name}, which NIfTI needs; write DICOM or .npy"
                raise RunError(f"{quoted(path)}: {problem}")
    positions = np.array([one.ImagePositionPatient for one in slices], float)
    planes = np.array([[*one.ImageOrientationPatient, *one.PixelSpacing] for one in slices], float)
    if np.ptp(planes, axis=0).max() > SAME:
        problem = "slices differ in ImageOrientationPatient or PixelSpacing; write DICOM or .npy"
        raise RunError(f"{quoted(path)}: {problem}")
    along_row, along_column, (row_mm, column_mm) = planes[0, :3], planes[0, 3:6], planes[0, 6:]
    steps = np.diff(positions, axis=0)
    if len(steps):
        step = steps.mean(axis=0)
        even = positions[0] + np.arange(len(slices))[:, None] * step
        displacement = np.linalg.norm(positions - even, axis=1).max()
        if not displacement < MAX_DISPLACEMENT * np.linalg.norm(step):
            found_mm = np.linalg.norm(steps, axis=1)
            raise RunError(
                f"{quoted(path)}: slices lie {found_mm.min():g} to {found_mm.max():g} mm apart; "
                "NIfTI has one distance for all; write DICOM or .npy"
            )
    else:
        step = np.cross(along_row, along_column) * float(slices[0].get("SliceThickness") or 1)
    out = np.eye(4)
    out[:3] = np.column_stack([along_row * column_mm, along_column * row_mm, step, positions[0]])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ out


def write_nifti(volume: Image, to_mm: NDArray[np.float64], path: str) -> None:
    """Write a volume, shape (slices, rows, columns), with its affine map."""
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), to_mm)
    image.set_sform(to_mm, "scanner")
    image.set_qform(to_mm, "scanner")
    image.header.set_xyzt_units("mm")
    with (
        named_errors(path),
        atomic_write(path) as partial,
        open(partial, "wb") as raw,
        # Level 1 as nibabel's own: noise hardly compresses any further. No time, for equal bytes.
        gzip.GzipFile("", "wb", 1, raw, 0) if path.lower().endswith(".gz") else raw as file,
    ):
        image.to_stream(file)
