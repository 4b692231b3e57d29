"""The figures of the report as plain data: counts of the plan, values of a sample of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ctpatches.file import denormalise, read_patches
from ctpatches.validation import ValidatedFile
from pipeline.config import Config
from pipeline.model import PairPlan, Plan
from utils import generator

Facts = dict[str, Any]
Floats = NDArray[np.float32]

ROLES = ("input", "target")
#: Limits of the sample, whatever the size of the data set: windows per patient, windows in all, and
#: pixels of each role in all.
MAX_PATIENT_WINDOWS, MAX_WINDOWS, MAX_PIXELS = 200, 2000, 2_000_000
SOFT_TISSUE_HU = (-160.0, 240.0)


def unit_of(config: Config) -> str:
    """Return the unit of the values in the file."""
    if config.normalization_type != "None":
        return f"normalised ({config.normalization_type})"
    return "HU" if config.in_hu else "stored values"


def rows_by_patient(plan: Plan) -> dict[str, list[int]]:
    """Return the pairs of every patient, which are consecutive."""
    rows: dict[str, list[int]] = {}
    for i, names in enumerate(plan.names):
        rows.setdefault(names.patient, []).append(i)
    return rows


def _counts(windows: int, kept: int, config: Config) -> Facts:
    patches = kept * config.orientations
    return {"windows": windows, "kept": kept, "air": windows - kept, "patches": patches}


def count_pairs(parts: Sequence[PairPlan], config: Config) -> Facts:
    """Return windows and patches of some pairs."""
    windows = sum(sum(part.windows) for part in parts)
    kept = sum(part.kept_windows for part in parts)
    return {"pairs": len(parts), **_counts(windows, kept, config)}


def count_scales(parts: Sequence[PairPlan], config: Config) -> list[Facts]:
    """Return windows and patches per scale."""
    found = []
    for view, scale in enumerate(config.scales):
        windows = [part.windows[view] for part in parts]
        kept = sum(int.from_bytes(part.kept[view], "big").bit_count() for part in parts)
        counts = _counts(sum(windows), kept, config)
        found.append({"scale": scale, **counts, "views_too_small": windows.count(0)})
    return found


@dataclass(frozen=True)
class Sample:
    """Patches drawn at random; of each window the first, which is neither rotated nor flipped."""

    index: NDArray[np.int64]  #: ascending
    pair: NDArray[np.int64]
    scale: Floats
    values: Floats  #: input and target as in the file, shape (2, n, p, p)
    hu: Floats  #: the same in HU


def read_sample(source: ValidatedFile, plan: Plan, config: Config) -> Sample:
    """Draw the sample and read its patches."""
    index = draw_sample(plan, config)
    values = read_patches(source, index)
    hu = [denormalise(v, source, index, role) for v, role in zip(values, ROLES, strict=True)]
    pair = np.searchsorted(plan.starts, index, side="right") - 1
    scale = np.array([source["patch/scale"][i] for i in index])
    return Sample(index, pair, scale, np.stack(values), np.stack(hu))


def draw_sample(plan: Plan, config: Config) -> NDArray[np.int64]:
    """Draw patches of as many patients as the limits allow, the same number of each."""
    rng = generator(config.seed, "report")
    limit = max(4, min(MAX_WINDOWS, MAX_PIXELS // config.patch_size**2))
    blocks = [
        range(plan.starts[rows[0]], plan.starts[rows[-1] + 1], config.orientations)
        for rows in rows_by_patient(plan).values()
    ]
    blocks = [block for block in blocks if block]
    chosen = [blocks[i] for i in rng.permutation(len(blocks))[:limit]]
    count = min(MAX_PATIENT_WINDOWS, limit // len(chosen))
    drawn: list[int] = []
    for block in chosen:
        numbers = rng.choice(len(block), min(len(block), count), replace=False)
        drawn += [block[i] for i in numbers]
    return np.sort(drawn)


def measure_noise(sample: Sample, plan: Plan) -> tuple[dict[str, Facts], dict[str, Facts]]:
    """Measure input minus target on the patches at scale 1.

    By patient, on pairs whose input is not degraded; and by degradation of the input.
    """
    here = sample.scale == 1
    differences = {
        unit: both[0, here] - both[1, here]
        for unit, both in (("hu", sample.hu), ("file", sample.values))
    }
    pairs = sample.pair[here].tolist()
    kinds = np.array([plan.degradations[i] or "none" for i in pairs], object)
    patients = np.array([plan.names[i].patient for i in pairs], object)

    def measure(rows: NDArray[np.bool_]) -> Facts:
        found: Facts = {"patches": int(rows.sum())}
        for unit, values in differences.items():
            found[f"mean_{unit}"] = float(values[rows].mean(dtype=np.float64))
            found[f"sd_{unit}"] = float(values[rows].std(dtype=np.float64))
        return found

    plain = kinds == "none"
    by_patient = {p: measure(plain & (patients == p)) for p in dict.fromkeys(patients[plain])}
    return by_patient, {kind: measure(kinds == kind) for kind in sorted(set(kinds))}


def histograms(sample: Sample, config: Config) -> list[Facts]:
    """Count the sampled pixels by value: over their range, and in the range of soft tissue."""
    # Integers have to fall evenly into the bins, or the curve would be a comb.
    integers = config.normalization_type == "None"
    low, high = np.quantile(sample.values, (1e-4, 1 - 1e-4)).tolist()
    panels = [("all values", 160, low, max(high, low + (1 if integers else 1e-6)))]
    # Soft tissue has one range in the unit of the file if all images are normalised alike.
    ends = np.array([sample.hu.argmin(), sample.hu.argmax()])
    hu, value = np.take(sample.hu, ends).tolist(), np.take(sample.values, ends).tolist()
    factor = (value[1] - value[0]) / (hu[1] - hu[0]) if hu[1] > hu[0] else 0.0
    if factor > 0 and np.abs((sample.values - value[0]) / factor + hu[0] - sample.hu).max() < 0.5:
        low, high = (value[0] + (end - hu[0]) * factor for end in SOFT_TISSUE_HU)
        panels.append(("soft tissue", 100, low, high))
    found = []
    for name, bins, low, high in panels:
        edges = MaxNLocator(bins, steps=[1, 2, 5, 10], integer=integers).tick_values(low, high)
        # One bin more, and dropped: NumPy counts the upper edge of the last bin.
        span = edges[0], 2 * edges[-1] - edges[-2]
        counts = [np.histogram(v, len(edges), span)[0][:-1].tolist() for v in sample.values]
        outside = [v.size - sum(inside) for v, inside in zip(sample.values, counts, strict=True)]
        if sum(outside) < 0.99 * sample.values.size:
            panel: Facts = {"name": name, "edges": [float(edge) for edge in edges]}
            panel["counts"] = dict(zip(ROLES, counts, strict=True))
            panel["outside"] = dict(zip(ROLES, outside, strict=True))
            found.append(panel)
    return found
