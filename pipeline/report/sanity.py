"""The sanity-check images: sheets of patches, and slices with their windows."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

import augment
from ctpatches.dicom.pixels import read_hu
from ctpatches.file import Provenance, denormalise, provenances, read_patches
from ctpatches.schema import ORIENTATIONS, ROLES
from ctpatches.validation import ValidatedFile
from patching import Grid, body_mask
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.report import figures
from pipeline.report.statistics import Facts
from utils import AIR_HU, generator, printable

#: Patches of a sheet, and their rows and columns there: more would not be visible.
SHEET_ROWS, MAX_DRAWN_SIZE = 6, 256
DEGRADATIONS = {"blur": "input blurred", "noise": "noise added to input"}
#: Patches and pairs among which those that are drawn are chosen.
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


def candidates(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw positions among which to choose `count`, in random order."""
    return rng.choice(total, min(total, max(CANDIDATES, count)), replace=False)


def sheets(source: ValidatedFile, config: Config) -> Iterator[tuple[str, list[Facts], bytes]]:
    """Yield sheets of patches of as many patients and scales as possible, drawn by the seed.

    Each as name of the image, provenance of its patches, and PNG.
    """
    count = SHEET_ROWS * config.sheets
    drawn = candidates(source.patches, count, generator(config.seed, "sheets"))
    origins = provenances(source, drawn)
    chosen = spread([(one.patient, one.scale) for one in origins], count)
    for start in range(0, len(chosen), SHEET_ROWS):
        number = start // SHEET_ROWS + 1
        rows = chosen[start : start + SHEET_ROWS]
        facts = [_facts(int(drawn[i]), origins[i]) for i in rows]
        low, full = np.stack([_read_hu(source, one["patch"]) for one in facts], axis=1)
        title = f"Patches of {os.path.basename(source.path)}, sheet {number}"
        sheet = figures.patch_rows(low, full, [label(one) for one in facts], title)
        yield f"patches_{number}.png", facts, figures.png(sheet)


def _facts(patch: int, origin: Provenance) -> Facts:
    """Return the number and the provenance of a patch; JSON has no NaN."""
    position = None if math.isnan(origin.position_mm) else origin.position_mm
    return {"patch": patch, **vars(origin), "position_mm": position}


def _read_hu(source: ValidatedFile, patch: int) -> NDArray[np.float32]:
    """Read input and target of a patch, HU, as large as they are drawn."""
    both = zip(read_patches(source, patch), ROLES, strict=True)
    images = [denormalise(values, source, patch, role)[0] for values, role in both]
    scale = min(1.0, MAX_DRAWN_SIZE / source.patch_size)
    return np.stack([augment.downscale(image, scale) for image in images])


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


def coverage(
    source: ValidatedFile, plan: Plan, config: Config
) -> Iterator[tuple[str, Facts, bytes]]:
    """Yield targets at every scale with the windows that patches were cut from.

    Each as name of the image, name of the slice with the counts of its windows, and PNG.
    """
    rng = generator(config.seed, "coverage")
    drawn = candidates(len(plan.pairs), config.sheets, rng).tolist()
    chosen = spread([(plan.pairs[i].names.patient,) for i in drawn], config.sheets)
    for index in sorted(drawn[i] for i in chosen):
        planned = plan.pairs[index]
        columns = source.columns(source.rows_of(index))
        image = read_hu(config.input_folder, planned.pair.target)
        body = body_mask(image).view(bool) if config.air_rule == "body" else None
        views = []
        for scale, others in zip(config.scales, planned.windows.other_masks(), strict=True):
            view = augment.downscale(image, scale)
            grid = Grid(view.shape, config)
            here = columns["scale"] == np.float32(scale)
            rows = np.searchsorted(grid.rows, columns["row"][here])
            cols = np.searchsorted(grid.cols, columns["col"][here])
            kept = np.zeros((len(grid.rows), len(grid.cols)), bool)
            kept[rows, cols] = True
            view = grid.pad(view, AIR_HU)
            grid_of = (grid.rows, grid.cols, grid.size)
            other = others.reshape(kept.shape)
            views.append(figures.WindowedView(scale, view, *grid_of, kept, other))
        names = planned.names
        patient = printable(names.patient).encode()[:100].decode(errors="ignore")
        counts = [
            {"scale": v.scale, "windows": int((~v.others).sum()), "kept": int(v.kept.sum())}
            for v in views
        ]
        yield (
            f"coverage_{patient}_{index}.png",
            {"target_file": names.target_file, "scales": counts},
            figures.png(figures.coverage(views, names.target_file, body)),
        )
