"""Pictures to check a data set by: patches side by side, and slices with their windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import augment
import dicom_io
import h5_read
from patching import Grid, kept_mask
from utils import Config, Plan, generator, shown

ROOT = "sanity_check"
#: Patches of one picture: rows and columns.
SHEET = (3, 4)
SHEETS = 5
COVERAGES = 4
#: A patch is shown at least this large, pixels a side, and this far from the next.
SHOWN_SIZE, GAP = 165, 4
#: Part of the pixels that may be darker or lighter than the grey range shows.
CLIPPED = 0.005
#: Grey range of a slice with its windows, HU: lung to bone.
SLICE_HU = (-1000.0, 600.0)
KEPT_COLOUR, AIR_COLOUR = "#35c4ff", "#ff8c1a"


def folder_of(config: Config, side: str = "") -> Path:
    """Return the folder of the pictures of a side, below the working directory."""
    name = Path(config.input_folder).resolve().name or "root"
    kind = f"norm_{config.normalization_type}_patch_size_p{config.patch_size}"
    return Path(ROOT, name, kind, side)


def draw(plan: Plan, file: str, side: str, config: Config) -> Path:
    """Draw all pictures of a finished file, in place of those of an earlier one.

    Parameters
    ----------
    plan : Plan
    file : str
        The h5 file.
    side : str
        '' without a split; else the side's name, that of a sub-folder.
    config : Config

    Returns
    -------
    Path
        The folder that holds them.
    """
    folder = folder_of(config, side)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("lr_input_sub_img_rand_*.png", "hr_input_sub_img_rand_*.png", "coverage_*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    draw_sheets(plan, file, config, folder)
    draw_coverage(plan, config, folder)
    return folder


def first_patches(patches: int, seed: int) -> list[int]:
    """Draw the patches at which the sheets begin: at most five, all different."""
    possible = max(1, patches - SHEET[0] * SHEET[1] + 1)
    rng = generator(seed, "sheets")
    return sorted(int(i) for i in rng.choice(possible, min(SHEETS, possible), replace=False))


def sheet(patches: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Lay patches out in rows of four, in grey.

    Parameters
    ----------
    patches : ndarray of float32, shape (n, p, p)
        At most 12.
    low, high : float
        What is shown black and white, in the patches' unit.

    Returns
    -------
    ndarray of uint8, shape (height, width)
        White between the patches, and where there are too few.
    """
    n, p, _ = patches.shape
    enlarge = max(1, -(-SHOWN_SIZE // p))
    grey = np.clip((patches - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    grey = grey.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    columns = min(n, SHEET[1])
    rows = -(-n // SHEET[1])
    step = p * enlarge + GAP
    out = np.full((rows * step + GAP, columns * step + GAP), 255, np.uint8)
    for i, one in enumerate(grey):
        top, left = (GAP + place * step for place in divmod(i, SHEET[1]))
        out[top : top + p * enlarge, left : left + p * enlarge] = one
    return out


def draw_sheets(plan: Plan, file: str, config: Config, folder: Path) -> None:
    """Save pictures of consecutive patches, of input and of target at one grey range."""
    from PIL import Image

    for first in first_patches(plan.patches, config.seed):
        stop = min(plan.patches, first + SHEET[0] * SHEET[1])
        both = h5_read.read_patches(file, slice(first, stop))
        low, high = np.quantile(np.stack(both), (CLIPPED, 1 - CLIPPED))
        for name, patches in zip(("lr", "hr"), both, strict=True):
            path = folder / f"{name}_input_sub_img_rand_{first}.png"
            Image.fromarray(sheet(patches, low, high)).save(path)


def draw_coverage(plan: Plan, config: Config, folder: Path) -> None:
    """Save up to four slices with their windows, the kept and the rejected ones told apart."""
    rng = generator(config.seed, "coverage")
    pairs = len(plan.pairs)
    for index in sorted(rng.choice(pairs, min(COVERAGES, pairs), replace=False)):
        patient = shown(plan.names[index].patient)[:100]
        _draw_slice(plan, int(index), config, folder / f"coverage_{patient}_{index}.png")


def _draw_slice(plan: Plan, index: int, config: Config, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    pair, part = plan.pairs[index], plan.parts[index]
    image = dicom_io.to_hu(dicom_io.read_pixels(config.input_folder, pair.target), pair.target)
    views = [augment.downscale(image, scale) for scale in config.scales]
    grids = [Grid.of((v.shape[0], v.shape[1]), config) for v in views]
    widths = [g.shape[1] for g in grids]
    height = max(g.shape[0] for g in grids)
    figure = Figure(
        figsize=(6.4 * sum(widths) / widths[0], 6.4 * height / widths[0] + 0.9), dpi=100
    )
    FigureCanvasAgg(figure)
    left = 0.0
    for number, (scale, view, grid) in enumerate(zip(config.scales, views, grids, strict=True)):
        width = widths[number] / sum(widths)
        tall = 6.4 * grid.shape[0] / widths[0] / figure.get_figheight()
        axes = figure.add_axes((left, 0.45 / figure.get_figheight(), width * 0.99, tall))
        left += width
        kept = kept_mask(part, number)
        axes.imshow(view, cmap="gray", vmin=SLICE_HU[0], vmax=SLICE_HU[1], interpolation="nearest")
        _outline(axes, grid, ~kept, AIR_COLOUR, "--", inset=2.5)
        _outline(axes, grid, kept, KEPT_COLOUR, "-", inset=1.0)
        axes.set_xlim(-0.5, grid.shape[1] - 0.5)
        axes.set_ylim(grid.shape[0] - 0.5, -0.5)
        axes.set_axis_off()
        axes.set_title(f"scale {scale:g}: {kept.sum()} kept, {(~kept).sum()} air", fontsize=10)
    figure.suptitle(shown(plan.names[index].target_file), fontsize=9, y=0.995, va="top")
    handles = [
        Line2D([], [], color=KEPT_COLOUR, label="kept"),
        Line2D([], [], color=AIR_COLOUR, linestyle="--", label="left out as air"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _outline(
    axes: object, grid: Grid, chosen: NDArray[np.bool_], colour: str, style: str, inset: float
) -> None:
    """Draw the outlines of the chosen windows of a grid."""
    from matplotlib.collections import LineCollection

    rows, cols = (v[chosen] for v in grid.windows())
    low, high = inset - 0.5, grid.size - 0.5 - inset
    corners = np.array([(low, low), (high, low), (high, high), (low, high), (low, low)])
    starts = np.stack([cols, rows], axis=1)[:, None, :]
    lines = LineCollection(list(starts + corners), colors=colour, linestyles=style, linewidths=0.8)
    axes.add_collection(lines)  # type: ignore[attr-defined]
