"""The normalisations of an image: their constants, applying them, and what air becomes.

`utils.img_pair_normalization` uses them for the images of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The lowest value of a CT scale in HU: what lies outside the patient and outside the image.
AIR_HU = -1024.0
#: Pixels of an image that are summed at once, in float64.
SUM_PIXELS = 512 * 512


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


def affine_of(image: NDArray[np.float32], kind: str) -> Affine:
    """Return the normalisation of an image by its own statistics."""
    low, high = float(image.min()), float(image.max())
    if kind.startswith("unity"):
        return Affine(low, high - low)
    mean = image.mean(dtype=np.float64)
    # The deviation of a constant image is rounding errors, not always exactly 0.
    deviation = 0.0 if low == high else image.std(dtype=np.float64)
    return Affine(float(np.float32(mean)), float(np.float32(deviation)))


class Statistics(NamedTuple):
    """Statistics of one input image for the normalisations by data set, HU."""

    pixels: int
    low: float
    high: float
    mean: float
    squares: float  # of the deviations from the mean


def statistics_of(image: NDArray[np.float32]) -> Statistics:
    """Return the statistics of an image, summed in memory of `SUM_PIXELS` pixels."""
    rows = max(1, SUM_PIXELS // image.shape[1])
    parts = [image[start : start + rows] for start in range(0, image.shape[0], rows)]
    mean = math.fsum(part.sum(dtype=np.float64) for part in parts) / image.size
    squares = (np.square(np.subtract(part, mean, dtype=np.float64)).sum() for part in parts)
    return Statistics(image.size, float(image.min()), float(image.max()), mean, math.fsum(squares))


def fixed_affine(
    kind: str, hu_window: tuple[float, float], statistics: Sequence[Statistics]
) -> Affine | None:
    """Return the normalisation that is the same for every image, or None.

    Means and deviations of the images are combined as by Chan, Golub and LeVeque, 1979, in the
    order of the pairs: the result does not depend on the rank that surveyed a pair.
    """
    if kind == "hu_window":
        return Affine(hu_window[0], hu_window[1] - hu_window[0])
    if kind == "dataset_unity":
        low = min(f.low for f in statistics)
        return Affine(low, max(f.high for f in statistics) - low)
    if kind == "dataset_std":
        pixels, mean, squares = 0, 0.0, 0.0
        for one in statistics:
            delta = one.mean - mean
            both = pixels + one.pixels
            squares += one.squares + delta * delta * (pixels / both) * one.pixels
            mean += delta * one.pixels / both
            pixels = both
        return Affine(mean, math.sqrt(squares / pixels))
    return None


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
