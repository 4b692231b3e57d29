"""Slices assembled from the patches of a pair, or from the output of a network for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.file import denormalise
from ctpatches.orientations import upright
from ctpatches.schema import ROLES
from ctpatches.validation import File, ValidatedFile, opened

Image = NDArray[np.float32]

#: Units of an assembled slice; `file` is as stored in the h5 file, normalised.
UNITS = ("hu", "stored", "file")
#: The weight of a pixel along one axis at the border of its patch; in the middle it is about 1.
MIN_WEIGHT = 1e-3


def blend(
    patches: Image, rows: Iterable[int], cols: Iterable[int], shape: tuple[int, int]
) -> Image:
    """Return an image of patches, shape (n, p, p), each at its row and column; NaN elsewhere.

    Where patches overlap, it is their mean, weighted with a Hann window along each axis:
    MIN_WEIGHT + sin^2(pi (i + 1/2) / p), because a network sees less around pixels near a border.
    Averaged is the difference from the first patch at a pixel, so that equal values give exactly
    that value; (0.1 x + 0.2 x) / 0.3 rounds three times. Patches may reach past the image.
    """
    size = patches.shape[-1]
    along = MIN_WEIGHT + np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    weights = np.outer(along, along)
    padded = (shape[0] + size, shape[1] + size)
    first = np.full(padded, np.nan, np.float32)
    differences, total = np.zeros(padded), np.zeros(padded)
    for patch, row, col in zip(patches, rows, cols, strict=True):
        here = slice(row, row + size), slice(col, col + size)
        np.copyto(first[here], patch, where=np.isnan(first[here]))
        differences[here] += weights * (patch.astype(np.float64) - first[here])
        total[here] += weights
    differ = differences != 0
    out = first.copy()
    out[differ] = (first[differ] + differences[differ] / total[differ]).astype(np.float32)
    return out[: shape[0], : shape[1]]


def stitch(
    values: Any,
    file: File,
    pair: int,
    role: str = "target",
    scale: float = 1.0,
    unit: str = "hu",
    fill: float | Image = math.nan,
) -> Image:
    """Assemble a slice from its patches, or from the output of a network for them.

    Parameters
    ----------
    values : array of shape (n, p, p), (n, 1, p, p) or (n, p, p, 1), or None
        Values in the order and the normalisation of the file: for all patches of the file, of the
        patient or of this pair, or for those of the scale only. Of a memory map or an h5py dataset,
        only those of this pair are read. None uses the patches in the file.
    file : path or PatchFile
        The h5 file of the patches.
    pair : int
        Row of the `pair/` table.
    role : {'target', 'input'}
        Whose patches are used, and whose normalisation is inverted, see
        `ctpatches.file.denormalise`.
    scale : float
        Scale of the view: 1, or with `--ds_augment` also 0.8 or 0.6 for the downscaled slice.
    unit : {'hu', 'stored', 'file'}
        Unit of the result; with `file`, the normalisation is not inverted.
    fill : float or ndarray of the shape of the view
        Pixels without a patch, where windows of air were left out, in `unit`.

    Returns
    -------
    ndarray of float32, shape (rows, columns) of the view
        Overlaps and the orientations of one window are blended. The patches in the file give the
        view exactly, in the unit of the file; inverting the normalisation has the accuracy of
        `ctpatches.file.denormalise`.

    Raises
    ------
    OSError
        The file cannot be read.
    IndexError
        There is no such pair.
    ValueError
        The file is not a complete, valid file of ctpatches; an argument has no such choice; or the
        values do not match the patches, or are not finite.

    Examples
    --------
    >>> stitch(None, "results/training_patches.h5", pair=0, fill=-1024)  # doctest: +SKIP
    """
    with opened(file) as source:
        image = _blended(values, source, pair, role, scale, unit)
    np.copyto(image, fill, where=np.isnan(image))
    return image


def _blended(
    values: Any, source: ValidatedFile, pair: int, role: str, scale: float, unit: str
) -> Image:
    """Return the slice that `stitch` assembles, NaN where it has no patch."""
    if role not in ROLES or unit not in UNITS:
        choices = f"{' or '.join(ROLES)}, {', '.join(UNITS)}"
        raise ValueError(f"role {role!r}, unit {unit!r}; expected: {choices}")
    check_pair(source, pair)
    if not np.isclose(scale, source.scales).any():
        scales = ", ".join(f"{one:g}" for one in source.scales)
        raise ValueError(f"scale {scale:g}; the file has: {scales}")
    rows = np.r_[source.rows_of(pair)]
    columns = source.columns(rows)
    chosen = np.isclose(columns["scale"], scale)
    if values is None:
        values = source.images(role, rows[chosen])
    else:
        values = _of_rows(values, source, pair, rows[chosen])
    patches = _checked(values, source, len(rows), int(chosen.sum()))
    orientation, row, col = (columns[name][chosen] for name in ("orientation", "row", "col"))
    height, width = source.view_shape(pair, scale).tolist()
    image = blend(upright(patches, orientation), row, col, (height, width))
    # One affine map for all patches of a pair: inverted once, after the blending.
    if unit != "file" and chosen.any():
        image = denormalise(image[None], source, rows[:1], role, unit)[0]
    return image


def check_pair(source: ValidatedFile, pair: int) -> None:
    """Raise `IndexError` if the file has no such pair."""
    if not 0 <= pair < source.pairs:
        raise IndexError(f"pair {pair} of {source.pairs}; expected: 0 to {source.pairs - 1}")


def _of_rows(values: Any, source: ValidatedFile, pair: int, rows: NDArray[np.int64]) -> Any:
    """Return the values for some rows of a pair, in their order.

    Values are in ascending order of the rows that they are for: those of the file, of the patient,
    of the pair, or these. If they have another number, all are returned.
    """
    if not isinstance(values, h5py.Dataset):
        values = np.asarray(values)
    patients, counts = source.values("pair/patient"), source.blocks[1]
    of_patient = np.flatnonzero(patients == patients[pair])
    if values.shape[:1] == (source.patches,):
        known = np.arange(source.patches)
    elif values.shape[:1] == (counts[of_patient].sum(),):
        known = np.sort(np.concatenate([np.r_[source.rows_of(one)] for one in of_patient.tolist()]))
    elif values.shape[:1] == (counts[pair],):
        known = np.sort(np.r_[source.rows_of(pair)])
    elif values.shape[:1] == rows.shape:
        known = np.sort(rows)
    else:
        return values
    # h5py requires ascending indices.
    ascending, order = np.unique(np.searchsorted(known, rows), return_inverse=True)
    return np.asarray(values[ascending])[order]


def _checked(values: NDArray[Any], source: ValidatedFile, of_pair: int, n: int) -> Image:
    """Return values for n of the patches of a pair, shape (n, p, p)."""
    size = source.patch_size
    shapes = [(n, *shape) for shape in ((size, size), (1, size, size), (size, size, 1))]
    if values.dtype.kind not in "fiu" or values.shape not in shapes:
        raise ValueError(
            f"values of shape {values.shape}, {values.dtype}; expected: {n} patches of "
            f"{size} x {size}, or all {of_pair} of the pair, or all {source.patches} of the "
            "file, as numbers"
        )
    if not np.isfinite(values).all():
        raise ValueError("values contain NaN or infinity")
    return values.reshape(-1, size, size).astype(np.float32)
