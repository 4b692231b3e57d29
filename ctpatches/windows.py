"""Windows of patches: which rows of `patch/` are valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.files import Invalid
from ctpatches.schema import ORIENTATIONS


@dataclass(frozen=True)
class Windows:
    """What the rows of `patch/` may hold: windows inside the views of the pair of their block.

    Attributes
    ----------
    path : str
    first, patches : ndarray of int64, shape (pairs,)
        The block of each pair.
    shapes : ndarray of int64, shape (2, pairs)
        Rows and columns of the slices.
    scales : tuple of float
    inside : int
        Pixels along each axis that a window has in the view at least.
    """

    path: str
    first: NDArray[np.int64]
    patches: NDArray[np.int64]
    shapes: NDArray[np.int64]
    scales: tuple[float, ...]
    inside: int

    def views(
        self, pair: int | NDArray[np.int64], scale: float | NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return rows and columns of views, as `augment.view_shape`."""
        return (self.shapes[:, pair] * scale).astype(np.int64)

    def check(self, columns: Mapping[str, NDArray[Any]], indices: NDArray[np.int64]) -> None:
        """Refuse rows of `PATCH_COLUMNS` that no run writes.

        Raises
        ------
        ValueError
            Naming the first such patch.
        """
        pair = pair_of(self.first + self.patches, indices)
        known = np.isin(columns["scale"], np.array(self.scales, np.float32))
        scale = np.where(known, columns["scale"], 1).astype(np.float64).round(6)
        views = self.views(pair, scale)
        starts = np.stack([columns["row"], columns["col"]]).astype(np.int64)
        right = known & (columns["pair"] == pair) & (columns["orientation"] < len(ORIENTATIONS))
        right &= ((starts >= 0) & (starts + self.inside <= views)).all(axis=0)
        if not right.all():
            at = int(np.argmin(right))
            found = ", ".join(f"{name} {column[at]}" for name, column in columns.items())
            raise Invalid.of(
                self.path,
                f"is damaged: patch {indices[at]} has {found}; expected: a window in a view of "
                f"pair {pair[at]}",
            )


def pair_of(ends: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs of patches from the ends of the blocks of all pairs."""
    return np.searchsorted(ends, indices, side="right")
