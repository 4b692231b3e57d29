"""Windows in views, the views that a file stores, and cutting patches from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.orientations import DIHEDRAL, INVERSE
from ctpatches.schema import MAX_IMAGE_SIDE

#: Columns of a strip. The windows of a view would otherwise be read with all columns of the view:
#: of 512 columns, five times the bytes that a patch of 55 columns needs.
STRIP = 128
#: The view of a patch, row and column in it, and the orientation, in 9 bytes: so many fit into
#: memory for millions of patches, where reading the columns of `patch/` at random would cost more
#: than reading the pixels.
WINDOW = np.dtype([("view", "<u4"), ("row", "<u2"), ("col", "<u2"), ("orientation", "|u1")])
#: An array of `WINDOW`.
Windows: TypeAlias = NDArray[Any]


class Spans(NamedTuple):
    """Consecutive pixels of views: of every window those in one strip, and what is between them.

    In one piece they are read faster than row by row, from the same pages of the file.
    """

    #: Which window, in ascending order.
    patch: NDArray[np.int64]
    #: First pixel, and number of pixels.
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    #: Columns of the strip.
    width: NDArray[np.int64]
    #: First column in the window, and number of columns.
    begin: NDArray[np.int64]
    columns: NDArray[np.int64]


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
        )
        #: First pixel of the views of every pair; one more entry for the end.
        self.starts = offsets[np.searchsorted(columns["pair"], np.arange(pairs + 1))]

    def hold(
        self, pair: NDArray[Any], scale: NDArray[Any], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return whether views are stored and windows that end there, shape (2, n), within them."""
        keys, stored = _key(pair, scale), np.append(self._keys, -1)
        row = np.searchsorted(self._keys, keys)
        shapes = np.append(self.shapes, [[0], [0]], axis=1)
        return np.asarray((stored[row] == keys) & (ends <= shapes[:, row]).all(axis=0))

    def windows(self, patches: dict[str, NDArray[Any]]) -> Windows:
        """Return the windows of patches, from columns of `patch/` for which `hold` is true."""
        out = np.empty(len(patches["pair"]), WINDOW)
        out["view"] = np.searchsorted(self._keys, _key(patches["pair"], patches["scale"]))
        for name in ("row", "col", "orientation"):
            out[name] = patches[name]
        return out

    def spans(self, windows: Windows, size: int) -> Spans:
        """Return what has to be read for the patches of windows."""
        view, row, col = (windows[name].astype(np.int64) for name in ("view", "row", "col"))
        strips = (col + size - 1) // STRIP - col // STRIP + 1
        patch = np.repeat(np.arange(len(windows)), strips)
        nth = np.arange(len(patch)) - np.repeat(np.cumsum(strips) - strips, strips)
        col, row, view = col[patch], row[patch], view[patch]
        left = (col // STRIP + nth) * STRIP
        rows, columns = self.shapes[:, view]
        width = np.minimum(columns - left, STRIP)
        begin, end = np.maximum(col, left), np.minimum(col + size, left + width)
        first = self.columns["offset"][view].astype(np.int64)
        first += left * rows + row * width + begin - left
        length = width * (size - 1) + end - begin
        return Spans(patch, first, length, width, begin - col, end - begin)


def window_starts(length: int, size: int, overlap: int, edge: str) -> NDArray[np.int64]:
    """Return where windows of `size` pixels begin along one axis of a view, ascending.

    They `overlap` by so many pixels, ``0 <= overlap < size``. With the `edge` ``shift`` they begin
    at multiples of the stride (size minus overlap), the last moved inward; with ``pad`` at 0 and at
    k x stride - overlap for k = 1, 2, ... while k x stride < length. There are none if the view is
    smaller than a patch.
    """
    stride = size - overlap
    if length < size:
        return np.empty(0, np.int64)
    if edge == "pad":
        return np.unique(np.maximum(np.arange(0, length, stride) - overlap, 0))
    return np.unique(np.append(np.arange(0, length - size, stride), length - size))


def padded_length(length: int, size: int, overlap: int, edge: str) -> int:
    """Return the length of an axis of a view with its padding; the parameters as above."""
    starts = window_starts(length, size, overlap, edge)
    return int(starts[-1]) + size if len(starts) else length


def strips(view: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of a view as they are stored, shape (rows x columns,).

    Strips of 128 columns follow one another from left to right, each row by row.
    """
    parts = [view[:, at : at + STRIP].ravel() for at in range(0, view.shape[1], STRIP)]
    return np.concatenate(parts)


def from_strips(pixels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return a view, shape (rows, columns), from its pixels as they are stored."""
    rows, columns = shape
    parts = np.split(pixels, range(rows * STRIP, rows * columns, rows * STRIP))
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)


def view_shape(slice_shapes: NDArray[np.int64], scale: Any) -> NDArray[np.int64]:
    """Return rows and columns of views of slices, as `augment.view_shape`."""
    return np.asarray(slice_shapes * np.round(np.float64(scale), 6), np.int64)


def _key(pair: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.int64]:
    """Return numbers that order views as they are stored: by pair, the largest scale first."""
    return np.asarray(pair.astype(np.int64) * 10 + (10 - np.rint(scale * 10)).astype(np.int64))


def cut(
    windows: Windows, size: int, dtype: np.dtype[Any], spans: Spans, pixels: Iterable[Any]
) -> NDArray[Any]:
    """Return the patches of windows, shape (n, size, size), from a buffer per span."""
    out = np.empty((len(windows), size, size), dtype)
    for patch, code, width, begin, columns, buffer in zip(
        spans.patch.tolist(),
        windows["orientation"][spans.patch].tolist(),
        (spans.width * dtype.itemsize).tolist(),
        spans.begin.tolist(),
        spans.columns.tolist(),
        pixels,
        strict=True,
    ):
        found = np.ndarray((size, columns), dtype, buffer, 0, (width, dtype.itemsize))
        # In place: the patch, turned back, is the window.
        DIHEDRAL[INVERSE[code]](out[patch])[:, begin : begin + columns] = found
    return out
