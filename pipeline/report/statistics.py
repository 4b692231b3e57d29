"""The figures of the report as plain data, measured on the finished h5 file; no drawing."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import augment
from ctpatches.file import read_patches
from ctpatches.schema import REST
from patching import Grid
from pipeline.config import Config
from utils import generator

if TYPE_CHECKING:
    import h5py

Facts = dict[str, Any]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ROLES = ("input", "target")
#: Limits of the sample, whatever the size of the data set: windows per patient, windows in all, and
#: pixels of each role in all.
MAX_PATIENT_WINDOWS, MAX_WINDOWS, MAX_PIXELS = 200, 2000, 2_000_000
#: Grey ranges of patches, HU: for a median of the target below -500 (lung), below 300, and above.
LUNG_HU, SOFT_TISSUE_HU, BONE_HU = (-1350.0, 150.0), (-160.0, 240.0), (-450.0, 1050.0)
#: Examples have a mean above this where there are such patches: body, neither table nor air.
BODY_HU = -700.0
MAX_EXAMPLES, MAX_COVERAGE_PAIRS = 8, 4
#: Rows of `patch/scale` that are counted at once.
CHUNK_ROWS = 1 << 22


@dataclass(frozen=True)
class Pairs:
    """The pairs of a file, a row each.

    Attributes
    ----------
    patient, target_file, degradation : list of str
    position_mm : ndarray of float64, shape (n,)
    first_patch, patches : ndarray of int64, shape (n,)
    shape : ndarray of int64, shape (n, 2)
        Rows and columns of the slices.
    to_hu : dict of str to ndarray of float64, shape (2, n)
        By role, factor and summand that give HU.
    """

    patient: list[str]
    target_file: list[str]
    degradation: list[str]
    position_mm: NDArray[np.float64]
    first_patch: Integers
    patches: Integers
    shape: Integers
    to_hu: dict[str, NDArray[np.float64]]

    @classmethod
    def read(cls, file: h5py.File, config: Config) -> Pairs:
        """Read the table `pair/` of an open file."""
        table = {name: column[...] for name, column in file["pair"].items()}

        def text(name: str) -> list[str]:
            return [value.decode("utf-8", "surrogateescape") for value in table[name].tolist()]

        return cls(
            text("patient"),
            text("target_file"),
            text("degradation"),
            table["position_mm"],
            table["first_patch"].astype(np.int64),
            table["patches"].astype(np.int64),
            np.stack([table["rows"], table["columns"]], axis=1).astype(np.int64),
            {role: _to_hu(table, role, config.in_hu) for role in ROLES},
        )

    def of_patients(self) -> dict[str, slice]:
        """Return the rows of every patient; they are consecutive."""
        found = {}
        for patient, rows in itertools.groupby(range(len(self.patient)), self.patient.__getitem__):
            first, *rest = rows
            found[patient] = slice(first, first + len(rest) + 1)
        return found

    def windows(self, config: Config) -> Integers:
        """Return the number of windows of every view, kept or not, shape (n, scales)."""
        shapes, which = np.unique(self.shape, axis=0, return_inverse=True)
        windows = config.patch_size, config.overlap, config.edge
        counts = [
            [len(Grid.of(augment.view_shape((rows, cols), s), *windows)) for s in config.scales]
            for rows, cols in shapes.tolist()
        ]
        return np.array(counts, np.int64)[which.ravel()]


def _to_hu(table: dict[str, NDArray[Any]], role: str, in_hu: bool) -> NDArray[np.float64]:
    factor, summand = table[f"{role}_divisor"], table[f"{role}_offset"]
    if not in_hu:
        slope = table[f"{role}_slope"]
        factor, summand = factor * slope, summand * slope + table[f"{role}_intercept"]
    return np.stack([factor, summand])


# --- the sample ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Patches drawn at random, of each window the first, which is neither rotated nor flipped.

    Attributes
    ----------
    index, pair : ndarray of int64, shape (n,)
        Ascending indices of the patches, and the row of their pair.
    row, col, scale : ndarray, shape (n,)
        As in `patch/`.
    patient : list of str
    values : dict of str to ndarray of float32, shape (n, p, p)
        By role, as in the file.
    pairs : Pairs
    """

    index: Integers
    pair: Integers
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    scale: Floats
    patient: list[str]
    values: dict[str, Floats]
    pairs: Pairs

    @classmethod
    def read(cls, file: h5py.File, pairs: Pairs, config: Config) -> Sample:
        """Draw windows by the seed, the same number per patient, and read their patches."""
        index = draw_sample(pairs, config)
        columns = {n: np.array([column[i] for i in index]) for n, column in file["patch"].items()}
        values = dict(zip(ROLES, read_patches(file, index), strict=True))
        pair = columns["pair"].astype(np.int64)
        patient = [pairs.patient[i] for i in pair]
        places = columns["row"], columns["col"], columns["scale"]
        return cls(index, pair, *places, patient, values, pairs)

    def hu(self, role: str, chosen: Integers | slice = slice(None)) -> Floats:
        """Return patches of a role in HU, shape (n, p, p)."""
        to_hu = self.pairs.to_hu[role].astype(np.float32)
        factor, summand = to_hu[:, self.pair[chosen], None, None]
        return np.asarray(self.values[role][chosen] * factor + summand, np.float32)


def draw_sample(pairs: Pairs, config: Config) -> Integers:
    """Return the patches of the sample, ascending: of as many patients as the limits allow."""
    rng = generator(config.seed, "report")
    limit = max(4, min(MAX_WINDOWS, MAX_PIXELS // config.patch_size**2))
    patients = [rows for rows in pairs.of_patients().values() if pairs.patches[rows].any()]
    chosen = [patients[i] for i in rng.permutation(len(patients))[:limit]]
    per_patient = min(MAX_PATIENT_WINDOWS, limit // len(chosen))
    drawn = []
    for rows in chosen:
        windows = int(pairs.patches[rows].sum()) // config.orientations
        numbers = rng.choice(windows, min(windows, per_patient), replace=False)
        drawn.append(pairs.first_patch[rows.start] + numbers * config.orientations)
    return np.sort(np.concatenate(drawn))


def spread(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Draw positions at random, from as many different groups as possible, ascending."""
    turns: Counter[str] = Counter()
    ranked = []
    for i in rng.permutation(len(groups)).tolist():
        ranked.append((turns[groups[i]], i))
        turns[groups[i]] += 1
    ranked.sort(key=lambda one: one[0])
    return sorted(i for _, i in ranked[:count])


def choose_examples(sample: Sample, config: Config) -> Integers:
    """Draw the positions in the sample of the patches to show, preferably of the body."""
    body = np.flatnonzero(sample.hu("target").mean(axis=(1, 2)) > BODY_HU)
    possible = body if len(body) else np.arange(len(sample.index))
    patients = [sample.patient[i] for i in possible]
    return possible[spread(patients, MAX_EXAMPLES, generator(config.seed, "report examples"))]


def choose_coverage(pairs: Pairs, config: Config) -> list[int]:
    """Draw the pairs whose slices are shown with their windows."""
    return spread(pairs.patient, MAX_COVERAGE_PAIRS, generator(config.seed, "coverage"))


def grey_range(target_hu: Floats) -> tuple[float, float]:
    """Return the HU shown black and white: lung, soft tissue or bone by the target's median."""
    median = np.median(target_hu)
    return LUNG_HU if median < -500 else SOFT_TISSUE_HU if median < 300 else BONE_HU


def difference_range(differences_hu: Floats) -> float:
    """Return a round number that 98 % of the differences do not exceed by much."""
    return float(f"{np.quantile(np.abs(differences_hu), 0.98):.0e}") or 1.0


# --- the figures -----------------------------------------------------------------------------


def gather(file: h5py.File, pairs: Pairs, sample: Sample, config: Config) -> Facts:
    """Return all figures that are measured on an open file."""
    windows = pairs.windows(config)
    noise = measure_noise(sample)
    patients = count_patients(pairs, windows, config)
    for one in patients:
        one["noise"] = noise["patients"].get(one["patient"])
    return {
        "file": os.path.basename(file.filename),
        "bytes": os.path.getsize(file.filename),
        "format_version": int(file.attrs["format_version"]),
        "fingerprint": file[REST][...].tobytes().hex(),
        "unit": unit_of(config),
        "patch_size": config.patch_size,
        "totals": total(patients),
        "scales": count_scales(file["patch/scale"], windows, config),
        "patients": patients,
        "noise_by_degradation": noise["degradations"],
        "histograms": histograms(sample, config),
        "sample": {
            "index": sample.index.tolist(),
            "patches": len(sample.index),
            "patients": len(set(sample.patient)),
        },
    }


def unit_of(config: Config) -> str:
    """Return the unit of the values in the file."""
    if config.normalization_type != "None":
        return f"normalised ({config.normalization_type})"
    return "HU" if config.in_hu else "stored values"


def _counts(windows: int, patches: int, config: Config) -> Facts:
    kept = patches // config.orientations
    return {"windows": windows, "kept": kept, "air": windows - kept, "patches": patches}


def count_patients(pairs: Pairs, windows: Integers, config: Config) -> list[Facts]:
    """Return pairs, windows and patches per patient, in the order of the file."""
    found = []
    for patient, rows in pairs.of_patients().items():
        counts = _counts(int(windows[rows].sum()), int(pairs.patches[rows].sum()), config)
        found.append({"patient": patient, "pairs": rows.stop - rows.start, **counts})
    return found


def total(patients: Iterable[Facts]) -> Facts:
    """Return the sums over all patients."""
    rows = list(patients)
    sums = {k: sum(p[k] for p in rows) for k in ("pairs", "windows", "kept", "air", "patches")}
    return {"patients": len(rows), **sums}


def count_scales(column: h5py.Dataset, windows: Integers, config: Config) -> list[Facts]:
    """Return windows and patches per scale."""
    scales = np.array(config.scales, np.float32)
    patches = np.zeros(len(scales), np.int64)
    for start in range(0, len(column), CHUNK_ROWS):
        chunk = column[start : start + CHUNK_ROWS]
        patches += [np.count_nonzero(chunk == scale) for scale in scales]
    return [
        {
            "scale": scale,
            **_counts(int(windows[:, view].sum()), int(patches[view]), config),
            "views_too_small": int(np.count_nonzero(windows[:, view] == 0)),
        }
        for view, scale in enumerate(config.scales)
    ]


def measure_noise(sample: Sample) -> dict[str, dict[str, Facts]]:
    """Measure input minus target on the patches at scale 1.

    Returns
    -------
    dict
        `patients`: per patient, on pairs whose input is not degraded; `degradations`: by what
        `--blurr_n_noise` did to the input.
    """
    chosen = np.flatnonzero(sample.scale == 1)
    kinds = np.array([sample.pairs.degradation[i] for i in sample.pair[chosen]], object)
    patients = np.array([sample.patient[i] for i in chosen], object)
    differences = {
        "hu": sample.hu("input", chosen) - sample.hu("target", chosen),
        "file": sample.values["input"][chosen] - sample.values["target"][chosen],
    }
    moments = {unit: _moments(values) for unit, values in differences.items()}

    def of(rows: NDArray[np.bool_]) -> Facts:
        found: Facts = {"patches": int(rows.sum())}
        for unit, (means, squares) in moments.items():
            mean = float(means[rows].mean())
            found[f"mean_{unit}"] = mean
            found[f"sd_{unit}"] = math.sqrt(max(0.0, float(squares[rows].mean()) - mean**2))
        return found

    plain = kinds == "none"
    return {
        "patients": {
            name: of(plain & (patients == name)) for name in dict.fromkeys(patients[plain])
        },
        "degradations": {kind: of(kinds == kind) for kind in sorted(set(kinds))},
    }


def _moments(values: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the mean square of every patch."""
    flat = values.reshape(len(values), -1)
    return flat.mean(1, np.float64), np.square(flat, dtype=np.float64).mean(1)


# --- histograms ------------------------------------------------------------------------------


def nice(least: float) -> float:
    """Return the smallest of ..., 0.5, 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9)))


def histograms(sample: Sample, config: Config) -> list[Facts]:
    """Count the sampled pixels by value: over their range, and in the range of soft tissue."""
    values = np.stack([sample.values[role].ravel() for role in ROLES])
    low, high = (float(v) for v in np.quantile(values, (1e-4, 1 - 1e-4)))
    # Integers have to fall evenly into the bins, or the curve would be a comb.
    least = 1.0 if config.normalization_type == "None" else 1e-6
    found = [_histogram("all values", values, low, high, max(least, (high - low) / 160))]
    if window := _soft_tissue(sample):
        low, high = window
        panel = _histogram("soft tissue", values, low, high, max(least, (high - low) / 100))
        if sum(map(sum, panel["counts"].values())) > 0.01 * values.size:
            found.append(panel)
    return found


def _soft_tissue(sample: Sample) -> tuple[float, float] | None:
    """Return the range of soft tissue in the file's unit, if it is the same for every image."""
    to_hu = np.concatenate([sample.pairs.to_hu[role][:, sample.pair] for role in ROLES], axis=1)
    factor, summand = to_hu[:, 0]
    if factor <= 0 or not np.allclose(to_hu, to_hu[:, :1]):
        return None
    low, high = ((hu - summand) / factor for hu in SOFT_TISSUE_HU)
    return low, high


def _histogram(name: str, values: Floats, low: float, high: float, width: float) -> Facts:
    """Count the values of both roles in bins that begin at multiples of a round width."""
    width = nice(width)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = np.arange(first, last + 1) * width
    # One bin more, and dropped: NumPy counts the upper edge of the last bin.
    bins, ends = last - first + 1, (edges[0], edges[-1] + width)
    counts = {
        role: np.histogram(of_role, bins, ends)[0][:-1].tolist()
        for role, of_role in zip(ROLES, values, strict=True)
    }
    outside = {role: values.shape[1] - sum(of_role) for role, of_role in counts.items()}
    return {"name": name, "edges": edges.tolist(), "counts": counts, "outside": outside}
