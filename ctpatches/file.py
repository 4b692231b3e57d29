"""Patches of a file, their provenance, and their values before normalisation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import decoded
from ctpatches.validation import File, ValidatedFile, opened
from ctpatches.windows import pair_of

Images: TypeAlias = NDArray[np.float32]
Patches: TypeAlias = int | slice | Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Provenance:
    """Where a patch came from.

    Attributes
    ----------
    patient, input_file, target_file : str
        As below the input folder of the run, or their pseudonyms.
    pair : int
        Row of the `pair/` table.
    position_mm : float
        Of the slice along its normal; NaN where the files have no position.
    scale : float
        Of the view that the patch was cut from: 1, 0.8 or 0.6.
    row, col : int
        First row and column of the window in that view, pixels.
    orientation : int
        Index into `ORIENTATIONS`.
    degradation : str
        What was done to the input slice: ``none``, ``blur`` or ``noise``.
    """

    patient: str
    input_file: str
    target_file: str
    pair: int
    position_mm: float
    scale: float
    row: int
    col: int
    orientation: int
    degradation: str


class PatchFile:
    """An h5 file of ctpatches, open for reading.

    It is a context manager, and can be pickled: the copy opens the file again.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path : str
    patch_size : int
        Rows and columns of a patch.
    patients : list of str
        Names of the patients, in the order of the file.
    config : dict
        The options of the run that determine the content of the file, by name.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a complete, valid file of ctpatches.

    Examples
    --------
    >>> with PatchFile("results/training_patches.h5") as file:  # doctest: +SKIP
    ...     low, full = file.read(range(64), unit="hu")
    ...     print(len(file), file.provenance(0).patient)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        with contextlib.ExitStack() as stack:
            self._source = stack.enter_context(opened(path))
            self.patch_size = self._source.patch_size
            self.patients = patients_of(self._source)
            self.config = self._source.configuration
            self._open = stack.pop_all()

    def __reduce__(self) -> tuple[type[PatchFile], tuple[str]]:
        return PatchFile, (self.path,)

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; length, patients and configuration remain."""
        self._open.close()

    def __len__(self) -> int:
        """Return the number of patches."""
        return self._source.patches

    def read(self, indices: Patches, unit: str = "file") -> tuple[Images, Images]:
        """Return input and target of some patches.

        Parameters
        ----------
        indices : int, slice or sequence of int
            In any order, and repeated if need be.
        unit : {'file', 'hu'}
            As stored in the file, or with the normalisation inverted, each by its own constants.

        Returns
        -------
        input, target : ndarray of float32, shape (n, p, p)

        Raises
        ------
        IndexError
            There is no such patch.
        OSError
            The file cannot be read.
        ValueError
            The unit is not valid, or the file is damaged.
        """
        if unit not in ("file", "hu"):
            raise ValueError(f"unit {unit!r}; expected: 'file' or 'hu'")
        low, full = read_patches(self._source, indices)
        if unit == "file":
            return low, full
        return (
            denormalise(low, self._source, indices, "input"),
            denormalise(full, self._source, indices, "target"),
        )

    def provenance(self, index: int) -> Provenance:
        """Return where a patch came from.

        Raises
        ------
        IndexError
            There is no such patch.
        OSError, ValueError
            The file cannot be read, or is damaged.
        """
        return provenance(self._source, index)


def patients_of(source: ValidatedFile) -> list[str]:
    """Return the names of the patients in the order of the file."""
    return list(dict.fromkeys(map(decoded, source.read("pair/patient").tolist())))


def provenance(file: File, patch: int) -> Provenance:
    """Return where a patch came from.

    Parameters
    ----------
    file : path, h5py.File or ValidatedFile
        Of `opened`, for many patches: it is checked once.
    patch : int
        Its index in `input` and `target`.

    Raises
    ------
    IndexError
        There is no such patch.
    OSError, ValueError
        As `opened`.
    """
    with opened(file) as source:
        if not 0 <= patch < source.patches:
            raise IndexError(f"patch {patch} of {source.patches}")
        here = {n: column.item() for n, column in source.columns(slice(patch, patch + 1)).items()}
        pair = here["pair"]
        return Provenance(
            patient=source.text("pair/patient", pair),
            input_file=source.text("pair/input_file", pair),
            target_file=source.text("pair/target_file", pair),
            pair=pair,
            position_mm=float(source.read("pair/position_mm", pair)),
            scale=round(here["scale"], 6),
            row=here["row"],
            col=here["col"],
            orientation=here["orientation"],
            degradation=source.text("pair/degradation", pair),
        )


def read_patches(file: File, patches: Patches) -> tuple[Images, Images]:
    """Return some patches of input and target, each of shape (n, p, p), whatever the layout.

    Raises
    ------
    IndexError
        There is no such patch.
    OSError, ValueError
        As `opened`.
    """
    with opened(file) as source:
        rows = np.atleast_1d(np.arange(source.patches)[patches])
        p = source.patch_size
        both = [np.empty((len(rows), p, p), np.float32) for _ in range(2)]
        for name, out in zip(("input", "target"), both, strict=True):
            for at, row in enumerate(rows.tolist()):
                out[at] = source.read(name, row).reshape(p, p)
        return both[0], both[1]


def denormalise(
    values: NDArray[np.floating[Any]],
    file: File,
    patches: Patches | None = None,
    side: str = "target",
    unit: str = "hu",
) -> NDArray[np.float32]:
    """Return patches, or a network's output for them, as they were before normalisation.

    Parameters
    ----------
    values : ndarray, shape (n, ...)
        In the normalisation of the file.
    file : path or h5py.File
        What the patches are from.
    patches : int, slice or sequence of int, optional
        Which patches of the file the n values belong to; by default all, in order.
    side : {'target', 'input'}
        Whose normalisation is undone. A denoised input is meant to be a target, but with
        `unity_independent` and `std_independent` only the input's figures fit the input.
    unit : {'hu', 'stored'}

    Returns
    -------
    ndarray of float32
        Of the shape of `values`, to float32 accuracy. What `hu_window` clipped stays clipped.

    Raises
    ------
    ValueError
        The number of values is not that of the patches, or an argument has no such choice; and as
        `opened`.
    IndexError
        There is no such patch.
    OSError
        As `opened`.
    """
    if side not in ("input", "target") or unit not in ("hu", "stored"):
        raise ValueError(f"side {side!r}, unit {unit!r}; wanted: input or target, hu or stored")
    with opened(file) as source:
        chosen = np.arange(source.patches)
        if patches is not None:
            chosen = np.atleast_1d(chosen[patches])
        first, count = source.blocks
        figures = _affine_figures(source, side)[:, pair_of(first + count, chosen)]
        in_hu = source.in_hu
    values = np.asarray(values)
    if len(values) != len(chosen):
        raise ValueError(
            f"{len(values)} values for {len(chosen)} patches; name the patches that they belong to"
        )
    out = values.astype(np.float64)
    offset, divisor, slope, intercept = figures.reshape(4, -1, *[1] * (out.ndim - 1))
    out = out * divisor + offset
    if in_hu and unit == "stored":
        out = (out - intercept) / slope
    elif not in_hu and unit == "hu":
        out = out * slope + intercept
    return np.asarray(out, np.float32)


def _affine_figures(source: ValidatedFile, side: str) -> NDArray[np.float64]:
    """Return offset, divisor, slope and intercept of every pair, shape (4, pairs)."""
    names = [f"pair/{side}_{name}" for name in ("offset", "divisor", "slope", "intercept")]
    out = np.stack([source.read(name) for name in names])
    if not np.isfinite(out).all() or not out[2].all():
        raise source.invalid(f"is damaged: {', '.join(names)} hold NaN, infinity or a slope of 0")
    return out
