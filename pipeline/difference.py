"""Input minus target of a pair: the sums that noise and mean difference follow from."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from patching import Grid, window_sums
from pipeline.config import Config
from pipeline.model import Difference
from utils import Image


def measure(
    input_hu: Image, target_hu: Image, kept: NDArray[np.bool_], config: Config
) -> Difference:
    """Measure a pair over the pixels of its kept windows; pixels beyond the image do not count.

    The images are those of the pair before any normalisation, in HU; `kept` is True for
    each of its windows at scale 1 that is kept.
    """
    grid = Grid(target_hu.shape, config)

    def total(term: Image | NDArray[np.bool_]) -> float:
        return math.fsum(window_sums(term, grid)[kept])

    difference = input_hu - target_hu
    sums = total(difference), total(np.square(difference, out=difference))
    outside = []
    if config.clip_window:
        low, high = config.clip_window
        outside = [test for hu in (input_hu, target_hu) for test in (hu < low, hu > high)]
    pixels = total(np.ones_like(difference, np.bool_))
    return Difference(int(pixels), *sums, *(int(total(test)) for test in outside))
