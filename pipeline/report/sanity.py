"""The sanity-check images: sheets of patches, single patches, and slices with their windows."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

import augment
from ctpatches.file import provenance, read_patches
from ctpatches.validation import ValidatedFile
from patching import Grid
from pipeline.config import Config
from pipeline.dicom.pixels import Reader
from pipeline.model import Plan
from utils import AIR_HU, generator, printable

from . import figures
from .statistics import SOFT_TISSUE_HU, Facts, Sample, unit_of

SHEETS, SHEET_PATCHES = 5, 12
MAX_EXAMPLES, MAX_COVERAGE_PAIRS = 8, 4
#: Examples have a mean above this where there are such patches: body, neither table nor air.
BODY_HU = -700.0
#: Grey ranges of patches, HU, by the median of the target that they are for: up to that of lung, of
#: soft tissue, and of bone.
GREY_RANGES = ((-500, (-1350, 150)), (300, SOFT_TISSUE_HU), (math.inf, (-450, 1050)))


def spread(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Draw positions at random, from as many different groups as possible, ascending."""
    turns: Counter[str] = Counter()
    ranked: list[tuple[int, int, int]] = []
    for i in rng.permutation(len(groups)).tolist():
        ranked.append((turns[groups[i]], len(ranked), i))
        turns[groups[i]] += 1
    return sorted(i for *_, i in sorted(ranked)[:count])


def sheets(source: ValidatedFile, config: Config) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of sheets of consecutive patches, drawn by the seed."""
    possible = max(1, source.patches - SHEET_PATCHES + 1)
    rng = generator(config.seed, "sheets")
    for first in rng.choice(possible, min(SHEETS, possible), replace=False):
        stop = min(source.patches, first + SHEET_PATCHES)
        both = read_patches(source, slice(first, stop))
        title = f"Patches {first} to {stop - 1} of {os.path.basename(source.path)}"
        yield f"sheet_{first}.png", figures.png(figures.sheet(*both, title, unit_of(config)))


def examples(
    source: ValidatedFile, sample: Sample, plan: Plan, config: Config
) -> Iterator[tuple[Facts, bytes]]:
    """Yield provenance and PNG of single patches of the sample, preferably of the body."""
    body = np.flatnonzero(sample.hu[1].mean(axis=(1, 2)) > BODY_HU)
    possible = body if len(body) else np.arange(len(sample.index))
    patients = [plan.names[i].patient for i in sample.pair[possible]]
    rng = generator(config.seed, "report examples")
    chosen = possible[spread(patients, MAX_EXAMPLES, rng)]
    low, full = sample.hu[:, chosen]
    # A round number that 98 % of the differences do not exceed by much.
    difference = float(f"{np.quantile(np.abs(low - full), 0.98):.0e}") or 1.0
    for patch, one, other in zip(sample.index[chosen].tolist(), low, full, strict=True):
        there = vars(provenance(source, patch))
        grey = next(limits for below, limits in GREY_RANGES if np.median(other) < below)
        position = None if math.isnan(there["position_mm"]) else there["position_mm"]
        facts = {"patch": patch, "position_mm": position, "difference_hu": difference}
        facts |= {k: there[k] for k in ("patient", "row", "col", "scale", "degradation")}
        yield facts, figures.png(figures.comparison(one, other, grey, difference))


def coverage(
    source: ValidatedFile, plan: Plan, config: Config
) -> Iterator[tuple[str, Facts, bytes]]:
    """Yield targets at every scale with the windows that patches were cut from.

    Each as name of the image, name of the slice with the counts of its windows, and PNG.
    """
    rng = generator(config.seed, "coverage")
    for index in spread([names.patient for names in plan.names], MAX_COVERAGE_PAIRS, rng):
        columns = source.columns(slice(*plan.starts[index : index + 2]))
        image = Reader(config.input_folder).hu(plan.pairs[index].target)
        views = []
        for scale in config.scales:
            view = augment.downscale(image, scale)
            grid = Grid.of(view.shape, config.patch_size, config.overlap, config.edge)
            here = columns["scale"] == np.float32(scale)
            rows = np.searchsorted(grid.rows, columns["row"][here])
            cols = np.searchsorted(grid.cols, columns["col"][here])
            kept = np.zeros((len(grid.rows), len(grid.cols)), bool)
            kept[rows, cols] = True
            view = grid.pad(view, AIR_HU)
            views.append(figures.WindowedView(scale, view, grid.rows, grid.cols, grid.size, kept))
        names = plan.names[index]
        patient = printable(names.patient).encode()[:100].decode(errors="ignore")
        counts = [
            {"scale": v.scale, "windows": v.kept.size, "kept": int(v.kept.sum())} for v in views
        ]
        yield (
            f"coverage_{patient}_{index}.png",
            {"target_file": names.target_file, "scales": counts},
            figures.png(figures.coverage(views, names.target_file)),
        )
