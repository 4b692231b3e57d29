"""Slices from the patches of a pair, or from the output of a network for them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.file import denormalise
from ctpatches.orientations import upright
from ctpatches.validation import ValidatedFile, opened

Image = NDArray[np.float32]

ROLES = ("input", "target")
#: What an image can be given in; `file` is as the file holds it, normalised.
UNITS = ("hu", "stored", "file")
#: The least weight of a pixel along one axis, at the border of its patch; the largest is about 1.
FLOOR = 1e-3
#: The description of a DICOM slice that was assembled from patches.
DESCRIPTION = "stitched from patches"


def window(size: int) -> NDArray[np.float64]:
    """Return the weights of a patch's pixels, shape (size, size).

    A Hann window (raised cosine) with a floor, FLOOR + sin^2(pi (i + 1/2) / size), along each axis:
    a patch counts little near its border, where a network sees less around a pixel, but nowhere
    nothing, for there may be no other.
    """
    along = FLOOR + np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return np.outer(along, along)


def blend(
    patches: Image,
    rows: Sequence[int] | NDArray[np.integer[Any]],
    cols: Sequence[int] | NDArray[np.integer[Any]],
    shape: tuple[int, int],
) -> Image:
    """Lay patches on an image; where they overlap, take their weighted mean.

    Where all patches agree about a pixel, the result is that value, bit for bit: what is averaged
    is the difference from the first patch there, which is then exactly 0. (A weighted mean of equal
    values is not always that value: (0.1 x + 0.2 x) / 0.3 rounds three times.)

    Parameters
    ----------
    patches : ndarray of float32, shape (n, p, p)
        Finite values, as they lie in the image: not turned.
    rows, cols : sequence of int, shape (n,)
        First row and column of each in the image, pixels. They may reach past it.
    shape : tuple of int
        Rows and columns of the image.

    Returns
    -------
    ndarray of float32, shape `shape`
        NaN where there is no patch.
    """
    size = patches.shape[-1]
    # Large enough for patches that reach past the image; cropped at the end.
    reach = [
        max([n, *(int(a) + size for a in at)]) for n, at in zip(shape, (rows, cols), strict=True)
    ]
    first = np.full(reach, np.nan, np.float32)
    apart, weight = np.zeros(reach), np.zeros(reach)
    weights = window(size)
    for patch, row, col in zip(patches, rows, cols, strict=True):
        here = slice(row, row + size), slice(col, col + size)
        np.copyto(first[here], patch, where=np.isnan(first[here]))
        apart[here] += weights * (patch.astype(np.float64) - first[here])
        weight[here] += weights
    differ = apart != 0
    out = first.copy()
    out[differ] = (first[differ] + apart[differ] / weight[differ]).astype(np.float32)
    return out[: shape[0], : shape[1]]


def stitch(
    values: NDArray[np.floating[Any]] | None,
    file: str | os.PathLike[str],
    pair: int,
    side: str = "target",
    scale: float = 1.0,
    unit: str = "hu",
    fill: float = math.nan,
) -> Image:
    """Put a slice together from its patches, or from a network's output for them.

    Parameters
    ----------
    values : ndarray, shape (n, p, p), (n, 1, p, p) or (n, p, p, 1), or None
        For the patches of this pair in the order of the file, all of them or those of the scale
        alone, in the normalisation of the file. None takes the patches of `side` in the file.
    file : path
        Where the patches are from.
    pair : int
        Row of the file's `pair/` table.
    side : {'target', 'input'}
        Whose normalisation is undone, see `ctpatches.file.denormalise`.
    scale : float
        Of the view: 1, or with `--ds_augment` 0.8 or 0.6, which give the downscaled slice.
    unit : {'hu', 'stored', 'file'}
        Of the result; with `file`, the normalisation is not undone.
    fill : float
        For pixels that no patch covers, in `unit`: windows of air that were left out.

    Returns
    -------
    ndarray of float32, shape (rows, columns) of the view
        Overlaps and the orientations of one window are blended (see `blend`). The file's own
        patches give back the view exactly, in the unit of the file; what undoing the normalisation
        costs is that of `ctpatches.file.denormalise`.

    Raises
    ------
    OSError
        The file cannot be read.
    IndexError
        There is no such pair.
    ValueError
        The file is no complete one of this tool, or damaged; an argument has no such choice; values
        do not fit the patches, or are not finite.
    """
    if side not in ROLES or unit not in UNITS:
        raise ValueError(
            f"side {side!r}, unit {unit!r}; wanted: {' or '.join(ROLES)}, {', '.join(UNITS)}"
        )
    with opened(file) as source:
        block = _block(source, pair)
        if not np.isclose(scale, source.scales).any():
            there = ", ".join(f"{one:g}" for one in source.scales)
            raise ValueError(f"scale {scale:g}; the file has: {there}")
        columns = source.columns(block)
        chosen = np.isclose(columns["scale"], scale)
        if values is None:
            patches = source.images(side, block)[chosen]
        else:
            patches = _fitting(np.asarray(values), source.patch_size, chosen)
        windows = {name: column[chosen] for name, column in columns.items()}
        rows, cols = source.view_shape(pair, scale).tolist()
        image = blend(
            upright(patches, windows["orientation"]), windows["row"], windows["col"], (rows, cols)
        )
        # One affine map for all patches of a pair: undone once, after the blending.
        if unit != "file" and chosen.any():
            patch = block.start + int(np.flatnonzero(chosen)[0])
            image = denormalise(image[None], source, [patch], side, unit)[0]
    image[np.isnan(image)] = fill
    return image


def _block(source: ValidatedFile, pair: int) -> slice:
    """Return where the patches of a pair are."""
    if not 0 <= pair < source.pairs:
        raise IndexError(f"pair {pair} of {source.pairs}; wanted: 0 to {source.pairs - 1}")
    first, patches = (int(column[pair]) for column in source.blocks)
    return slice(first, first + patches)


def _fitting(values: NDArray[np.floating[Any]], size: int, chosen: NDArray[np.bool_]) -> Image:
    """Return the values of the chosen patches, shape (n, p, p).

    Raises
    ------
    ValueError
        There are more or fewer, of another size, or some that are no number.
    """
    all_patches, wanted = len(chosen), int(chosen.sum())
    if len(values) == all_patches:
        values = values[chosen]
    fits = values.shape[1:] in ((size, size), (1, size, size), (size, size, 1))
    if len(values) != wanted or not fits:
        raise ValueError(
            f"values of shape {values.shape}; wanted: {wanted} patches of {size} x {size}, or all "
            f"{all_patches} of the pair"
        )
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity")
    return values.reshape(-1, size, size).astype(np.float32)
