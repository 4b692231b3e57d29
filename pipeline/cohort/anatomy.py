"""The anatomy check: whether the input of a pair looks like its own target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.dicom.slice_file import Slice
from pipeline.model import Pair
from utils import printable

#: Image of every nth row and column, about 64 x 64 pixels, HU rounded.
Sample: TypeAlias = NDArray[np.int16]
SAMPLE_SIZE = 64
#: Inputs that are compared with all targets of their patient at once, to bound the memory.
MAX_INPUTS = 64


def sample_of(hu: NDArray[np.float32]) -> Sample:
    """Return the sample of an image in HU."""
    rows, columns = (max(1, pixels // SAMPLE_SIZE) for pixels in hu.shape)
    return np.clip(np.rint(hu[::rows, ::columns]), -32768, 32767).astype(np.int16)


def misfits(
    pairs: Sequence[Pair],
    inputs: Sequence[Sample],
    targets: Sequence[Sample],
    others: Sequence[tuple[Slice, Sample]] = (),
) -> list[str]:
    """Return a line for each pair of a patient whose input looks more like another target.

    Inputs are compared with the targets of their shape, and with `others`: neighbouring target
    slices that are in no pair of this run. Distances are root mean squares, HU.
    """
    out = []
    for shape in dict.fromkeys(sample.shape for sample in inputs):
        members = [i for i, sample in enumerate(inputs) if sample.shape == shape]
        candidates = [(pairs[i].target, targets[i]) for i in members]
        candidates += [(one, sample) for one, sample in others if sample.shape == shape]
        theirs = _as_rows(sample for _, sample in candidates)
        for first in range(0, len(members), MAX_INPUTS):
            ours = _as_rows(inputs[i] for i in members[first : first + MAX_INPUTS])
            # |a - b|^2 = |a|^2 + |b|^2 - 2 ab: exact, as all are whole numbers below 2^53.
            squares = np.einsum("ij,ij->i", ours, ours)[:, None] - 2 * (ours @ theirs.T)
            squares += np.einsum("ij,ij->i", theirs, theirs)
            rms = np.sqrt(squares / theirs.shape[1])
            for own, distances in enumerate(rms, first):
                best = int(np.argmin(distances))
                if distances[best] < distances[own]:
                    pair = pairs[members[own]]
                    out.append(
                        f"{printable(pair.input.file)} differs from its target "
                        f"{printable(pair.target.file)} by {distances[own]:.0f} HU (root mean "
                        f"square), but from {printable(candidates[best][0].file)} by "
                        f"{distances[best]:.0f} HU"
                    )
    return out


def _as_rows(samples: Iterable[Sample]) -> NDArray[np.float64]:
    return np.stack([sample.ravel() for sample in samples]).astype(np.float64)
