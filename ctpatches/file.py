"""Patches of a file, their provenance, and their values before normalisation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.messages import printable
from ctpatches.orientations import Images
from ctpatches.schema import ROLES, decoded
from ctpatches.structure import PathLike
from ctpatches.validation import File, ValidatedFile, opened
from ctpatches.views import Windows

#: Longer lists of names and of slice shapes are abbreviated.
MAX_NAMES, MAX_SHAPES = 8, 3
Patches: TypeAlias = int | slice | Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Provenance:
    """Where a patch came from."""

    #: Names as below the input folder of the run, or their pseudonyms.
    patient: str
    input_file: str
    target_file: str
    #: Row of the `pair/` table.
    pair: int
    #: Of the slice along its normal; NaN where the files have no position.
    position_mm: float
    #: Of the view that the patch was cut from: 1, 0.8 or 0.6.
    scale: float
    #: First row and column of the window in that view, pixels.
    row: int
    col: int
    #: Index into `ORIENTATIONS`.
    orientation: int
    #: What was applied to the input slice: ``none``, ``blur`` or ``noise``.
    degradation: str


class PatchFile(ValidatedFile):
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

    def __init__(self, path: PathLike) -> None:
        super().__init__(os.path.abspath(path))

    def __reduce__(self) -> tuple[type[PatchFile], tuple[str]]:
        return PatchFile, (self.path,)

    def __repr__(self) -> str:
        size, patients = self.patch_size, abbreviated(self.patients)
        normalisation = f"normalization_type {self.config.get('normalization_type')}"
        facts = (
            f"{self.patches} patches of {size} x {size} pixels",
            f"{self.pairs} pairs of {len(self.patients)} patients: {patients}",
            f"scales {', '.join(f'{scale:g}' for scale in self.scales)}",
            f"{normalisation}, {'HU' if self.attributes['unit'] == 'hu' else 'stored values'}",
        )
        return printable(f"<PatchFile {self.path!r}: {'; '.join(facts)}>")

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.patches

    def read(
        self, indices: Patches, unit: str = "file", dtype: str = "float32"
    ) -> tuple[Images, Images]:
        """Return input and target of some patches.

        Parameters
        ----------
        indices : int, slice or sequence of int
            In any order, and repeated if need be.
        unit : {'file', 'hu'}
            As stored in the file, or with the normalisation inverted, each by its own constants.
        dtype : {'float32', 'file'}
            Type of the arrays: float32, or as stored in the file. HU are always float32.

        Returns
        -------
        input, target : ndarray, shape (n, p, p)

        Raises
        ------
        IndexError
            There is no such patch.
        OSError
            The file cannot be read.
        ValueError
            The unit or the type is not valid, or the file is damaged.
        """
        return self.read_rows(positions(indices, self.patches), unit, dtype)

    def read_rows(
        self, rows: NDArray[np.int64], unit: str, dtype: str, windows: Windows | None = None
    ) -> tuple[Images, Images]:
        """Return patches as `read` does; `windows` are those of the rows, if the caller has them.

        Only a file of views has windows.
        """
        kind = self.dtype_of(unit, dtype).name
        if windows is None and self.store == "views":
            windows = self.windows(rows)
        low, full = (self.images(role, rows, windows, kind) for role in ROLES)
        if unit == "hu":
            low = denormalise(low, self, rows, "input")
            full = denormalise(full, self, rows, "target")
        return low, full

    def dtype_of(self, unit: str, dtype: str) -> np.dtype[Any]:
        """Return the type of the arrays that `read` returns for a unit and a type."""
        if unit not in ("file", "hu"):
            raise ValueError(f"unit {unit!r}; expected: 'file' or 'hu'")
        if dtype not in ("float32", "file"):
            raise ValueError(f"dtype {dtype!r}; expected: 'float32' or 'file'")
        return np.dtype(self.config["dtype"] if (unit, dtype) == ("file", "file") else "float32")

    def provenance(self, index: int) -> Provenance:
        """Return where a patch came from; `IndexError` is raised if there is no such patch."""
        if not 0 <= index < self.patches:
            raise IndexError(f"patch {index} of {self.patches}")
        return self.provenances(np.array([index]))[0]

    def provenances(self, patches: NDArray[np.int64]) -> list[Provenance]:
        """Return where each of some patches came from."""
        columns = self.columns(patches)
        out = []
        for row in range(len(patches)):
            patch = {name: column[row].item() for name, column in columns.items()}
            patch["scale"] = round(patch["scale"], 6)
            pair = {name: column[patch["pair"]].item() for name, column in self._origins.items()}
            texts = {name: decoded(v) for name, v in pair.items() if isinstance(v, bytes)}
            out.append(Provenance(**patch, **(pair | texts)))
        return out

    @cached_property
    def _origins(self) -> dict[str, NDArray[Any]]:
        """The columns of `pair/` that are part of the provenance of a patch."""
        names = ("patient", "input_file", "target_file", "position_mm", "degradation")
        return {name: self.values(f"pair/{name}") for name in names}


def rounding(source: ValidatedFile) -> dict[str, float]:
    """Return by how much pixels were rounded at most, in the unit of the file and in HU."""
    largest = {"file": 0.0, "hu": 0.0}
    for role in ROLES if source.version >= 4 else ():
        in_file = source.values(f"pair/{role}_rounding")
        _, divisor, slope, _ = source.constants[role]
        in_hu = in_file * abs(divisor) * (1 if source.attributes["unit"] == "hu" else abs(slope))
        for unit, values in zip(largest, (in_file, in_hu), strict=True):
            largest[unit] = max(largest[unit], float(values.max(initial=0)))
    return largest


def rounding_text(source: ValidatedFile) -> str:
    """Return `rounding` in words; nothing for float32 that was never rounded."""
    largest = rounding(source)
    if not largest["file"]:
        return "" if source.config["dtype"] == "float32" else "not at all: every pixel is exact"
    return f"by at most {largest['file']:.3g} in the unit of the file, {largest['hu']:.3g} HU"


def positions(indices: Patches, n: int) -> NDArray[np.int64]:
    """Return indices of n patches as an array, none below 0.

    `IndexError` is raised if there is no such patch.
    """
    if isinstance(indices, slice):
        return np.arange(*indices.indices(n))
    given = np.atleast_1d(indices)
    if given.size and given.dtype.kind not in "iu":
        return np.asarray(np.arange(n)[given], np.int64)  # a mask, or an error
    index = np.where(given < 0, given + n, given).astype(np.int64).reshape(-1)
    invalid = (index < 0) | (index >= n)
    if invalid.any():
        raise IndexError(f"patch {given.reshape(-1)[invalid][0]} of {n}")
    return index


def denormalise(
    values: NDArray[np.floating[Any]],
    file: File,
    patches: Patches | None = None,
    role: str = "target",
    unit: str = "hu",
) -> NDArray[np.float32]:
    """Return patches, or a network's output for them, as they were before normalisation.

    `values`, shape (n, ...), belong to the given patches of the file, by default to all in order.
    `role` decides whose normalisation is inverted: a denoised input corresponds to a target, but
    with `unity_independent` and `std_independent` only the constants of the input fit the input.
    `unit` is `hu` or `stored`. The result has the shape of `values` and float32 accuracy; what
    `hu_window` clipped stays clipped. `IndexError` is raised if there is no such patch.
    """
    if role not in ROLES or unit not in ("hu", "stored"):
        raise ValueError(f"role {role!r}, unit {unit!r}; expected: input or target, hu or stored")
    with opened(file) as source:
        chosen = positions(slice(None) if patches is None else patches, source.patches)
        constants = source.constants[role][:, source.pair_of(chosen)]
        file_unit = source.attributes["unit"]
    values = np.asarray(values)
    if len(values) != len(chosen):
        raise ValueError(
            f"{len(values)} values for {len(chosen)} patches; name the patches that they belong to"
        )
    # One map per patch, its two numbers and all products in float64.
    shift, factor, slope, intercept = constants.reshape(4, -1, *[1] * (values.ndim - 1))
    if (file_unit, unit) == ("hu", "stored"):
        factor, shift = factor / slope, (shift - intercept) / slope
    elif (file_unit, unit) == ("stored", "hu"):
        factor, shift = factor * slope, shift * slope + intercept
    out = values * factor
    out += shift
    return np.asarray(out, np.float32)


def stored_as(source: ValidatedFile) -> str:
    """Return in words how the patches of a file are stored."""
    config = source.config
    facts = [source.store, config["dtype"]]
    if config["compression"] != "none":
        facts.append(f"compressed by {config['compression']}")
    if config["shuffle_patches"]:
        facts.append("shuffled")
    return ", ".join(facts)


def overview(path: PathLike) -> list[str]:
    """Return what a file contains and how it was created, one line each.

    `OSError` is raised if it cannot be read, `ValueError` if it is not a valid file of ctpatches.
    """
    with ValidatedFile(path, complete=False) as source:
        attributes = source.attributes
        complete = "complete" if attributes["complete"] else "NOT complete"
        shapes = [f"{rows} x {columns}" for rows, columns in np.unique(source.shapes, axis=1).T]
        given = {n: v for n, v in source.config.items() if v not in (None, False)}
        facts = {
            "file": f"{path}, {os.path.getsize(path) / 1e6:.1f} MB",
            "format": f"version {source.version}, {complete}",
            "patches": f"{source.patches} of {source.patch_size} x {source.patch_size} pixels in "
            f"input and target, stored as {stored_as(source)}",
            "pairs": f"{source.pairs}, slices of {abbreviated(shapes, MAX_SHAPES)} pixels",
            "patients": f"{len(source.patients)}: {abbreviated(source.patients)}",
            "left out": f"{len(source['left_out/reason'])} entries",
            "scales": ", ".join(f"{scale:g}" for scale in source.scales),
            "unit": "HU" if attributes["unit"] == "hu" else "stored values",
            "rounded": rounding_text(source),
            "options": ", ".join(n if v is True else f"{n} {v}" for n, v in given.items()),
            "seed": str(int(attributes["seed"])),
        }
    return [f"{name:10} {printable(fact)}" for name, fact in facts.items() if fact]


def abbreviated(values: list[str], limit: int = MAX_NAMES) -> str:
    """Return the first of some values."""
    return ", ".join([*values[:limit], "..."] if len(values) > limit else values)
