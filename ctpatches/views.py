"""The views that a file stores, and cutting patches from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.orientations import DIHEDRAL
from ctpatches.schema import MAX_IMAGE_SIDE, ORIENTATIONS

#: Where a patch lies among the pixels of all views, and how it is oriented, in 8 bytes: so many
#: fit into memory for millions of patches, where reading the columns of `patch/` at random would
#: cost more than reading the pixels.
Windows: TypeAlias = NDArray[np.uint64]
#: Bits of the orientation and of the columns of a view; all others are the first pixel.
CODE_BITS, WIDTH_BITS = 3, 14
MAX_PIXELS = 1 << (64 - CODE_BITS - WIDTH_BITS)

# Row and column in the window of the first pixel of a patch, of the next one below and of the next
# one to the right of it, for a window of 2 x 2 pixels; shape (orientations, 3, 2).
_NUMBERED = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
_PLACES = np.array(
    [
        [divmod(int(patch[at]), 2) for at in ((0, 0), (1, 0), (0, 1))]
        for patch in (turn(_NUMBERED)[0] for turn in DIHEDRAL[: len(ORIENTATIONS)])
    ]
)


class ViewTable:
    """Where the stored views of a file lie."""

    def __init__(
        self,
        columns: dict[str, NDArray[Any]],
        slice_shapes: NDArray[np.int64],
        scales: Sequence[float],
    ) -> None:
        self.columns = columns
        pairs = slice_shapes.shape[1]
        known = np.isin(columns["scale"], np.array(scales, np.float32))
        scale = np.where(known, columns["scale"], 1)
        #: Rows and columns of every view, shape (2, views).
        self.shapes = np.stack([columns["rows"], columns["columns"]]).astype(np.int64)
        self._keys = _key(columns["pair"], scale)
        offsets = np.append(0, np.cumsum(np.prod(self.shapes, axis=0)))
        self.valid = bool(
            known.all()
            and (columns["pair"] < pairs).all()
            and (np.diff(self._keys) > 0).all()
            # Small enough that no sum overflows.
            and (self.shapes <= 2 * MAX_IMAGE_SIDE).all()
            and (self.shapes >= view_shape(slice_shapes[:, columns["pair"]], scale)).all()
            and np.array_equal(columns["offset"], offsets[:-1])
            and offsets[-1] <= MAX_PIXELS
        )
        #: First pixel of the views of every pair; one more entry for the end.
        self.starts = offsets[np.searchsorted(columns["pair"], np.arange(pairs + 1))]

    def _rows(self, pair: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows of this table for the views of pairs, whether it has them or not."""
        return np.minimum(np.searchsorted(self._keys, _key(pair, scale)), len(self._keys) - 1)

    def hold(
        self, pair: NDArray[Any], scale: NDArray[Any], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return whether views are stored and windows that end there, shape (2, n), within them."""
        if not len(self._keys):
            return np.zeros(len(pair), bool)
        row = self._rows(pair, scale)
        known = self._keys[row] == _key(pair, scale)
        return np.asarray(known & (ends <= self.shapes[:, row]).all(axis=0))

    def windows(self, patches: dict[str, NDArray[Any]]) -> Windows:
        """Return the windows of patches, from the columns of `patch/`."""
        row = self._rows(patches["pair"], patches["scale"])
        width = self.shapes[1, row]
        out = self.columns["offset"][row] + (patches["row"] * width + patches["col"]).astype("u8")
        out <<= np.uint64(WIDTH_BITS)
        out |= width.astype(np.uint64)
        out <<= np.uint64(CODE_BITS)
        return np.asarray(out | patches["orientation"], np.uint64)


def view_shape(slice_shapes: NDArray[np.int64], scale: Any) -> NDArray[np.int64]:
    """Return rows and columns of views of slices, as `augment.view_shape`."""
    return np.asarray(slice_shapes * np.round(np.float64(scale), 6), np.int64)


def _key(pair: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.int64]:
    """Return numbers that order views as they are stored: by pair, the largest scale first."""
    return np.asarray(pair.astype(np.int64) * 10 + (10 - np.rint(scale * 10)).astype(np.int64))


def cut(
    windows: Windows,
    size: int,
    dtype: np.dtype[Any],
    read: Callable[[NDArray[np.int64], NDArray[np.int64]], Iterator[Any]],
) -> NDArray[Any]:
    """Return the patches of windows, shape (n, size, size).

    `read` yields the pixels of runs, a buffer each, from their first pixels and lengths. A run has
    all rows of a window, and what lies between them: in one piece they are read faster, and the
    pages of the file are the same.
    """
    numbers = windows.astype(np.int64)
    orientation = numbers & ((1 << CODE_BITS) - 1)
    width = (numbers >> CODE_BITS) & ((1 << WIDTH_BITS) - 1)
    first = numbers >> (CODE_BITS + WIDTH_BITS)
    # A patch is an array whose pixels lie in the run: how far apart depends on the orientation.
    place = _PLACES[orientation] * np.stack([width, np.ones_like(width)], 1)[:, None]
    corner, below, beside = place.sum(axis=2).T * dtype.itemsize
    layouts = zip(
        (corner * (size - 1)).tolist(),
        zip((below - corner).tolist(), (beside - corner).tolist(), strict=True),
        read(first, width * (size - 1) + size),
        strict=True,
    )
    out = np.empty((len(windows), size, size), dtype)
    for patch, (start, strides, pixels) in zip(out, layouts, strict=True):
        patch[:] = np.ndarray((size, size), dtype, pixels, start, strides)
    return out
