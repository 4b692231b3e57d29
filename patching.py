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
from utils import AIR_HU, PIECE_BYTES, Affine, generator

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
        ``shift``: at multiples of the stride (size minus overlap), the last moved inward.
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

    @staticmethod
    @functools.lru_cache(8)  # the images of a data set have few shapes
    def of(shape: tuple[int, ...], size: int, overlap: int, edge: str) -> Grid:
        """Return the grid of a view of this shape; without windows if a patch does not fit."""
        rows, cols = (window_starts(length, size, overlap, edge) for length in shape)
        if not len(rows) or not len(cols):
            none = np.empty(0, np.int64)
            return Grid(none, none, size, (shape[0], shape[1]))
        reach = int(rows[-1]) + size, int(cols[-1]) + size
        return Grid(rows, cols, size, (max(shape[0], reach[0]), max(shape[1], reach[1])))

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
        # Summed-area table (Crow, 1984): four values per window.
        table = augment.opencv().integral(mask.view(np.uint8))
        below, right = self.rows + self.size, self.cols + self.size
        upper, lower = table[self.rows], table[below]
        sums = lower[:, right] - lower[:, self.cols] - upper[:, right] + upper[:, self.cols]
        return np.asarray(sums, np.int32).ravel()


def kept_windows(view_hu: Image, grid: Grid) -> NDArray[np.bool_]:
    """Return which windows contain more than air.

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
    windows: int, rot_augment: bool, seed: int, identity: str, scale: float
) -> NDArray[np.uint8]:
    """Draw the orientations of the patches of every window of a view.

    Drawn for all windows, kept or not, so that a patch looks the same with and without
    `--air_threshold`.

    Returns
    -------
    ndarray of uint8, shape (windows, 1 or 3)
        As it is; with `--rot_augment` also turned by 90, 180 or 270 degrees, and flipped.
    """
    codes = np.zeros((windows, 3 if rot_augment else 1), np.uint8)
    if rot_augment:
        rng = generator(seed, f"orientation {scale:g}", identity)
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

    The patches themselves are cut on demand, a piece at a time: memory stays small, and what was
    just cut is still in the processor's cache when it is written.

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

    def pieces(self, max_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
        """Yield the pieces of a block, in order.

        Parameters
        ----------
        max_bytes : int
            Limit of a piece; it has the patches of at least one window.
        """
        window = self.times * 4 * self.size**2
        many = max(1, max_bytes // window) * self.times
        for view, (begin, end) in enumerate(itertools.pairwise(self.starts)):
            for start in range(begin, end, many):
                yield Piece(view, start, min(start + many, end))

    def cut(self, role: str, piece: Piece, out: Image) -> None:
        """Cut a piece of the input or the target.

        Parameters
        ----------
        role : {'input', 'target'}
        piece : Piece
        out : ndarray of float32, as large as the piece, contiguous
            Where the patches go.
        """
        here = slice(piece.start, piece.stop)
        first = slice(piece.start, piece.stop, self.times)
        codes = self.orientation[here].reshape(-1, self.times)
        room = out.reshape(-1, self.times, self.size, self.size)
        cut(self.views[role][piece.view], self.row[first], self.col[first], codes, room)

    def patches(self, role: str) -> Image:
        """Return all patches of the input or the target, shape (n, p, p)."""
        out = np.empty((len(self), self.size, self.size), np.float32)
        for piece in self.pieces():
            self.cut(role, piece, out[piece.start : piece.stop])
        return out


def make_block(
    images: Sequence[Image],
    affines: Sequence[Affine],
    fills: Sequence[float],
    kept: Sequence[NDArray[np.bool_]],
    degradation: str,
    identity: str,
    config: Config,
) -> Block:
    """Create the views of a pair, and determine where its patches are cut from them.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (rows, columns)
        The normalised input and the normalised target.
    affines : sequence of Affine
        Their normalisation.
    fills : sequence of float
        Air in either of them.
    kept : sequence of ndarray of bool, shape (windows,)
        The windows of every view that are kept.
    degradation : {'', 'blur', 'noise'}
        For the input.
    identity : str
        The pair, for random draws.
    config : Config
    """
    n = sum(int(mask.sum()) for mask in kept) * config.orientations
    block = Block(
        {"input": [], "target": []},
        [0],
        config.patch_size,
        config.orientations,
        np.empty(n, np.float32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.uint8),
        *affines,
    )
    # A view without a patch need not be created.
    chosen = [(scale, mask) for scale, mask in zip(config.scales, kept, strict=True) if mask.any()]
    views = augment.downscale_all(images, [scale for scale, _ in chosen])
    for (scale, mask), plain_view, target_view in zip(chosen, *views, strict=True):
        input_view = plain_view
        if degradation:
            rng = generator(config.seed, f"noise {scale:g}", identity)
            input_view = augment.degrade(plain_view, degradation, rng)
        grid = Grid.of(target_view.shape, config.patch_size, config.overlap, config.edge)
        block.views["input"].append(grid.pad(input_view, fills[0]))
        block.views["target"].append(grid.pad(target_view, fills[1]))
        here = slice(block.starts[-1], block.starts[-1] + int(mask.sum()) * config.orientations)
        block.starts.append(here.stop)
        rows, cols = (np.repeat(v[mask], config.orientations) for v in grid.windows)
        codes = draw_orientations(len(grid), config.rot_augment, config.seed, identity, scale)
        block.scale[here], block.row[here], block.col[here] = scale, rows, cols
        block.orientation[here] = codes[mask].ravel()
    return block
