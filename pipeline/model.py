"""The data of a run: slices, pairs and the plan; frozen, and small enough to send to every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils import Affine, printable


@dataclass(frozen=True)
class Slice:
    """The header of one CT slice; no pixels.

    Attributes
    ----------
    file : str
        Path below the input folder, with `/` between its parts.
    rows, columns : int
        Size of the image, pixels (0028,0010), (0028,0011).
    position_mm : float or None
        Image Position (Patient) (0020,0032) along the slice normal, mm.
    in_plane_mm : tuple of float
        Image Position (Patient) along the row and the column direction, mm.
    orientation : tuple of float
        Image Orientation (Patient) (0020,0037), six direction cosines.
    spacing_mm : tuple of float
        Pixel Spacing (0028,0030), mm between rows and between columns.
    thickness_mm : float or None
        Slice Thickness (0018,0050), mm.
    instance : int or None
        Instance Number (0020,0013).
    slope, intercept : float
        HU = slope * stored value + intercept (0028,1053), (0028,1052).
    pixel_offset : int or None
        Byte at which native pixels begin; None where pydicom has to decode them.
    dtype : str
        NumPy dtype of native stored values, such as ``<u2``.
    bits_stored : int
        Bits Stored (0028,0101).
    padding : tuple of int or None
        Lowest and highest stored value of Pixel Padding (0028,0120), (0028,0121).
    event : str
        Digest of the Irradiation Event UID (0008,3010); '' where there is none, and in a `Pair`.
    persons : tuple of str
        Digests of what identifies the person scanned; empty in a `Pair`.
    stamp : tuple of int
        Size of the file, bytes, modification time and status change time, ns: whether it is still
        the same.
    kernel : str
        Convolution Kernel (0018,1210).
    exposure_mas, ctdi_mgy : float or None
        Exposure (0018,1152), mAs, and CTDIvol (0018,9345), mGy.
    """

    file: str
    rows: int
    columns: int
    position_mm: float | None
    in_plane_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    thickness_mm: float | None
    instance: int | None
    slope: float
    intercept: float
    pixel_offset: int | None
    dtype: str
    bits_stored: int
    padding: tuple[int, int] | None = None
    event: str = ""
    persons: tuple[str, ...] = ()
    stamp: tuple[int, int, int] = (0, 0, 0)
    kernel: str = ""
    exposure_mas: float | None = None
    ctdi_mgy: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file, or two that belong together, without patches, and the reason."""

    patient: str
    files: tuple[str, ...]
    reason: str
    kind: str  # 'bad file' or 'unpaired'

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


@dataclass(frozen=True)
class PairPlan:
    """The windows of one pair.

    Attributes
    ----------
    windows : tuple of int
        Windows of each view; 0 where the view is smaller than a patch.
    kept : tuple of bytes
        For each view the windows that are not air, one bit each (`numpy.packbits`).
    kept_windows : int
        Number of windows kept, all views together.
    """

    windows: tuple[int, ...]
    kept: tuple[bytes, ...]
    kept_windows: int

    def kept_masks(self) -> list[NDArray[np.bool_]]:
        """Return which windows of each view are kept, each of shape (windows,)."""
        bits = [np.frombuffer(kept, np.uint8) for kept in self.kept]
        pairs = zip(bits, self.windows, strict=True)
        return [np.unpackbits(packed, count=count).astype(bool) for packed, count in pairs]


class Names(NamedTuple):
    """The names of a patient and of the two files of a pair in the output."""

    patient: str
    input_file: str
    target_file: str


@dataclass(frozen=True)
class Plan:
    """Every pair of a file, its number of patches, and the offset of its block.

    Attributes
    ----------
    pairs : list of Pair
        Ordered by patient and position.
    parts : list of PairPlan
    starts : list of int
        Index of the first patch of each pair; one more entry for the end.
    degradations : list of str
        What `--blurr_n_noise` does to the input of each pair: ``''``, ``'blur'``, ``'noise'``.
    names : list of Names
        The names of the pairs in the file and in images.
    fixed : Affine or None
        The normalisation, where it is the same for every image.
    left_out : list of LeftOut
        Files of these patients without patches.
    digests : list of tuple of int
        `ctpatches.checksums.pixel_digest` of the input and the target of each pair; empty tuples
        where planning did not need them.
    """

    pairs: list[Pair]
    parts: list[PairPlan]
    starts: list[int]
    degradations: list[str]
    names: list[Names]
    fixed: Affine | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    digests: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def patches(self) -> int:
        """Number of patches, N of the file."""
        return self.starts[-1]
