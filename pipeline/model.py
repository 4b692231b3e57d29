"""The data of a run: pairs and the plan; frozen, and small enough to send to every rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.blocks import Place
from ctpatches.dicom.slice_file import Slice
from utils import Affine, printable

Mask: TypeAlias = NDArray[np.bool_]
#: First and end of all windows.
ALL = 0, sys.maxsize
#: Kinds of what cannot be used.
BAD, UNPAIRED, INCOMPLETE = "bad file", "unpaired", "incomplete"


@dataclass(frozen=True)
class LeftOut:
    """A file, or two that belong together, without patches, and the reason."""

    patient: str
    files: tuple[str, ...]
    reason: str
    kind: str  # BAD, UNPAIRED or INCOMPLETE

    def __str__(self) -> str:
        return f"{' and '.join(map(printable, self.files))}: {self.reason}"


@dataclass(frozen=True)
class Pair:
    """One input slice with the target slice at the same position."""

    patient: str
    input: Slice
    target: Slice

    @property
    def identity(self) -> str:
        """What random draws depend on: the path of the input below the input folder."""
        return self.input.file


class Windows(NamedTuple):
    """The windows of one pair; all tuples except `own` have an entry per view."""

    numbers: tuple[int, ...] = ()  # how many; 0 where the view is smaller than a patch
    kept: tuple[bytes, ...] = ()  # those that are not air, one bit each (`numpy.packbits`)
    kept_windows: int = 0  # of all views together
    own: tuple[int, int] = ALL  # those in this file by `--nsplit`, of all views: first and end

    @classmethod
    def of(cls, kept: Sequence[Mask], own: tuple[int, int] = ALL) -> Windows:
        """Return the windows with these masks, one per view."""
        packed = tuple(np.packbits(mask).tobytes() for mask in kept)
        return cls(tuple(map(len, kept)), packed, sum(int(mask.sum()) for mask in kept), own)

    def kept_masks(self) -> list[Mask]:
        """Return which windows of each view are kept, each of shape (windows,)."""
        bits = [np.frombuffer(mask, np.uint8) for mask in self.kept]
        pairs = zip(bits, self.numbers, strict=True)
        return [np.unpackbits(packed, count=count).astype(bool) for packed, count in pairs]

    def own_masks(self) -> list[Mask]:
        """Return which windows of each view are in this file, each of shape (windows,)."""
        first, end = self.own
        place = np.arange(sum(self.numbers))
        return np.split((first <= place) & (place < end), np.cumsum(self.numbers)[:-1])


class Difference(NamedTuple):
    """Input minus target of a pair, HU, before normalisation, clipping and degradation.

    Over the pixels of all kept windows at scale 1; each counts in every window that it is in.
    """

    difference_pixels: int = 0
    difference_sum: float = 0.0
    difference_squares: float = 0.0  # sum of the squares
    #: Pixels below and above a window that the normalisation clips to.
    input_below: int = 0
    input_above: int = 0
    target_below: int = 0
    target_above: int = 0


class View(NamedTuple):
    """A stored view: a row of `ctpatches.schema.VIEW_COLUMNS`."""

    pair: int
    scale: float
    offset: int  # of its first pixel
    rows: int  # with the padding
    columns: int


class Names(NamedTuple):
    """The names of a patient and of the two files of a pair in the output."""

    patient: str
    input_file: str
    target_file: str


@dataclass(frozen=True, slots=True)
class PairPlan:
    """A pair of a file: all that a rank needs to create its block, and to write it."""

    pair: Pair
    names: Names
    windows: Windows
    degradation: str  # of the input by `--blurr_n_noise`: '', 'blur', 'noise'
    fixed: Affine | None  # the normalisation, where it is the same for every image
    #: `ctpatches.checksums.pixel_digest` of the input and the target; empty where planning did not
    #: need them.
    digests: tuple[int, ...]
    index: int = 0  # in the file
    patches: tuple[int, int] = (0, 0)  # the first in the file, and the end
    pixels: tuple[int, int] = (0, 0)  # the same of the pixels of all patches or stored views
    views: tuple[View, ...] = ()  # those that are stored; empty with `--store patches`

    @property
    def place(self) -> Place:
        """Where the block lies."""
        return {"patch": self.patches, "pixel": self.pixels}


@dataclass(frozen=True)
class Plan:
    """Every pair of a file, its number of patches, and the offset of its block."""

    pairs: list[PairPlan]  # ordered by patient and position
    left_out: list[LeftOut]

    @property
    def patches(self) -> int:
        """Number of patches, N of the file."""
        return self.pairs[-1].patches[1]

    @property
    def pixels(self) -> int:
        """Number of pixels of all patches or stored views, per role."""
        return self.pairs[-1].pixels[1]

    @property
    def starts(self) -> list[int]:
        """Index of the first patch of each pair, and N."""
        return [planned.patches[0] for planned in self.pairs] + [self.patches]
