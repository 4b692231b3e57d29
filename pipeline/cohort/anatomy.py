"""The anatomy check: whether the input of a pair looks like its own target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.pixels import Sample
from pipeline.model import Pair, Slice
from utils import printable

#: Inputs that are compared with all targets of their patient at once.
MAX_ROWS = 64


def misfits(
    pairs: Sequence[Pair],
    inputs: Sequence[Sample],
    targets: Sequence[Sample],
    others: Sequence[tuple[Slice, Sample]] = (),
) -> list[str]:
    """Return the pairs of a patient whose input looks more like another target than its own.

    Parameters
    ----------
    pairs : sequence of Pair
        All of one patient.
    inputs, targets : sequences of ndarray of int16, one shape
        Samples of their images, HU.
    others : sequence of (Slice, ndarray)
        Neighbouring target slices that are in no pair of this run.

    Returns
    -------
    list of str
        A line for each, with both root mean square differences in HU.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(inputs):
        by_shape.setdefault(sample.shape, []).append(i)
    out = []
    for shape, members in by_shape.items():
        candidates = [(pairs[i].target.file, targets[i]) for i in members]
        candidates += [(s.file, sample) for s, sample in others if sample.shape == shape]
        theirs = _as_rows(sample for _, sample in candidates)
        for first in range(0, len(members), MAX_ROWS):
            some = members[first : first + MAX_ROWS]
            squares = _squared_distances(_as_rows(inputs[i] for i in some), theirs)
            for row, (i, distances) in enumerate(zip(some, squares, strict=True)):
                best, own = int(np.argmin(distances)), distances[first + row]
                if distances[best] < own:
                    rms = np.sqrt(np.array([own, distances[best]]) / theirs.shape[1])
                    out.append(
                        f"{printable(pairs[i].input.file)} differs from its target "
                        f"{printable(pairs[i].target.file)} by {rms[0]:.0f} HU (root mean square), "
                        f"but from {printable(candidates[best][0])} by {rms[1]:.0f} HU"
                    )
    return out


def _as_rows(samples: Iterable[Sample]) -> NDArray[np.float64]:
    return np.stack([sample.ravel() for sample in samples]).astype(np.float64)


def _squared_distances(
    ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the squared distance of every row of one to every row of the other.

    As a matrix product, |a|^2 + |b|^2 - 2 ab: exact, since all of these are whole numbers of HU
    squared, below 2^53.
    """
    own, other = (np.einsum("ij,ij->i", rows, rows) for rows in (ours, theirs))
    return np.asarray(own[:, None] + other - 2 * (ours @ theirs.T))
