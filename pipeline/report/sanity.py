"""The sanity-check images: sheets of patches, and slices with their windows."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

import augment
from ctpatches.dicom.pixels import read_hu
from ctpatches.file import PatchFile
from ctpatches.schema import ORIENTATIONS
from patching import Grid, body_mask
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.report import figures
from pipeline.report.statistics import Facts
from utils import AIR_HU, generator, printable

#: Patches of a sheet, and their rows and columns there: more would not be visible.
SHEET_ROWS, MAX_DRAWN_SIZE = 6, 256
DEGRADATIONS = {"blur": "input blurred", "noise": "noise added to input"}
#: Patches or pairs that are drawn at random, of which the displayed ones are chosen.
CANDIDATES = 1000


def spread(groups: Sequence[tuple[object, ...]], count: int) -> list[int]:
    """Choose positions so that each value of the first column occurs equally often, and so on.

    Ties go to the first; of `count` positions, the first are those of a smaller count.
    """
    chosen: list[int] = []
    used: Counter[tuple[int, object]] = Counter()
    left = list(range(len(groups)))
    while left and len(chosen) < count:
        best = min(left, key=lambda i: [used[value] for value in enumerate(groups[i])])
        used.update(enumerate(groups[best]))
        left.remove(best)
        chosen.append(best)
    return chosen


def choose_pairs(
    plan: Plan, among: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Choose pairs of as many patients as possible, in ascending order."""
    drawn = rng.choice(among, min(len(among), CANDIDATES), replace=False).tolist()
    chosen = spread([(plan.pairs[i].names.patient,) for i in drawn], count)
    return sorted(drawn[i] for i in chosen)


def sheets(source: PatchFile, config: Config) -> Iterator[tuple[str, Facts, bytes]]:
    """Yield sheets of patches of as many patients and scales as possible, drawn by the seed.

    Each as name of the image, the provenance of its patches, and PNG.
    """
    rng = generator(config.seed, "sheets")
    drawn = rng.choice(source.patches, min(source.patches, CANDIDATES), replace=False)
    origins = source.provenances(drawn)
    groups = [(one.patient, one.scale) for one in origins]
    chosen = spread(groups, SHEET_ROWS * config.sheets)
    scale = min(1.0, MAX_DRAWN_SIZE / source.patch_size)
    for number, start in enumerate(range(0, len(chosen), SHEET_ROWS), 1):
        patches, images = [], []
        for i in chosen[start : start + SHEET_ROWS]:
            facts: Facts = {"patch": int(drawn[i]), **vars(origins[i])}
            if math.isnan(facts["position_mm"]):
                facts["position_mm"] = None  # JSON has no NaN
            patches.append(facts)
            pair = source.read(facts["patch"], unit="hu")
            images.append([augment.downscale(image, scale) for (image,) in pair])
        low, full = np.stack(images, axis=1)
        title = f"Patches of {os.path.basename(source.path)}, sheet {number}"
        sheet = figures.patch_rows(low, full, [label(one) for one in patches], title)
        name = f"patches_{number}.png"
        yield name, {"file": name, "patches": patches}, figures.png(sheet)


def label(facts: Facts) -> list[str]:
    """Return the lines beside a patch."""
    lines = [facts["patient"], f"patch {facts['patch']}"]
    if facts["position_mm"] is not None:
        lines.append(f"{facts['position_mm']:g} mm".replace("-", "\u2212"))
    lines += [f"row {facts['row']}, column {facts['col']}", f"scale {facts['scale']:g}"]
    code = facts["orientation"]
    lines.append(ORIENTATIONS[code] if code else "not rotated or flipped")
    if facts["degradation"] != "none":
        lines.append(DEGRADATIONS[facts["degradation"]])
    return lines


def coverage(source: PatchFile, plan: Plan, config: Config) -> Iterator[tuple[str, Facts, bytes]]:
    """Yield targets at every scale with the windows that patches were cut from.

    Each as name of the image, name of the slice with the counts of its windows, and PNG.
    """
    rng = generator(config.seed, "coverage")
    for index in choose_pairs(plan, range(len(plan.pairs)), config.sheets, rng):
        planned = plan.pairs[index]
        image = read_hu(config.input_folder, planned.pair.target)
        body = body_mask(image).view(bool) if config.air_rule == "body" else None
        columns = source.columns(source.rows_of(index))
        views, counts = [], []
        for scale, own in zip(config.scales, planned.windows.own_masks(), strict=True):
            view = augment.downscale(image, scale)
            grid = Grid(view.shape, config)
            here = columns["scale"] == np.float32(scale)
            rows = np.searchsorted(grid.rows, columns["row"][here])
            cols = np.searchsorted(grid.cols, columns["col"][here])
            kept = np.zeros((len(grid.rows), len(grid.cols)), bool)
            kept[rows, cols] = True
            left_out = own.reshape(kept.shape) & ~kept
            view = grid.pad(view, AIR_HU)
            views.append(figures.WindowedView(scale, view, grid, kept, left_out))
            counts.append({"scale": scale, "windows": int(own.sum()), "kept": int(kept.sum())})
        names = planned.names
        patient = printable(names.patient).encode()[:100].decode(errors="ignore")
        yield (
            f"coverage_{patient}_{index}.png",
            {"target_file": names.target_file, "scales": counts},
            figures.png(figures.coverage(views, names.target_file, body)),
        )
