"""Applying a normalisation, and air in it. Its kinds are in `utils.img_pair_normalization`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: The lowest value of a CT scale in HU: what lies outside the patient and outside the image.
AIR_HU = -1024.0


@dataclass(frozen=True)
class Affine:
    """A normalisation of one image: ``(pixels - offset) / divisor``, zeros where divisor is 0."""

    offset: float = 0.0
    divisor: float = 1.0

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the normalised image, float32, of the same shape."""
        if self == Affine():
            return image
        if self.divisor == 0:
            return np.zeros_like(image)
        out: NDArray[np.float32] = image - np.float32(self.offset)
        out /= np.float32(self.divisor)
        return out


def normalised_air(
    affine: Affine, slope: float, intercept: float, unit: str, window: Sequence[float] | None
) -> float:
    """Return air in a normalised image.

    Its pixels were in that unit, 'hu' or 'stored', before; `window` is the one of `hu_window`.
    """
    air = AIR_HU if unit == "hu" else (AIR_HU - intercept) / slope
    if window:
        air = min(max(air, window[0]), window[1])
    return float(affine.apply(np.full(1, air, np.float32))[0])
