"""Input minus target of a pair: the sums that noise and mean difference follow from."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from patching import Grid
from pipeline.config import Config
from pipeline.model import Difference
from utils import Image


def measure(
    input_hu: Image, target_hu: Image, kept: NDArray[np.bool_], config: Config
) -> Difference:
    """Measure a pair over the pixels of its kept windows; pixels beyond the image do not count.

    The sums do not depend on the processor: numbers are added one after the other, in float64.

    The images are those of the pair before any normalisation, in HU; `kept` is True for
    each of its windows at scale 1 that is kept.
    """
    grid = Grid(target_hu.shape, config)
    window = config.hu_window if config.normalization_type == "hu_window" else None
    pixels, sums = 0, []
    columns = input_hu.shape[1]
    table = np.zeros((6 if window else 2, columns + 1))  # sums from the left edge on
    kept = kept.reshape(len(grid.rows), len(grid.cols))
    for row, keep in zip(grid.rows.tolist(), kept, strict=True):
        left = grid.cols[keep]
        if not len(left):
            continue
        right = np.minimum(left + grid.size, columns)
        low, full = (image[row : row + grid.size] for image in (input_hu, target_hu))
        difference = low - full
        terms = [difference, difference * difference]
        of_columns = [cv2.reduce(term, 0, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[0] for term in terms]
        if window:
            outside = (test for hu in (low, full) for test in (hu < window[0], hu > window[1]))
            of_columns += [np.add.reduce(test, axis=0, dtype=np.uint16) for test in outside]
        np.cumsum(of_columns, axis=1, out=table[:, 1:])
        sums.append((table[:, right] - table[:, left]).sum(axis=1).tolist())
        pixels += len(low) * int((right - left).sum())
    if not sums:
        return Difference()
    total, squares, *counts = map(math.fsum, zip(*sums, strict=True))
    return Difference(pixels, total, squares, *map(int, counts))
