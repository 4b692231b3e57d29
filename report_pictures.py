"""The pictures of the page: patches with their difference, slices with their windows."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import augment
from patching import Grid, kept_mask
from pipeline.dicom import dicom_io
from report_figures import (
    BODY_HU,
    BONE_HU,
    COVERAGES,
    DIVERGING,
    DRAWN_WINDOWS,
    LUNG_HU,
    SLICE_SIZE,
    SOFT_HU,
    TILE_SIZE,
    WALL,
    Floats,
    Sample,
    median,
    members_of,
    number,
)
from sanity import SLICE_HU, to_grey
from utils import AIR_HU, Config, Pair, PairPlan, Plan, generator, shown


@dataclass(frozen=True)
class Picture:
    """A picture of the page: PNG as a data URL, its size in pixels, and what it shows."""

    url: str
    width: int
    height: int
    alt: str


def picture(pixels: NDArray[np.uint8], alt: str) -> Picture:
    """Encode a grey or a blue-green-red picture."""
    _, data = augment.opencv().imencode(".png", pixels)
    url = "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
    return Picture(url, pixels.shape[1], pixels.shape[0], alt)


def smaller(image: Floats, most: int) -> Floats:
    """Return the image, its longer side at most so many pixels long."""
    rows, columns = image.shape
    part = most / max(rows, columns)
    if part >= 1:
        return image
    cv2 = augment.opencv()
    size = max(1, round(columns * part)), max(1, round(rows * part))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)


@dataclass(frozen=True)
class Tiles:
    """One pair of patches as pictures, with what to say of them."""

    patch: int
    patient: str
    told: list[str]
    shades: str
    pictures: list[Picture]


def spread(groups: Iterable[Sequence[int]], most: int, rng: np.random.Generator) -> list[int]:
    """Draw at most so many of all members, the groups taking turns."""
    decks = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    decks = [decks[i] for i in rng.permutation(len(decks))]
    drawn: list[int] = []
    while decks and len(drawn) < most:
        drawn += [deck.pop() for deck in decks[: most - len(drawn)]]
        decks = [deck for deck in decks if deck]
    return sorted(drawn)


def wall(sample: Sample, plan: Plan, config: Config) -> tuple[list[Tiles], float]:
    """Draw input, target and difference of some patches; return also the last one's range, HU."""
    means = sample.values["target"][: sample.fair].mean(axis=(1, 2))
    factor, summand = sample.to_hu["target"][:, sample.pair[: sample.fair]]
    bodies = np.flatnonzero(means * factor + summand > BODY_HU)
    groups: dict[str, list[int]] = {}
    for i in bodies if len(bodies) else range(len(means)):
        groups.setdefault(plan.names[sample.pair[i]].patient, []).append(int(i))
    chosen = np.array(spread(groups.values(), WALL, generator(config.seed, "report wall")))
    low, full = sample.hu("input", chosen), sample.hu("target", chosen)
    # Any other method loads masked arrays first: 20 ms.
    most = float(np.quantile(np.abs(low - full), 0.98, method="nearest"))
    power = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    reach = max(1.0, math.ceil(most / power)) * power
    tiles = [
        _tiles(int(i), sample, plan, one_low, one_full, reach)
        for i, one_low, one_full in zip(chosen, low, full, strict=True)
    ]
    return tiles, reach


def _tiles(i: int, sample: Sample, plan: Plan, low: Floats, full: Floats, reach: float) -> Tiles:
    index, pair = int(sample.index[i]), int(sample.pair[i])
    middle = median(full)
    grey = LUNG_HU if middle < -500 else SOFT_HU if middle < 300 else BONE_HU
    low, full = smaller(low, TILE_SIZE), smaller(full, TILE_SIZE)
    position = plan.pairs[pair].target.position_mm
    told = [
        *([f"{number(position)} mm"] if position is not None else []),
        f"row {sample.row[i]}, column {sample.col[i]}",
        *([f"scale {sample.scale[i]:g}"] if sample.scale[i] != 1 else []),
        *({"blur": ["input blurred"], "noise": ["noise added"]}.get(plan.degradations[pair], [])),
    ]
    pictures = [
        picture(to_grey(low, *grey), f"Input, patch {index}"),
        picture(to_grey(full, *grey), f"Target, patch {index}"),
        picture(diverging((low - full) / reach), f"Input less target, patch {index}"),
    ]
    shades = f"grey {number(grey[0])} to {number(grey[1])} HU"
    return Tiles(index, plan.names[pair].patient, told, shades, pictures)


def diverging(values: Floats) -> NDArray[np.uint8]:
    """Return values from -1 to 1 in colours of `DIVERGING`; blue, green, red."""
    table = np.stack(
        [
            np.interp(np.linspace(-1, 1, 256), np.linspace(-1, 1, 5), c)
            for c in zip(*DIVERGING, strict=True)
        ],
        axis=1,
    ).astype(np.uint8)
    out: NDArray[np.uint8] = np.ascontiguousarray(table[to_grey(values, -1, 1)][..., ::-1])
    return out


@dataclass(frozen=True)
class Coverage:
    """A slice with its windows: how many are kept and not, and as outlines in its pixels."""

    target_file: str
    slice: Picture
    shape: tuple[int, int]
    kept: int
    air: int
    every: int
    kept_lines: str
    air_lines: str


def coverage_pairs(plan: Plan, config: Config) -> list[int]:
    """Draw the pairs whose slices are shown with their windows, of as many patients as possible."""
    rng = generator(config.seed, "report coverage")
    return spread(members_of(plan, range(len(plan.pairs))).values(), COVERAGES, rng)


def coverage(pair: Pair, part: PairPlan, target_file: str, config: Config) -> Coverage:
    """Draw a target slice at full size, with its windows.

    Parameters
    ----------
    pair : Pair
    part : PairPlan
    target_file : str
        What the slice is called in the file.
    config : Config
    """
    image = dicom_io.Reader(config.input_folder).hu(pair.target)
    grid = Grid.of((pair.target.rows, pair.target.columns), config)
    kept = kept_mask(part, 0).reshape(len(grid.rows), len(grid.cols))
    told = f"Target slice {shown(target_file)} with the windows that patches were cut from"
    grey = to_grey(smaller(grid.pad(image, AIR_HU), SLICE_SIZE), *SLICE_HU)
    every = max(1, math.ceil(math.sqrt(kept.size / DRAWN_WINDOWS)))
    rows, cols, drawn = grid.rows[::every], grid.cols[::every], kept[::every, ::every]
    # The rejected ones lie further in: where two windows meet, both lines are seen.
    shapes = {}
    for keep, inset in ((True, min(2, 0.04 * grid.size)), (False, min(5, 0.1 * grid.size))):
        side, cross = f"{grid.size - 2 * inset:g}", "" if keep else "l{0} {0}"
        shapes[keep] = f"m{inset:g} {inset:g}h{side}v{side}h-{side}z{cross.format(side)}"
    lines = {True: "", False: ""}
    for (i, j), one in np.ndenumerate(drawn):
        lines[bool(one)] += f"M{cols[j]} {rows[i]}{shapes[bool(one)]}"
    number_kept = int(kept.sum())
    return Coverage(
        target_file,
        picture(grey & np.uint8(0xFC), told),  # 64 shades look the same and take less
        grid.shape,
        number_kept,
        kept.size - number_kept,
        every,
        lines[True],
        lines[False],
    )
