"""The orientations of a square patch, and random draws of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.permutation import split_mix

Images: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[Any]

#: The eight orientations of a square, of arrays of shape (p, p) or (n, p, p): the first six as in
#: `ctpatches.schema.ORIENTATIONS`, then mirrored at the main and at the other diagonal.
DIHEDRAL: tuple[Callable[[Pixels], Pixels], ...] = (
    lambda a: a,
    lambda a: a.swapaxes(-2, -1)[..., ::-1, :],
    lambda a: a[..., ::-1, ::-1],
    lambda a: a.swapaxes(-2, -1)[..., ::-1],
    lambda a: a[..., ::-1, :],
    lambda a: a[..., ::-1],
    lambda a: a.swapaxes(-2, -1),
    lambda a: a[..., ::-1, ::-1].swapaxes(-2, -1),
)
#: Indices into `DIHEDRAL` of what undoes each of the first six.
INVERSE = (0, 3, 2, 1, 4, 5)


def orient(image: Pixels, code: int, out: Pixels) -> None:
    """Write a patch into `out` in the orientation of a code."""
    out[:] = DIHEDRAL[code](image)


def draw_orientations(seed: int, epoch: int, patches: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return an index into `DIHEDRAL` for each patch of the file, all equally likely.

    It depends on nothing but the three arguments, which are hashed: creating a generator of NumPy
    for each patch would cost more than reading it.
    """
    state = np.zeros(len(patches), np.uint64)
    for word in (np.uint64(seed % 2**64), np.uint64(epoch % 2**64), patches.astype(np.uint64)):
        state = split_mix(state ^ word, 0x9E3779B97F4A7C15)
    return (state >> np.uint64(61)).astype(np.uint8)


def turned(images: Pixels, codes: NDArray[np.uint8]) -> Pixels:
    """Return images, shape (n, p, p), each in the orientation of its code."""
    out = np.empty_like(images)
    for code in np.unique(codes):
        chosen = codes == code
        out[chosen] = DIHEDRAL[code](images[chosen])
    return out


def upright(images: Pixels, codes: NDArray[np.uint8]) -> Pixels:
    """Return images, shape (n, p, p), as they were before `turned` with the same codes below 6."""
    return turned(images, np.array(INVERSE, np.uint8)[codes])
