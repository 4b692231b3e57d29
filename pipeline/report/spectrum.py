"""The noise power spectrum of input minus target, from the scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctpatches.dicom.pixels import read_hu
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.report.sanity import choose_pairs
from pipeline.report.statistics import Facts
from utils import Image, generator

#: Pairs that are read, whatever the size of the data set.
MAX_PAIRS = 16
#: Pixels per side of a region of interest; neighbouring ones overlap by half.
SIZE = 64
#: Every pixel of the target is above this in a region: it lies in the body, and not in the lung.
BODY_HU = -500.0


def regions(input_hu: Image, target_hu: Image) -> list[Image]:
    """Return input minus target in every region of a pair that lies in the body."""
    rows, cols = (range(0, length - SIZE + 1, SIZE // 2) for length in target_hu.shape)
    parts = [np.s_[r : r + SIZE, c : c + SIZE] for r in rows for c in cols]
    return [input_hu[p] - target_hu[p] for p in parts if target_hu[p].min() > BODY_HU]


def power(region: Image, spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the noise power spectrum of a region, HU^2 mm^2, at the frequencies of `fftfreq`.

    NPS = dx dy / (Nx Ny) |DFT(region - trend)|^2, with the trend a second-order polynomial (Samei
    et al., Performance evaluation of computed tomography systems: AAPM Task Group 233, 2019). Its
    integral over both frequencies is the variance of the region without the trend.
    """
    at = np.linspace(-1, 1, SIZE)
    x, y = np.tile(at, SIZE), np.repeat(at, SIZE)
    basis, _ = np.linalg.qr(np.stack([x**0, x, y, x * x, x * y, y * y], axis=1))
    values = region.ravel().astype(np.float64)
    noise = (values - basis @ (basis.T @ values)).reshape(SIZE, SIZE)
    scale = spacing_mm[0] * spacing_mm[1] / SIZE**2
    return np.asarray(scale * np.abs(np.fft.fft2(noise)) ** 2, np.float64)


def measure(plan: Plan, config: Config) -> Facts | None:
    """Return the spectrum averaged over directions and regions; None without spacing or regions."""
    known = [one.index for one in plan.pairs if one.pair.target.spacing_mm]
    rng = generator(config.seed, "noise power spectrum")
    chosen = choose_pairs(plan, known, MAX_PAIRS, rng)
    spacings = [plan.pairs[i].pair.target.spacing_mm for i in chosen]
    if not spacings:
        return None
    # The coarsest step and the lowest Nyquist frequency of them all.
    step = 1 / (SIZE * min(map(min, spacings)))
    bins = int(0.5 / max(map(max, spacings)) / step)
    sums, counts, number = np.zeros(bins + 1), np.zeros(bins + 1), 0
    for i, spacing in zip(chosen, spacings, strict=True):
        pair = plan.pairs[i].pair
        found = regions(*(read_hu(config.input_folder, one) for one in (pair.input, pair.target)))
        of_axes = (np.fft.fftfreq(SIZE, d) for d in spacing)
        frequencies = np.hypot(*np.meshgrid(*of_axes, indexing="ij"))
        places = np.rint(frequencies / step).astype(np.int64).ravel()
        for region in found:
            values = power(region, spacing).ravel()
            sums += np.bincount(places, values, bins + 1)[: bins + 1]
        counts += len(found) * np.bincount(places, minlength=bins + 1)[: bins + 1]
        number += len(found)
    if not number:
        return None
    mean = sums[1:] / counts[1:]  # at 0 there is nothing without the trend
    return {
        "per_mm": (step * np.arange(1, bins + 1)).round(6).tolist(),
        "hu2_mm2": [float(f"{value:.6g}") for value in mean],
        "regions": number,
        "slices": len(chosen),
    }
