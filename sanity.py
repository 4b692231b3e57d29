"""Pictures to check a data set by: patches side by side, and slices with their windows.

Drawn with OpenCV, which a run has loaded anyway: a plotting library would take longer to start than
the pictures take to draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import augment
from ctpatches import patchfile
from patching import Grid, kept_mask
from pipeline.dicom import dicom_io
from utils import Config, Pair, PairPlan, Plan, RunError, generator, quoted, shown

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
#: Blue and orange, told apart by most colour-blind people too; blue, green, red as OpenCV has it.
KEPT_COLOUR, AIR_COLOUR = (255, 190, 60), (30, 140, 255)
MARGIN, LINE, LEGEND = 16, 36, 340
#: Size of letters, as OpenCV counts it.
LETTERS = 0.62

Picture = NDArray[np.uint8]


def folder_of(config: Config, side: str = "") -> Path:
    """Return the folder of the pictures of a side, below the working directory."""
    name = Path(config.input_folder).resolve().name or "root"
    kind = f"norm_{config.normalization_type}_patch_size_p{config.patch_size}"
    return Path(ROOT, name, kind, side)


def draw(plan: Plan, file: str, side: str, config: Config, coverages: Mapping[int, bytes]) -> Path:
    """Save all pictures of a finished file, in place of those of an earlier one.

    Parameters
    ----------
    plan : Plan
    file : str
        The h5 file.
    side : str
        '' without a split; else the side's name, that of a sub-folder.
    config : Config
    coverages : mapping of int to bytes
        What `coverage` has made of the pairs that `coverage_pairs` names.

    Returns
    -------
    Path
        The folder that holds them.
    """
    folder = folder_of(config, side)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("lr_input_sub_img_rand_*", "hr_input_sub_img_rand_*", "coverage_*"):
            for old in folder.glob(f"{kind}.png"):
                old.unlink(missing_ok=True)  # a run beside this one may have been faster
        draw_sheets(plan, file, config, folder)
        for index, png in coverages.items():
            patient = shown(plan.names[index].patient)[:100]
            (folder / f"coverage_{patient}_{index}.png").write_bytes(png)
    except OSError as error:
        raise RunError(
            f"{quoted(file)} is complete, but its pictures cannot be written to {quoted(folder)}: "
            f"{error.strerror}; --resume completes the report"
        ) from error
    return folder


def as_png(picture: Picture) -> bytes:
    """Return a grey or a blue-green-red picture as PNG."""
    cv2 = augment.opencv()
    # Noise does not get smaller by trying harder, nor by any of PNG's filters.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV 4.10 cannot be told
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    _, data = cv2.imencode(".png", picture, options)
    return bytes(data)


# --- patches ---------------------------------------------------------------------------------


def first_patches(patches: int, seed: int) -> list[int]:
    """Draw the patches at which the sheets begin: at most five, all different."""
    possible = max(1, patches - SHEET[0] * SHEET[1] + 1)
    rng = generator(seed, "sheets")
    return sorted(int(i) for i in rng.choice(possible, min(SHEETS, possible), replace=False))


def to_grey(values: NDArray[Any], low: float, high: float) -> Picture:
    """Return values as grey, `low` and below black, `high` and above white."""
    return np.clip((values - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)


def sheet(patches: NDArray[np.float32], low: float, high: float) -> Picture:
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
    grey = to_grey(patches, low, high).repeat(enlarge, axis=1).repeat(enlarge, axis=2)
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
    with patchfile.open_file(file) as opened:
        for first in first_patches(plan.patches, config.seed):
            stop = min(plan.patches, first + SHEET[0] * SHEET[1])
            both = patchfile.read_patches(opened, slice(first, stop))
            # Any other method loads masked arrays first: 20 ms.
            low, high = np.quantile(np.stack(both), (CLIPPED, 1 - CLIPPED), method="nearest")
            for name, patches in zip(("lr", "hr"), both, strict=True):
                path = folder / f"{name}_input_sub_img_rand_{first}.png"
                path.write_bytes(as_png(sheet(patches, low, high)))


# --- slices with their windows ---------------------------------------------------------------


def coverage_pairs(plan: Plan, config: Config) -> list[int]:
    """Draw the pairs whose slices are shown with their windows: at most four."""
    pairs = len(plan.pairs)
    drawn = generator(config.seed, "coverage").choice(pairs, min(COVERAGES, pairs), replace=False)
    return sorted(int(i) for i in drawn)


def coverage(pair: Pair, part: PairPlan, target_file: str, config: Config) -> bytes:
    """Draw a target slice at every scale, with its windows, the kept and the rejected ones apart.

    Parameters
    ----------
    pair : Pair
    part : PairPlan
    target_file : str
        What the slice is called in the file.
    config : Config

    Returns
    -------
    bytes
        PNG.
    """
    image = dicom_io.Reader(config.input_folder).hu(pair.target)
    panels = [
        _panel(augment.downscale(image, scale), scale, kept_mask(part, number), config)
        for number, scale in enumerate(config.scales)
    ]
    height = max(panel.shape[0] for panel in panels)
    panels = [_beside(panel, height) for panel in panels]
    body = np.concatenate(panels, axis=1)
    title = shown(target_file)
    width = max(body.shape[1], _width(title), LEGEND)
    out = np.full((height + 2 * LINE + MARGIN, width, 3), 255, np.uint8)
    out[LINE : LINE + height, : body.shape[1]] = body
    _write(out, title, (MARGIN, 26))
    below = LINE + height + 26
    for left, colour, text in ((0, KEPT_COLOUR, "kept"), (130, AIR_COLOUR, "left out as air")):
        _box(out, (MARGIN + left, below - 15), 18, colour, dashed=colour == AIR_COLOUR)
        _write(out, text, (MARGIN + left + 28, below))
    return as_png(out)


def _panel(
    view: NDArray[np.float32], scale: float, kept: NDArray[np.bool_], config: Config
) -> Picture:
    """Draw one view with its windows and their counts."""
    grid = Grid.of((view.shape[0], view.shape[1]), config)
    # 64 shades look the same and take less.
    grey = to_grey(grid.pad(view, SLICE_HU[0]), *SLICE_HU) & np.uint8(0xFC)
    told = f"scale {scale:g}: {kept.sum()} kept, {(~kept).sum()} air"
    width = max(grey.shape[1] + MARGIN, _width(told))
    out = np.full((grey.shape[0] + LINE, width, 3), 255, np.uint8)
    body = out[LINE:, : grey.shape[1]]
    body[:] = grey[..., None]
    # The rejected ones lie further in: where two windows meet, both lines are seen.
    for chosen, colour, inset in ((~kept, AIR_COLOUR, 2), (kept, KEPT_COLOUR, 0)):
        for row, col in zip(*(v[chosen] for v in grid.windows), strict=True):
            corner = int(col) + inset, int(row) + inset
            _box(body, corner, grid.size - 2 * inset, colour, dashed=colour == AIR_COLOUR)
    _write(out, told, (MARGIN, 26))
    return out


def _beside(panel: Picture, height: int) -> Picture:
    """Return the panel at that height, its foot at the foot."""
    return np.pad(panel, ((height - panel.shape[0], 0), (0, 0), (0, 0)), constant_values=255)


def _box(
    picture: Picture, corner: tuple[int, int], side: int, colour: tuple[int, int, int], dashed: bool
) -> None:
    """Draw a square's outline."""
    left, top = corner
    mark = np.arange(side) % 8 < (5 if dashed else 8)
    for edge in (0, side - 1):
        picture[top + edge, left : left + side][mark] = colour
        picture[top : top + side, left + edge][mark] = colour


def _ascii(text: str) -> str:
    """Return text with all but ASCII escaped: OpenCV has no other letters."""
    return text.encode("ascii", "backslashreplace").decode()


def _width(text: str) -> int:
    """Return how wide a line of text is, with its margins, pixels."""
    cv2 = augment.opencv()
    (width, _), _ = cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)
    return int(width) + 2 * MARGIN


def _write(picture: Picture, text: str, foot: tuple[int, int]) -> None:
    """Write a line of text."""
    cv2 = augment.opencv()
    font, ink = cv2.FONT_HERSHEY_SIMPLEX, (20, 20, 20)
    cv2.putText(picture, _ascii(text), foot, font, LETTERS, ink, 1, cv2.LINE_AA)
