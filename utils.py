"""What every module shares: the words of the tool as data, errors, normalisation, random draws."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ctpatches import __version__
from ctpatches.files import atomic_write
from ctpatches.messages import CallError, RunError, ToolError, quoted, shown

if TYPE_CHECKING:  # numpy is heavy: --help answers without it
    import numpy as np
    from numpy.typing import NDArray


#: What both packages use is defined in `ctpatches`, which imports nothing from here.
__all__ = ["CallError", "RunError", "ToolError", "__version__", "atomic_write", "quoted", "shown"]

#: Patch sizes with a name of their own (pixels a side) and the overlap of neighbouring windows.
PATCH_OVERLAPS = {96: 12, 75: 11, 64: 4, 55: 8, 42: 6, 32: 4, 24: 4, 12: 4}

EDGES = ("shift", "pad")
NORMALIZATIONS = (
    "None",
    "unity_independent",
    "unity_wrt_ld",
    "std_independent",
    "std_wrt_ld",
    "hu_window",
    "dataset_unity",
    "dataset_std",
)
#: Those by the same figures for every image of the run; always of HU.
FIXED_NORMALIZATIONS = ("hu_window", "dataset_unity", "dataset_std")
INTENSITIES = ("stored", "hu")
SIDES = ("train", "val", "test")
TENSOR_FORMATS = ("torch", "tf")

#: What lies outside the patient and outside the image: the lowest value of a CT scale, in HU.
AIR_HU = -1024.0
#: Pixels of an image that are summed at once.
SUM_PIXELS = 512 * 512
#: Bytes of patches cut at once: with their view they fit into the second cache of a core, so that
#: summing up and writing them need not fetch them again.
PIECE_BYTES = 512 << 10


def listed(headline: str, problems: Iterable[str]) -> str:
    """Return one message: the headline alone with one problem, else a line for each below it."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{headline}: {lines[0]}"
    return "\n".join([f"{headline}:", *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class Config:
    """What a run was asked for. Fields are named as the options of the command line are."""

    input_folder: str
    output_fname: str = "results/patched_out.h5"
    input_gen_folder: str | None = None
    target_gen_folder: str | None = None
    patch_size: int = 55
    overlap: int = 8
    edge: str = "shift"
    normalization_type: str = "None"
    tensor_format: str = "torch"
    random_N: int | None = None
    rot_augment: bool = False
    ds_augment: bool = False
    air_threshold: bool = False
    blurr_n_noise: bool = False
    intensity: str = "stored"
    hu_window: tuple[float, float] = (-1024.0, 3072.0)
    unpaired: str = "error"
    anatomy_check: str = "error"
    split: tuple[float, ...] | None = None
    split_file: str | None = None
    bad_files: str = "error"
    anonymize: bool = False
    seed: int = 0
    mpi_run: bool = False
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    profile: bool = False
    quiet: bool = False
    verbose: bool = False
    no_report: bool = False
    hand_over: str = "auto"
    argv: tuple[str, ...] = ()

    #: Where and how a run is done; all other fields decide what the file holds.
    HOW = (
        *("input_folder", "output_fname", "split_file", "mpi_run", "overwrite", "resume"),
        *("dry_run", "profile", "quiet", "verbose", "no_report", "hand_over", "argv"),
    )

    @property
    def in_hu(self) -> bool:
        """Whether pixels become HU before they are normalised."""
        return self.intensity == "hu" or self.normalization_type in FIXED_NORMALIZATIONS

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales of the views of a pair, the largest first."""
        return (1.0, 0.8, 0.6) if self.ds_augment else (1.0,)

    @property
    def orientations(self) -> int:
        """How many patches one kept window gives."""
        return 3 if self.rot_augment else 1

    @property
    def bytes_a_patch(self) -> int:
        """Bytes of one patch of input and target in the file, with where it comes from."""
        return 2 * 4 * self.patch_size**2 + 17

    def as_json(self) -> str:
        """Return the fields that decide what the file holds, as JSON with sorted keys."""
        what = {name: value for name, value in self.__dict__.items() if name not in self.HOW}
        if self.anonymize:
            what["input_gen_folder"] = what["target_gen_folder"] = None
        return json.dumps(what, sort_keys=True)


@dataclass(frozen=True)
class Slice:
    """What the header of one CT slice says; no pixels.

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
        Digests of what tells who was scanned; empty in a `Pair`.
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
    """A file, or two that belong together, that gives no patches, and why."""

    patient: str
    files: tuple[str, ...]
    reason: str
    kind: str  # 'bad file' or 'unpaired'

    def __str__(self) -> str:
        return f"{' and '.join(map(shown, self.files))}: {self.reason}"


@dataclass(frozen=True)
class Pair:
    """One input slice with the target slice at the same position."""

    patient: str
    input: Slice
    target: Slice

    @property
    def identity(self) -> str:
        """What random draws for this pair hang on: the path of its input below the input folder."""
        return self.input.file


@dataclass(frozen=True)
class PairPlan:
    """What is known of one pair before a patch is made.

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


class Names(NamedTuple):
    """What a patient and the two files of a pair are called outside of the run."""

    patient: str
    input_file: str
    target_file: str


@dataclass(frozen=True)
class Plan:
    """Every pair, how many patches it gives, and where its block begins in the file.

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
        What the pairs are called in the file and in pictures.
    fixed : Affine or None
        The normalisation, where it is the same for every image.
    left_out : list of LeftOut
        What of these patients gives no patches.
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


@dataclass(frozen=True)
class Affine:
    """A normalisation of one image: ``(pixels - offset) / divisor``, zeros where divisor is 0."""

    offset: float = 0.0
    divisor: float = 1.0

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the normalised image, float32, of the same shape."""
        import numpy as np

        if self == Affine():
            return image
        if self.divisor == 0:
            return np.zeros_like(image)
        out: NDArray[np.float32] = image - np.float32(self.offset)
        out /= np.float32(self.divisor)
        return out

    def undo(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the pixels before normalisation, float32, to float32 accuracy."""
        import numpy as np

        out: NDArray[np.float32] = image * np.float32(self.divisor) + np.float32(self.offset)
        return out


def sum_of(
    function: Callable[[NDArray[np.float32]], NDArray[Any]], image: NDArray[np.float32]
) -> float:
    """Return the sum of a function of every pixel, in float64.

    A part of the image at a time, so that the memory does not depend on its size: as much as 512
    rows of 512 pixels, which are summed at once.
    """
    import numpy as np

    rows = max(1, SUM_PIXELS // image.shape[1])
    parts = (image[start : start + rows] for start in range(0, image.shape[0], rows))
    return math.fsum(float(function(part).sum(dtype=np.float64)) for part in parts)


def _unity(image: NDArray[np.float32]) -> Affine:
    low, high = float(image.min()), float(image.max())
    return Affine(low, high - low)


def _standard(image: NDArray[np.float32]) -> Affine:
    import numpy as np

    mean = image.mean(dtype=np.float64)
    # A constant image has a deviation of rounding errors, not always of exactly 0.
    deviation = 0.0 if image.min() == image.max() else float(image.std(dtype=np.float64))
    return Affine(float(np.float32(mean)), float(np.float32(deviation)))


def img_pair_normalization(
    input_image: NDArray[np.float32],
    target_image: NDArray[np.float32],
    kind: str,
    fixed: Affine | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Affine, Affine]:
    """Normalise the two whole images of a pair.

    Parameters
    ----------
    input_image, target_image : ndarray of float32, shape (rows, columns)
        The low-dose and the full-dose image.
    kind : str
        One of `NORMALIZATIONS`.
    fixed : Affine, optional
        The figures of `FIXED_NORMALIZATIONS`, which are the same for every image of a run.

    Returns
    -------
    input_image, target_image : ndarray of float32
        Of the same shapes. A constant image gives zeros, never NaN.
    input_affine, target_affine : Affine
        What undoes it.
    """
    if kind == "None":
        input_affine = target_affine = Affine()
    elif kind in FIXED_NORMALIZATIONS:
        assert fixed is not None, kind
        input_affine = target_affine = fixed
        if kind == "hu_window":
            low, high = fixed.offset, fixed.offset + fixed.divisor
            input_image, target_image = input_image.clip(low, high), target_image.clip(low, high)
    else:
        measure = _unity if kind.startswith("unity") else _standard
        input_affine = measure(input_image)
        target_affine = input_affine if kind.endswith("wrt_ld") else measure(target_image)
    return (
        input_affine.apply(input_image),
        target_affine.apply(target_image),
        input_affine,
        target_affine,
    )


def key(seed: int, purpose: str, identity: str = "") -> int:
    """Return 128 random bits that depend on nothing but the three arguments of `generator`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(seed), purpose, identity):
        # Lengths before the parts: ('ab', 'c') and ('a', 'bc') are two keys. Names that are not
        # UTF-8 come from the file system as lone surrogates.
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def generator(seed: int, purpose: str, identity: str = "") -> np.random.Generator:
    """Return a random generator that depends on nothing but its three arguments.

    Parameters
    ----------
    seed : int
        `--seed`.
    purpose : str
        What is drawn, so that two kinds of draw for one pair do not share their numbers.
    identity : str
        What it is drawn for: a pair, a patient, or nothing for the whole run.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key(seed, purpose, identity)))


@dataclass
class Tally:
    """Counts and remarks that the summary at the end of a run shows."""

    counts: dict[str, int] = field(default_factory=dict)
    remarks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, number: int = 1) -> None:
        """Add to the count of that name."""
        self.counts[name] = self.counts.get(name, 0) + number

    def warn(self, text: str, *patients: str) -> None:
        """Add a remark, `{}` in it standing for the names of patients."""
        self.remarks.append((text, patients))

    @property
    def warnings(self) -> list[str]:
        """The remarks, patients by their pseudonyms if they have some."""
        return [
            text.format(*(shown(self.numbers.get(patient, patient)) for patient in patients))
            for text, patients in self.remarks
        ]


def say(tally: Tally, config: Config) -> None:
    """Print counts, what was left out, and warnings; with `--quiet` the last two alone."""
    for name, number in tally.counts.items():
        if not config.quiet and (number or name in ("patients", "pairs", "patches")):
            print(f"{name:28} {number}")
    for line in tally.left_out:
        print(shown(f"left out: {line}"))
    for warning in tally.warnings:
        print(shown(f"warning: {warning}"))
