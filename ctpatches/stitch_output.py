"""What the command `stitch` writes: assembled slices with their fill, as DICOM, .npy or NIfTI."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctpatches.checksums import pixel_digest
from ctpatches.files import atomic_folder, atomic_write
from ctpatches.messages import CallError, RunError, errors_naming, printable, quoted
from ctpatches.stitching import Image, stitch
from ctpatches.validation import ValidatedFile


class Series(NamedTuple):
    """What becomes one output: the slices of a patient, or a single one of `--pair`."""

    patient: str
    pairs: list[int]
    path: str


class Slices:
    """Assembles slices, fills pixels without a patch and counts them."""

    def __init__(
        self, options: argparse.Namespace, file: ValidatedFile, values: Any, outputs: list[Series]
    ) -> None:
        self.options, self.file, self.values = options, file, values
        self.pixels = self.empty = 0
        #: The patches that the values are for, ascending; None where `stitch` chooses.
        self.rows: NDArray[np.int64] | None = None
        if values is not None and options.pair is None:
            pairs = [pair for one in outputs for pair in one.pairs]
            found, chosen = (*np.shape(values), 0)[0], int(file.blocks[1][pairs].sum())
            if found not in (chosen, file.patches):
                expected = f"{file.patches}, all of the file"
                if options.patient:
                    expected += f", or {chosen}, those of {quoted(options.patient)}"
                problem = f"has values for {found} patches; expected: {expected}"
                raise RunError(f"{quoted(options.values)} {problem}")
            if found < file.patches:
                self.rows = np.sort(np.r_[tuple(map(file.rows_of, pairs))])

    def image(self, pair: int) -> Image:
        """Return a slice."""
        one, values = self.options, self.values
        if self.rows is not None:
            at = np.searchsorted(self.rows, np.sort(np.r_[self.file.rows_of(pair)]))
            in_one_piece = len(at) and not self.file.shuffle  # a slice is faster with h5py
            values = values[at[0] : at[-1] + 1] if in_one_piece else values[at]
        image = stitch(values, self.file, pair, one.role, one.scale, one.unit)
        empty = np.isnan(image)
        self.pixels += image.size
        self.empty += int(empty.sum())
        if one.fill is not None and empty.any():
            fill = self._input_hu(pair, image.shape) if one.fill == "input" else one.fill
            np.copyto(image, fill, where=empty)
        return image

    def source(self, pair: int, role: str = "") -> tuple[str, float]:
        """Return the path of a source slice, by default of the output's, and its position."""
        role = role or ("input" if self.options.values else self.options.role)
        path = self.options.source
        if os.path.isdir(path):
            path = os.path.join(path, self.file.slice_file(role, pair))
        if not os.path.isfile(path):
            raise RunError(
                f"no slice {quoted(path)}; name the slice itself with --source if it was moved, or "
                "if its name is a pseudonym"
            )
        return path, float(self.file.values("pair/position_mm", pair))

    def _input_hu(self, pair: int, shape: tuple[int, ...]) -> Image:
        """Return the input slice, whose pixels must be those that the patches were cut from."""
        from ctpatches.dicom_export import read_hu

        path, position_mm = self.source(pair, "input")
        hu = read_hu(path, shape, position_mm)
        digest = "pair/input_digest"  # since version 2
        if self.file.version > 1 and pixel_digest(hu) != int(self.file.values(digest, pair)):
            raise RunError(f"{quoted(path)} has other pixels than the patches were cut from")
        return hu


def write_dicom_slices(slices: Slices, one: Series) -> None:
    """Write DICOM files, one at a time, as a series of its own; print its UID."""
    from pydicom.uid import generate_uid

    from ctpatches.dicom_export import write_dicom

    options, single = slices.options, slices.options.pair is not None
    uid = options.series_uid or generate_uid()
    place = os.path.dirname(one.path) if single else one.path
    sources = [slices.source(pair) for pair in one.pairs]
    names = [os.path.basename(one.path if single else source) for source, _ in sources]
    for name, (source, _) in zip(names, sources, strict=True):
        if os.path.realpath(source) == os.path.realpath(os.path.join(place, name)):
            raise CallError(f"--output {quoted(options.output)} is the source slice; name another")
    if not single and os.path.isdir(place) and (others := set(os.listdir(place)) - set(names)):
        found = quoted(os.path.join(place, min(others)))
        raise RunError(f"{found} is not of this series; remove it, or name another --output")
    clipped: Counter[tuple[float, float]] = Counter()
    with contextlib.nullcontext(place) if single else atomic_folder(place) as folder:
        for pair, name, (source, position_mm) in zip(one.pairs, names, sources, strict=True):
            written = write_dicom(
                slices.image(pair),
                source,
                os.path.join(folder, name),
                description=options.description,
                series_uid=uid,
                position_mm=position_mm,
            )
            clipped[written.low_hu, written.high_hu] += written.clipped
    if single:
        print(f"slice      {printable(sources[0][0])}")
    print(f"series     {uid}")
    for (low, high), pixels in clipped.items():
        if pixels:
            print(f"clipped    {pixels} of {slices.pixels} pixels to {low:g} ... {high:g} HU")


def write_volume(slices: Slices, one: Series, form: str) -> None:
    """Write slices in the order of their positions as one .npy or NIfTI file."""
    shapes = slices.file.view_shape(np.array(one.pairs), slices.options.scale)
    if (shapes != shapes[:, :1]).any():
        raise RunError(f"slices of {quoted(one.patient)} differ in size; write DICOM")
    if form == "nifti":
        from ctpatches.dicom_export import read_slice
        from ctpatches.nifti_export import affine, write_nifti

        to_mm = affine([read_slice(*slices.source(pair)) for pair in one.pairs], one.path)
    volume = np.empty((len(one.pairs), *shapes[:, 0]), np.float32)
    for at, pair in enumerate(one.pairs):
        volume[at] = slices.image(pair)
    if form == "nifti":
        write_nifti(volume, to_mm, one.path)
        return
    with (
        errors_naming(one.path, "cannot be written"),
        atomic_write(one.path) as partial,
        open(partial, "wb") as file,
    ):
        np.save(file, volume if slices.options.pair is None else volume[0])
