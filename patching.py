"""Windows, the body, the air rules and the block of a pair: arithmetic on arrays, no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

import augment
from ctpatches import blocks
from ctpatches.views import window_starts
from utils import AIR_HU, Image, generator

if TYPE_CHECKING:
    from pipeline.config import Config

#: So far below `--air-threshold-hu` lies the mean that a window must exceed: by default at 200 and
#: 100 in stored values with an intercept of -1024.
MEAN_BELOW_HU = 100.0
#: A pixel above this may be body; air, foam, and most cloth are darker, and so is lung.
BODY_HU = -500.0
#: A component is body if it covers at least these parts of the image and of the square around it:
#: an arm does; table tops, head holders and rails are thin and long, or small.
MIN_COMPONENT, MIN_SOLIDITY = 0.002, 0.1
#: A region that is open to the edge of the field of view is lung if more than half of its pixels
#: lie between this and BODY_HU. In eight scans of chests, medians of lung are -885 to -829 HU, of
#: what lies below the body -939 to -926, of what lies above it -1001 to -994.
LUNG_HU = -910.0


class Grid:
    """The windows of a view of that shape: every row start with every column start, row by row."""

    def __init__(self, shape: tuple[int, int], config: Config) -> None:
        size = config.patch_size
        rows, cols = (window_starts(n, size, config.overlap, config.edge) for n in shape)
        if len(rows) and len(cols):
            shape = max(shape[0], int(rows[-1]) + size), max(shape[1], int(cols[-1]) + size)
        else:  # a patch does not fit
            rows, cols = rows[:0], cols[:0]
        self.rows, self.cols = rows, cols
        #: Pixels per side of a window.
        self.size = size
        #: Rows and columns of the view with the padding below and to the right.
        self.shape = shape

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    @property
    def windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row and first column of every window, each of shape (n,)."""
        return np.repeat(self.rows, len(self.cols)), np.tile(self.cols, len(self.rows))

    def pad(self, view: Image, fill: float) -> Image:
        """Return the view, filled with `fill` where windows extend past it."""
        if view.shape == self.shape:
            return view
        out = np.full(self.shape, fill, np.float32)
        out[: view.shape[0], : view.shape[1]] = view
        return out


def body_mask(target_hu: Image) -> NDArray[np.uint8]:
    """Segment the body: with lungs and bowel gas, without air, table and blankets.

    Pixels above -500 HU are opened by 5 x 5 pixels, which removes blankets and detaches the table.
    Large, solid components are body, with all that they enclose. A region that the edge of the
    image, or of a circular field of view, cuts off from the air around the body is body too if it
    is as bright as lung.

    Parameters
    ----------
    target_hu : ndarray of float32, shape (rows, columns)
        A target slice at scale 1, HU.

    Returns
    -------
    ndarray of uint8, shape (rows, columns)
        1 in the body, 0 elsewhere; 0 everywhere if there is none.

    Examples
    --------
    >>> scan = np.full((64, 64), -1000, np.float32)
    >>> scan[16:48, 16:48] = 40  # a body
    >>> scan[24:40, 24:40] = -850  # its lung
    >>> scan[56:58] = 100  # a table
    >>> int(body_mask(scan).sum()) == 32 * 32
    True
    """
    tissue = _opened(target_hu > np.float32(BODY_HU))
    body = np.zeros_like(tissue)
    for region, side in _regions(tissue):
        least = max(MIN_COMPONENT * tissue.size, MIN_SOLIDITY * min(side**2, tissue.size))
        if np.count_nonzero(region & tissue) >= least:
            body |= region
    rest = 1 - body
    rest[_is_padding(target_hu)] = 0
    lung = np.asarray(cv2.inRange(target_hu, LUNG_HU, BODY_HU), np.uint8)
    for filled, _ in _regions(rest):
        region = filled & rest
        if 2 * np.count_nonzero(region & lung) > np.count_nonzero(region):
            body |= region
    return body


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask without the parts into which no 5 x 5 pixels fit."""
    square = np.ones((5, 5), np.uint8)
    return np.asarray(cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, square), np.uint8)


def _regions(mask: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield the large components of a mask, filled, and the longer side of their box."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for outline in outlines:
        *_, width, height = cv2.boundingRect(outline)
        if width * height >= MIN_COMPONENT * mask.size:
            filled = np.zeros_like(mask)
            cv2.drawContours(filled, [outline], 0, 1, cv2.FILLED)
            yield filled, max(width, height)


def _is_padding(image_hu: Image) -> NDArray[np.bool_]:
    """Return where an image is padded around a circular field of view."""
    rows, columns = image_hu.shape
    dark = _opened(image_hu <= AIR_HU)  # without dark pixels of noise
    cv2.circle(dark, (columns // 2, rows // 2), min(rows, columns) // 2, 0, cv2.FILLED)
    return dark.view(bool)


def kept_windows(view: Image, grid: Grid, config: Config) -> NDArray[np.bool_]:
    """Return which windows `--air_threshold` keeps.

    Parameters
    ----------
    view : ndarray of float32, shape (rows, columns)
        A view of the target before normalisation, HU; with `--air-rule body`, of its `body_mask`.
    grid : Grid
        The windows of that view.
    config : Config
        The rule and its limits.

    Returns
    -------
    ndarray of bool, shape (n,)
        By the rule `patch`, True where more than int(f p^2) pixels lie above the threshold t, and
        the mean above t - 100 HU. By the rule `body`, True where more than the fraction
        `--min-body` of the pixels is at least half in the body.
    """
    area = grid.size**2
    if config.air_rule == "body":
        in_body = grid.pad(view, 0) >= 0.5
        return window_sums(in_body, grid) / area > config.min_body
    view = grid.pad(view, AIR_HU)
    tissue = view > np.float32(config.air_threshold_hu)
    kept = window_sums(tissue, grid) > int(config.air_fraction * area)
    return kept & (window_sums(view, grid) / area > config.air_threshold_hu - MEAN_BELOW_HU)


def window_sums(image: Image | NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """Return the sum of the pixels in every window, shape (n,); beyond the image nothing is added.

    The sums do not depend on the processor: numbers are added one after the other, in float64.
    """
    values: Any = image.view(np.uint8) if image.dtype == np.bool_ else image
    depth = cv2.CV_32S if image.dtype == np.bool_ else cv2.CV_64F
    columns = image.shape[1]
    table = np.zeros((len(grid.rows), columns + 1))  # of every strip, sums from the left edge on
    for row, sums in zip(grid.rows.tolist(), table, strict=True):
        strip = values[row : row + grid.size]
        sums[1:] = cv2.reduce(strip, 0, cv2.REDUCE_SUM, dtype=depth)[0]
    np.cumsum(table, axis=1, out=table)
    right = np.minimum(grid.cols + grid.size, columns)
    return np.ravel(table[:, right] - table[:, grid.cols])


def air_rule(config: Config) -> str:
    """Return in words what windows that `--air_threshold` keeps contain."""
    if config.air_rule == "body":
        return f"more than {100 * config.min_body:g} % of the pixels in the target's body"
    mean_hu = config.air_threshold_hu - MEAN_BELOW_HU
    return (
        f"more than {100 * config.air_fraction:g} % of the target's pixels above "
        f"{config.air_threshold_hu:g} HU and a mean above {mean_hu:g} HU"
    )


def draw_orientations(
    windows: int, rot_augment: bool, seed: int, identity: str, scale: float
) -> NDArray[np.uint8]:
    """Draw the orientations of the patches of every window of a view, shape (windows, 1 or 3).

    They are drawn for all windows, kept or not, so that a patch is the same with and without
    `--air_threshold`: unchanged; with `rot_augment` also rotated, and flipped.
    """
    codes = np.zeros((windows, 3 if rot_augment else 1), np.uint8)
    if rot_augment:
        rng = generator(seed, f"orientation {scale:g}", identity)
        codes[:, 1] = rng.integers(augment.TURNS[0], augment.TURNS[-1] + 1, windows)
        codes[:, 2] = rng.integers(augment.FLIPS[0], augment.FLIPS[-1] + 1, windows)
    return codes


class Block(blocks.Block):
    """A block as it was created; OpenCV orients its patches in half the time of NumPy."""

    operations = augment.OPERATIONS


def make_block(
    images: Sequence[Image],
    fills: Sequence[float],
    kept: Sequence[NDArray[np.bool_]],
    degradation: str,
    hu_per_unit: float,
    identity: str,
    config: Config,
) -> Block:
    """Create the views of a pair, and determine where its patches are cut from them.

    Parameters
    ----------
    images, fills : sequence
        Of the input and the target: the normalised image, float32, shape (rows, columns), and air
        in it.
    kept : sequence of ndarray of bool, shape (windows,)
        Which windows of every view are kept.
    degradation : {'', 'blur', 'noise'}
        For the input.
    hu_per_unit : float
        Of the normalised input; 0 if that is constant, and then it receives no noise.
    identity : str
        The pair, for random draws.
    """
    times = config.orientations
    n = sum(int(mask.sum()) for mask in kept) * times
    scales, codes = np.empty(n, np.float32), np.empty(n, np.uint8)
    rows, cols = np.empty(n, np.int32), np.empty(n, np.int32)
    starts = [0]
    views: dict[str, list[NDArray[Any]]] = {"input": [], "target": []}
    noise_std = augment.NOISE_HU / hu_per_unit if hu_per_unit else 0.0
    # A view without a patch need not be created.
    chosen = [(scale, mask) for scale, mask in zip(config.scales, kept, strict=True) if mask.any()]
    scaled = augment.downscale_all(images, [scale for scale, _ in chosen])
    for (scale, mask), pair in zip(chosen, scaled, strict=True):
        input_view, target_view = pair
        if degradation:
            rng = generator(config.seed, f"noise {scale:g}", identity)
            input_view = augment.degrade(input_view, degradation, rng, noise_std)
            if config.clip_window:
                np.clip(input_view, 0, 1, out=input_view)
        grid = Grid(target_view.shape, config)
        views["input"].append(grid.pad(input_view, fills[0]))
        views["target"].append(grid.pad(target_view, fills[1]))
        here = slice(starts[-1], starts[-1] + int(mask.sum()) * times)
        starts.append(here.stop)
        scales[here] = scale
        rows[here], cols[here] = (np.repeat(v[mask], times) for v in grid.windows)
        drawn = draw_orientations(len(grid), config.rot_augment, config.seed, identity, scale)
        codes[here] = drawn[mask].ravel()
    return Block(views, starts, config.patch_size, scales, rows, cols, codes)
