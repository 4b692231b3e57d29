"""The figures of the report as plain data: counts of the plan, noise, values of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.file import PatchFile, denormalise
from ctpatches.schema import ROLES
from pipeline.config import Config
from pipeline.model import Pair, Plan
from utils import generator

Facts = dict[str, Any]
#: The columns `ctpatches.schema.DIFFERENCE_COLUMNS` of `pair/`, a value per pair.
Differences = dict[str, NDArray[Any]]

#: Limits of the sample, whatever the size of the data set: windows per patient, windows in all, and
#: pixels of each role in all.
MAX_PATIENT_WINDOWS, MAX_WINDOWS, MAX_PIXELS = 200, 2000, 2_000_000
SOFT_TISSUE_HU = (-160.0, 240.0)
#: Pixels of a grain of CT noise, which count as one. The integral of NPS^2 / s^4 was 1.2 to 1.6
#: with a sharp kernel (D45f); smooth ones have larger grains.
GRAIN_PIXELS = 25
#: Largest relative standard error of a noise that is stated.
MAX_ERROR = 0.01
#: Bins of a histogram, and stored units per bin.
MAX_BINS, WIDTHS = 200, [m * 10**e for e in range(9) for m in (1, 2, 5)]


def unit_of(config: Config) -> str:
    """Return the unit of the values in the file."""
    if config.normalization_type != "None":
        return f"normalised ({config.normalization_type})"
    return "HU" if config.in_hu else "stored values"


def rows_by_patient(plan: Plan) -> dict[str, list[int]]:
    """Return the pairs of every patient, which are consecutive."""
    rows: dict[str, list[int]] = {}
    for i, planned in enumerate(plan.pairs):
        rows.setdefault(planned.names.patient, []).append(i)
    return rows


def count_windows(plan: Plan) -> NDArray[np.int64]:
    """Count the windows of every view of every pair: all, those of this file, and kept ones.

    The shape is (pairs, views, 3); with `--nsplit`, a pair may have windows in another file.
    """
    counts = []
    for planned in plan.pairs:
        windows = planned.windows
        masks = zip(windows.own_masks(), windows.kept_masks(), strict=True)
        counts.append([(len(own), int(own.sum()), int(kept.sum())) for own, kept in masks])
    return np.array(counts)


def totals(windows: NDArray[np.int64], config: Config) -> Facts:
    """Return windows and patches of some rows of `count_windows`."""
    _, here, kept = windows.reshape(-1, 3).sum(axis=0).tolist()
    patches = kept * config.orientations
    return {"windows": here, "kept": kept, "air": here - kept, "patches": patches}


def by_scale(windows: NDArray[np.int64], config: Config) -> list[Facts]:
    """Return windows and patches per scale."""
    found = []
    for view, scale in enumerate(config.scales):
        of_view = windows[:, view]
        too_small = int((of_view[:, 0] == 0).sum())
        found.append({"scale": scale, **totals(of_view, config), "views_too_small": too_small})
    return found


def by_patient_and_dose(
    plan: Plan, windows: NDArray[np.int64], differences: Differences, config: Config
) -> tuple[list[Facts], list[Facts]]:
    """Return counts and noise per patient, and the noise per dose level."""
    patients: list[Facts] = []
    rows_of_dose: dict[str, list[int]] = {}
    for name, rows in rows_by_patient(plan).items():
        dose = dose_level([plan.pairs[i].pair for i in rows])
        rows_of_dose.setdefault(dose, []).extend(rows)
        noise = measure_noise(differences, rows, config)
        counts = {"pairs": len(rows), **totals(windows[rows], config)}
        patients.append({"patient": name, **counts, "dose": dose, "noise": noise})
    doses = [
        {
            "dose": dose,
            "patients": sum(one["dose"] == dose for one in patients),
            "noise": measure_noise(differences, rows, config),
        }
        for dose, rows in sorted(rows_of_dose.items())
    ]
    return patients, doses


def measure_noise(differences: Differences, rows: Sequence[int], config: Config) -> Facts | None:
    """Return standard deviation and mean of input minus target, and their standard errors, HU.

    None where there are too few pixels. With n pixels, n_eff = n (1 - overlap / size)^2 / GRAIN are
    taken as independent: overlapping windows repeat pixels, and neighbours are correlated. The
    error of the standard deviation s is s / sqrt(2 n_eff), that of the mean s / sqrt(n_eff).
    """
    pixels = int(differences["difference_pixels"][rows].sum())
    independent = pixels * (1 - config.overlap / config.patch_size) ** 2 / GRAIN_PIXELS
    if 2 * independent * MAX_ERROR**2 < 1:
        return None
    mean = math.fsum(differences["difference_sum"][rows]) / pixels
    squares = math.fsum(differences["difference_squares"][rows])
    sd = math.sqrt(max(0.0, squares / pixels - mean**2))
    return {
        "pixels": pixels,
        "sd_hu": sd,
        "sd_error_hu": sd / math.sqrt(2 * independent),
        "mean_hu": mean,
        "mean_error_hu": sd / math.sqrt(independent),
    }


def dose_level(pairs: Sequence[Pair]) -> str:
    """Return the dose of a patient's inputs as part of that of the targets, from the headers.

    Simulated low-dose scans often keep the values of the full dose: those count as not recorded.
    """
    for name in ("exposure_mas", "ctdi_mgy"):
        low, full = ([getattr(getattr(p, role), name) for p in pairs] for role in ROLES)
        if None not in low + full and sum(full) > 0 and not math.isclose(sum(low), sum(full)):
            return f"{float(f'{100 * sum(low) / sum(full):.2g}'):g} %"
    return "not recorded"


def count_clipped(differences: Differences, config: Config) -> Facts | None:
    """Return how many pixels of each role lie outside of the window of `hu_window`."""
    if not config.clip_window:
        return None
    clipped: Facts = {"pixels": int(differences["difference_pixels"].sum())}
    for role in ROLES:
        sides = ("below", "above")
        clipped[role] = {side: int(differences[f"{role}_{side}"].sum()) for side in sides}
    return clipped


def draw_sample(plan: Plan, config: Config) -> NDArray[np.int64]:
    """Draw patches of as many patients as the limits allow, the same number of each.

    Of each window only the first patch, which is neither rotated nor flipped.
    """
    rng = generator(config.seed, "report")
    limit = max(4, min(MAX_WINDOWS, MAX_PIXELS // config.patch_size**2))
    starts = plan.starts
    blocks = [
        range(starts[rows[0]], starts[rows[-1] + 1], config.orientations)
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


def read_sample(
    source: PatchFile, plan: Plan, config: Config
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the indices of the sample in the file, and its patches, HU, shape (2, n, p, p)."""
    index = draw_sample(plan, config)
    if source.shuffle:
        index = np.sort(source.shuffle.forward(index))
    rng = generator(config.seed, "spread")
    values = [dithered(one, rng) for one in source.read(index, dtype="file")]
    hu = [denormalise(v, source, index, role) for v, role in zip(values, ROLES, strict=True)]
    return index, np.stack(hu)


def dithered(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return rounded values anywhere in their intervals: the curve of a histogram would be a comb.

    Float16 0 and 1 stay: they may be clipped values.
    """
    if values.dtype == np.float32:
        return values
    whole = values.dtype.kind == "i"
    steps = 1 if whole else np.where((values == 0) | (values == 1), 0, np.spacing(values))
    return values + rng.uniform(-0.5, 0.5, values.shape) * steps


def unit_map(plan: Plan, config: Config) -> tuple[float, float] | None:
    """Return offset and divisor of value = (HU - offset) / divisor; None if images differ."""
    first = plan.pairs[0]
    if first.fixed:
        return (first.fixed.offset, first.fixed.divisor) if first.fixed.divisor else None
    if config.normalization_type != "None" or config.in_hu:
        return None
    target = first.pair.target  # a run refuses stored values of several scales
    return target.intercept, target.slope


def histograms(
    hu: NDArray[np.float32], pairs: Sequence[int], plan: Plan, config: Config
) -> list[Facts]:
    """Count the pixels of patches of some pairs by HU: over their range, and that of soft tissue.

    A bin has the same number of the values that can occur, or the curve would be a comb: its edges
    lie between them. Clipped values are in no bin; with clipping, pairs whose input was degraded
    afterwards do not count, because their clipped values cannot be recognised any more.
    """
    slices = (s for one in plan.pairs for s in (one.pair.input, one.pair.target))
    levels = {(one.intercept, abs(one.slope)) for one in slices}
    # The HU of a stored 0, and of one stored unit; whole HU where the slices differ.
    zero, step = levels.pop() if len(levels) == 1 else (0.0, 1.0)
    window = config.clip_window
    plain = np.array([not (window and plan.pairs[i].degradation) for i in pairs])
    numbers = (hu[:, plain if plain.any() else slice(None)] - zero) / step
    found: list[Facts] = []
    ranges = {
        "all values": np.quantile(hu, (1e-4, 1 - 1e-4)).tolist(),
        "soft tissue": SOFT_TISSUE_HU,
    }
    for name, limits in ranges.items():
        first, last = (round((end - zero) / step) for end in limits)
        if window:
            low, high = ((end - zero) / step for end in window)
            first, last = max(first, math.ceil(low + 0.5)), min(last, math.floor(high - 0.5))
        width = next(w for w in WIDTHS if w * MAX_BINS >= last - first)
        bins = (last - first + 1) // width
        if bins < 1:
            continue
        counts, outside = {}, {}
        for role, values in zip(ROLES, numbers, strict=True):
            places = np.floor((values - first + 0.5) / width)
            inside = places[(places >= 0) & (places < bins)].astype(np.int64)
            counts[role] = np.bincount(inside, minlength=bins).tolist()
            outside[role] = places.size - inside.size
        edges = (zero + step * (first - 0.5 + width * np.arange(bins + 1))).tolist()
        empty = sum(outside.values()) >= 0.99 * numbers.size
        if not empty and edges not in [panel["edges"] for panel in found]:
            found.append({"name": name, "edges": edges, "counts": counts, "outside": outside})
    return found
