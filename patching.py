"""Windows, the air mask and the block of a pair: arithmetic on arrays and indices, no files."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

import augment
from pipeline.config import Config
from pipeline.model import Pair, PairPlan, Slice
from pipeline.profile import step
from utils import AIR_HU, PIECE_BYTES, Affine, RunError, generator, img_pair_normalization, shown

if TYPE_CHECKING:
    from pipeline.config import Config

Image = NDArray[np.float32]

#: A pixel above this is tissue; 200 in stored values with an intercept of -1024.
TISSUE_HU = -824.0
#: A patch whose mean is not above this is air; 100 in stored values with an intercept of -1024.
MEAN_HU = -924.0
#: A patch is kept if more than this part of its pixels is tissue.
TISSUE_PART = 0.1


def window_starts(length: int, size: int, overlap: int, edge: str) -> NDArray[np.int64]:
    """Return where windows begin along one axis of a view.

    Parameters
    ----------
    length, size, overlap : int
        Of the view, of a patch, and of neighbouring windows, pixels; ``0 <= overlap < size``.
    edge : {'shift', 'pad'}
        ``shift``: at multiples of the stride (size less overlap), the last moved inward.
        ``pad``: at 0 and at k x stride - overlap for k = 1, 2, ... while k x stride < length.

    Returns
    -------
    ndarray of int64
        Ascending. Empty if the view is smaller than a patch.
    """
    stride = size - overlap
    if length < size:
        return np.empty(0, np.int64)
    if edge == "pad":
        starts = np.arange(0, length, stride) - overlap
        starts[0] = 0
        return np.unique(np.maximum(starts, 0))
    starts = np.arange(0, length - size + 1, stride)
    if starts[-1] + size < length:
        starts = np.append(starts, length - size)
    return starts


@dataclass(frozen=True)
class Grid:
    """The windows of one view: every row start with every column start, row by row.

    Attributes
    ----------
    rows, cols : ndarray of int64
        Where windows begin.
    size : int
        Pixels a side of a window.
    shape : tuple of int
        Rows and columns of the view with what `pad` adds below and to the right.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    size: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], config: Config) -> Grid:
        """Return the grid of a view of this shape; without windows if a patch does not fit."""
        return _grid(shape, config.patch_size, config.overlap, config.edge)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    @functools.cached_property
    def windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row and first column of every window, each of shape (n,)."""
        rows, cols = np.meshgrid(self.rows, self.cols, indexing="ij")
        return rows.ravel(), cols.ravel()

    def pad(self, view: Image, fill: float) -> Image:
        """Return the view, filled with `fill` where windows reach past it."""
        if view.shape == self.shape:
            return view
        out = np.full(self.shape, fill, np.float32)
        out[: view.shape[0], : view.shape[1]] = view
        return out

    def counts(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return how many pixels of every window of a (padded) mask are set, shape (n,)."""
        # Summed-area table (Crow, 1984): four looks a window.
        table = augment.opencv().integral(mask.view(np.uint8))
        below, right = self.rows + self.size, self.cols + self.size
        upper, lower = table[self.rows], table[below]
        sums = lower[:, right] - lower[:, self.cols] - upper[:, right] + upper[:, self.cols]
        return np.asarray(sums, np.int32).ravel()


@functools.lru_cache(8)  # the images of a data set have few shapes
def _grid(shape: tuple[int, int], size: int, overlap: int, edge: str) -> Grid:
    rows, cols = (window_starts(length, size, overlap, edge) for length in shape)
    if not len(rows) or not len(cols):
        none = np.empty(0, np.int64)
        return Grid(none, none, size, shape)
    reach = int(rows[-1]) + size, int(cols[-1]) + size
    return Grid(rows, cols, size, (max(shape[0], reach[0]), max(shape[1], reach[1])))


def kept_windows(view_hu: Image, grid: Grid) -> NDArray[np.bool_]:
    """Tell the windows that hold more than air.

    Parameters
    ----------
    view_hu : ndarray of float32, shape (rows, columns)
        A view of the target before normalisation, HU.
    grid : Grid
        The windows of that view.

    Returns
    -------
    ndarray of bool, shape (n,)
        True where more than int(0.1 p^2) pixels lie above -824 HU and the mean above -924 HU.
    """
    view_hu = grid.pad(view_hu, AIR_HU)
    area = grid.size**2
    tissue = grid.counts(view_hu > np.float32(TISSUE_HU))
    kept: NDArray[np.bool_] = tissue > int(TISSUE_PART * area)
    # Most windows hold so much tissue that the rest, were it as dark as the darkest pixel, could
    # not bring the mean down: that of the others alone is worked out.
    darkest = float(view_hu.min())
    least = (tissue * TISSUE_HU + (area - tissue) * darkest) / area
    rows, cols = grid.windows
    sums = augment.opencv().sumElems
    for i in np.flatnonzero(kept & (least <= MEAN_HU + 1)).tolist():
        window = view_hu[rows[i] : rows[i] + grid.size, cols[i] : cols[i] + grid.size]
        mean = sums(window)[0] / area  # of double precision, in OpenCV's order
        if abs(mean - MEAN_HU) < 1e-3:
            mean = window.sum(dtype=np.float64) / area
        kept[i] = mean > MEAN_HU
    return kept


def plan_pair(
    shape: tuple[int, int], config: Config, target_hu: Sequence[Image] | None = None
) -> PairPlan:
    """Count the windows of a pair, and with `target_hu` judge which of them are air.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the two images.
    config : Config
    target_hu : sequence of ndarray of float32, shape (rows, columns), optional
        The target at every scale before normalisation, HU; needed with `--air_threshold` alone.
    """
    windows, kept = [], []
    total = 0
    for index, scale in enumerate(config.scales):
        grid = Grid.of(augment.view_shape(shape, scale), config)
        mask = np.ones(len(grid), bool)
        if target_hu is not None and len(grid):
            mask = kept_windows(target_hu[index], grid)
        windows.append(len(grid))
        kept.append(np.packbits(mask).tobytes())
        total += int(mask.sum())
    return PairPlan(tuple(windows), tuple(kept), total)


def kept_mask(part: PairPlan, view: int) -> NDArray[np.bool_]:
    """Return which windows of that view of a pair are kept, shape (windows,)."""
    bits = np.frombuffer(part.kept[view], np.uint8)
    return np.unpackbits(bits, count=part.windows[view]).astype(bool)


def cut(
    view: Image,
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    codes: NDArray[np.uint8],
    out: Image,
) -> None:
    """Copy windows of a view into `out`, each in its orientations.

    Parameters
    ----------
    view : ndarray of float32, shape (rows, columns)
    rows, cols : ndarray of integers, shape (n,)
        First row and column of each window in the view.
    codes : ndarray of uint8, shape (n, t)
        Orientations of the patches of each window.
    out : ndarray of float32, shape (n, t, p, p)
        Contiguous.
    """
    size = out.shape[-1]
    operations = augment.operations()
    patches = iter(out.reshape(-1, size, size))
    for row, col, orientations in zip(rows.tolist(), cols.tolist(), codes.tolist(), strict=True):
        window = view[row : row + size, col : col + size]
        for code in orientations:
            patch = next(patches)
            if operation := operations[code]:
                call, argument = operation
                call(window, argument, patch)
            else:
                patch[:] = window


def draw_orientations(
    windows: int, config: Config, identity: str, scale: float
) -> NDArray[np.uint8]:
    """Draw the orientations of the patches of every window of a view.

    Drawn for all windows, kept or not, so that a patch looks the same with and without
    `--air_threshold`.

    Returns
    -------
    ndarray of uint8, shape (windows, 1 or 3)
        As it is; with `--rot_augment` also turned by 90, 180 or 270 degrees, and flipped.
    """
    codes = np.zeros((windows, config.orientations), np.uint8)
    if config.rot_augment:
        rng = generator(config.seed, f"orientation {scale:g}", identity)
        codes[:, 1] = rng.integers(augment.TURNS[0], augment.TURNS[-1] + 1, windows)
        codes[:, 2] = rng.integers(augment.FLIPS[0], augment.FLIPS[-1] + 1, windows)
    return codes


class Piece(NamedTuple):
    """Consecutive patches of a block, all of one view: its number, first patch, end."""

    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """All patches of one pair, in their final order: view, window, orientation.

    The patches themselves are cut when they are asked for, a piece at a time: memory stays small,
    and what was just cut is still in the processor's cache when it is written.

    Attributes
    ----------
    views : dict of str to list of ndarray of float32, shape (rows, columns)
        'input' and 'target': the views that patches are cut from, padded.
    starts : list of int
        The first patch of each of these views, and the number of patches.
    size : int
        Pixels a side of a patch.
    times : int
        Patches of a window.
    scale : ndarray of float32, shape (n,)
    row, col : ndarray of int32, shape (n,)
        First row and column of the window in its view, pixels; negative nowhere.
    orientation : ndarray of uint8, shape (n,)
        See `ctpatches.schema.ORIENTATIONS`.
    input_affine, target_affine : Affine
        The normalisation of the two images.
    """

    views: dict[str, list[Image]]
    starts: list[int]
    size: int
    times: int
    scale: NDArray[np.float32]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    orientation: NDArray[np.uint8]
    input_affine: Affine
    target_affine: Affine

    def __len__(self) -> int:
        return self.starts[-1]

    def pieces(self, most: int = PIECE_BYTES) -> Iterator[Piece]:
        """Share the patches of a side out, in order.

        Parameters
        ----------
        most : int
            Bytes of a piece; it has the patches of at least one window.
        """
        window = self.times * 4 * self.size**2
        many = max(1, most // window) * self.times
        for view, (begin, end) in enumerate(itertools.pairwise(self.starts)):
            for start in range(begin, end, many):
                yield Piece(view, start, min(start + many, end))

    def cut(self, side: str, piece: Piece, out: Image) -> None:
        """Cut a piece of a side.

        Parameters
        ----------
        side : {'input', 'target'}
        piece : Piece
        out : ndarray of float32, as large as the piece, contiguous
            Where the patches go.
        """
        here = slice(piece.start, piece.stop)
        first = slice(piece.start, piece.stop, self.times)
        codes = self.orientation[here].reshape(-1, self.times)
        room = out.reshape(-1, self.times, self.size, self.size)
        cut(self.views[side][piece.view], self.row[first], self.col[first], codes, room)

    def patches(self, side: str) -> Image:
        """Return all patches of one side, shape (n, p, p)."""
        out = np.empty((len(self), self.size, self.size), np.float32)
        for piece in self.pieces():
            self.cut(side, piece, out[piece.start : piece.stop])
        return out


def make_block(
    pair: Pair,
    part: PairPlan,
    degradation: str,
    input_image: Image,
    target_image: Image,
    config: Config,
    fixed: Affine | None = None,
) -> Block:
    """Normalise and augment one pair, and say where its patches are to be cut.

    Parameters
    ----------
    pair : Pair
    part : PairPlan
        Says which windows are kept.
    degradation : {'', 'blur', 'noise'}
        What is done to the input of this pair.
    input_image, target_image : ndarray of float32, shape (rows, columns)
        Stored values, or HU with `config.in_hu`.
    config : Config
    fixed : Affine, optional
        The normalisation, where it is the same for every image of the run.
    """
    input_image, target_image, input_affine, target_affine = img_pair_normalization(
        input_image, target_image, config.normalization_type, fixed
    )
    for side, image in ((pair.input, input_image), (pair.target, target_image)):
        if not np.isfinite(image).all():
            raise RunError(f"{shown(side.file)}: NaN or infinity came out of it; is it damaged?")
    fills = (
        air_value(pair.input, input_affine, config),
        air_value(pair.target, target_affine, config),
    )
    n = part.kept_windows * config.orientations
    block = Block(
        {"input": [], "target": []},
        [0],
        config.patch_size,
        config.orientations,
        np.empty(n, np.float32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.uint8),
        input_affine,
        target_affine,
    )
    masks = [kept_mask(part, index) for index in range(len(config.scales))]
    # A view without a patch need not be made.
    chosen = [(scale, kept) for scale, kept in zip(config.scales, masks, strict=True) if kept.any()]
    with step("scale"):
        scales = [scale for scale, _ in chosen]
        both = augment.downscale_all((input_image, target_image), scales)
    for (scale, kept), plain_view, target_view in zip(chosen, *both, strict=True):
        with step("scale"):
            input_view = plain_view
            if degradation:
                rng = generator(config.seed, f"noise {scale:g}", pair.identity)
                input_view = augment.degrade(plain_view, degradation, rng)
            grid = Grid.of((input_view.shape[0], input_view.shape[1]), config)
            block.views["input"].append(grid.pad(input_view, fills[0]))
            block.views["target"].append(grid.pad(target_view, fills[1]))
        here = slice(block.starts[-1], block.starts[-1] + int(kept.sum()) * config.orientations)
        block.starts.append(here.stop)
        rows, cols = (np.repeat(v[kept], config.orientations) for v in grid.windows)
        codes = draw_orientations(len(grid), config, pair.identity, scale)[kept].ravel()
        block.scale[here], block.row[here], block.col[here] = scale, rows, cols
        block.orientation[here] = codes
    return block


def air_value(side: Slice, affine: Affine, config: Config) -> float:
    """Return what air (-1024 HU) is in the normalised image of a slice."""
    air = AIR_HU if config.in_hu else (AIR_HU - side.intercept) / side.slope
    if config.normalization_type == "hu_window":
        air = min(max(air, config.hu_window[0]), config.hu_window[1])
    return float(affine.apply(np.full(1, air, np.float32))[0])
