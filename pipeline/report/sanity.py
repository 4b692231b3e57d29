"""The sanity-check images: sheets of patches, and slices with their windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import augment
from ctpatches.file import read_patches
from patching import Grid
from pipeline.config import Config
from pipeline.dicom.pixels import Reader
from pipeline.model import Pair
from utils import AIR_HU, generator, printable

from . import figures
from .statistics import Facts, Pairs, unit_of

if TYPE_CHECKING:
    import h5py

SHEETS, SHEET_PATCHES = 5, 12


def first_patches(patches: int, seed: int) -> list[int]:
    """Draw the patches at which the sheets begin, all different, ascending."""
    possible = max(1, patches - SHEET_PATCHES + 1)
    rng = generator(seed, "sheets")
    return sorted(int(i) for i in rng.choice(possible, min(SHEETS, possible), replace=False))


def sheets(file: h5py.File, name: str, config: Config) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of sheets of consecutive patches of an open file."""
    patches = len(file["input"])
    for first in first_patches(patches, config.seed):
        stop = min(patches, first + SHEET_PATCHES)
        both = read_patches(file, slice(first, stop))
        title = f"Patches {first} to {stop - 1} of {name}"
        yield f"sheet_{first}.png", figures.png(figures.sheet(*both, title, unit_of(config)))


def coverage(
    file: h5py.File, index: int, pair: Pair, pairs: Pairs, config: Config
) -> tuple[str, bytes, Facts]:
    """Draw the target of a pair at every scale, with the windows that its patches were cut from.

    Parameters
    ----------
    file : h5py.File
    index : int
        Row of the pair.
    pair : Pair
        Its scans.
    pairs : Pairs
    config : Config

    Returns
    -------
    name : str
    png : bytes
    facts : dict
        Name of the slice, and how many windows are kept at every scale.
    """
    first = int(pairs.first_patch[index])
    block = slice(first, first + int(pairs.patches[index]))
    places = {name: file[f"patch/{name}"][block] for name in ("scale", "row", "col")}
    image = Reader(config.input_folder).hu(pair.target)
    views = [_view(image, scale, places, config) for scale in config.scales]
    target = pairs.target_file[index]
    patient = printable(pairs.patient[index]).encode()[:100].decode(errors="ignore")
    scales = [{"scale": v.scale, "windows": v.kept.size, "kept": int(v.kept.sum())} for v in views]
    png = figures.png(figures.coverage(views, target))
    return f"coverage_{patient}_{index}.png", png, {"target_file": target, "scales": scales}


def _view(
    image: NDArray[np.float32], scale: float, places: dict[str, NDArray[Any]], config: Config
) -> figures.WindowedView:
    view = augment.downscale(image, scale)
    grid = Grid.of(view.shape, config.patch_size, config.overlap, config.edge)
    here = places["scale"] == np.float32(scale)
    kept = np.zeros((len(grid.rows), len(grid.cols)), bool)
    rows = np.searchsorted(grid.rows, places["row"][here])
    kept[rows, np.searchsorted(grid.cols, places["col"][here])] = True
    return figures.WindowedView(
        scale, grid.pad(view, AIR_HU), grid.rows, grid.cols, grid.size, kept
    )
