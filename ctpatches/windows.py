"""Where windows lie in a view, for creating a file and for converting one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def window_starts(length: int, size: int, overlap: int, edge: str) -> NDArray[np.int64]:
    """Return where windows begin along one axis of a view, ascending.

    Parameters
    ----------
    length, size, overlap : int
        Of the view, of a patch, and of neighbouring windows, pixels; ``0 <= overlap < size``.
    edge : {'shift', 'pad'}
        ``shift``: at multiples of the stride (size minus overlap), the last moved inward.
        ``pad``: at 0 and at k x stride - overlap for k = 1, 2, ... while k x stride < length.

    Returns
    -------
    ndarray of int64
        Empty if the view is smaller than a patch.
    """
    stride = size - overlap
    if length < size:
        return np.empty(0, np.int64)
    if edge == "pad":
        starts = np.arange(0, length, stride) - overlap
        starts[0] = 0
        return np.unique(np.maximum(starts, 0))
    starts = np.arange(0, length - size + 1, stride)
    if starts[-1] + size < length:
        starts = np.append(starts, length - size)
    return starts


def padded_length(length: int, size: int, overlap: int, edge: str) -> int:
    """Return the length of an axis of a view with its padding; the parameters as above."""
    starts = window_starts(length, size, overlap, edge)
    return max(length, int(starts.max(initial=0)) + size) if len(starts) else length
