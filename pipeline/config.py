"""The configuration of a run: validated on construction, from Python as from the command line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from pipeline.option_kinds import PATCH_OVERLAPS
from pipeline.options import FILE_OPTIONS, OPTIONS
from utils import FIXED_NORMALIZATIONS, CallError, printable

#: Limits of --hu-window: no CT value is beyond, and float32 tells its ends apart.
MAX_HU, MIN_HU_WIDTH = 1e6, 1.0


@dataclass(frozen=True)
class Config:
    """The options of a run, named as on the command line; `docs/options.md` explains them.

    Paths may be `os.PathLike`, numbers lists. With ``overlap=None`` the overlap is the default for
    the patch size.

    Raises
    ------
    CallError
        A value is not valid, with the message of the command line.

    Examples
    --------
    >>> Config("scans", patch_size=64).overlap
    4
    """

    input_folder: str
    output_fname: str = OPTIONS["output_fname"].default
    input_gen_folder: str | None = OPTIONS["input_gen_folder"].default
    target_gen_folder: str | None = OPTIONS["target_gen_folder"].default
    patch_size: int = OPTIONS["patch_size"].default
    overlap: int = OPTIONS["overlap"].default
    edge: str = OPTIONS["edge"].default
    normalization_type: str = OPTIONS["normalization_type"].default
    tensor_format: str = OPTIONS["tensor_format"].default
    random_N: int | None = OPTIONS["random_N"].default
    rot_augment: bool = OPTIONS["rot_augment"].default
    ds_augment: bool = OPTIONS["ds_augment"].default
    air_threshold: bool = OPTIONS["air_threshold"].default
    blurr_n_noise: bool = OPTIONS["blurr_n_noise"].default
    intensity: str = OPTIONS["intensity"].default
    hu_window: tuple[float, float] = OPTIONS["hu_window"].default
    unpaired: str = OPTIONS["unpaired"].default
    anatomy_check: str = OPTIONS["anatomy_check"].default
    split: tuple[float, ...] | None = OPTIONS["split"].default
    split_file: str | None = OPTIONS["split_file"].default
    bad_files: str = OPTIONS["bad_files"].default
    anonymize: bool = OPTIONS["anonymize"].default
    seed: int = OPTIONS["seed"].default
    mpi_run: bool = OPTIONS["mpi_run"].default
    overwrite: bool = OPTIONS["overwrite"].default
    resume: bool = OPTIONS["resume"].default
    dry_run: bool = OPTIONS["dry_run"].default
    profile: bool = OPTIONS["profile"].default
    quiet: bool = OPTIONS["quiet"].default
    verbose: bool = OPTIONS["verbose"].default
    no_report: bool = OPTIONS["no_report"].default
    hand_over: str = OPTIONS["hand_over"].default

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            if not option.in_config:
                continue
            try:
                value = option.checked(getattr(self, name))
            except ValueError as error:
                text = f"argument {option.flag}: {error}"
                raise CallError(f"{printable(text)} (see --help)") from None
            if name == "input_folder" and value is None:
                raise CallError("--input-folder is needed (see --help)")
            object.__setattr__(self, name, value)  # frozen only after this
        object.__setattr__(self, "overlap", _overlap(self.patch_size, self.overlap))
        _check_hu_window(*self.hu_window)
        _check_split(self.split, self.split_file)

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
        """Return the options that decide what the file holds, as JSON with sorted keys."""
        what = {name: getattr(self, name) for name in FILE_OPTIONS}
        if self.anonymize:
            what["input_gen_folder"] = what["target_gen_folder"] = None
        return json.dumps(what, sort_keys=True)


def _overlap(size: int, overlap: int | None) -> int:
    """Return the overlap, by default that for the patch size."""
    if overlap is None:
        if size not in PATCH_OVERLAPS:
            names = " ".join(f"p{n}" for n in PATCH_OVERLAPS)
            raise CallError(f"--patch-size p{size} needs --overlap M; without it: {names}")
        return PATCH_OVERLAPS[size]
    if overlap >= size:
        raise CallError(
            f"--overlap {overlap} is not below the patch size; wanted: 0 to {size - 1} with p{size}"
        )
    return overlap


def _check_hu_window(low: float, high: float) -> None:
    if not -MAX_HU <= low <= high - MIN_HU_WIDTH <= MAX_HU - MIN_HU_WIDTH:
        raise CallError(
            f"--hu-window {low:g} {high:g}; wanted: the lower HU first, at least "
            f"{MIN_HU_WIDTH:g} apart, from {-MAX_HU:g} to {MAX_HU:g}"
        )


def _check_split(parts: tuple[float, ...] | None, file: str | None) -> None:
    if parts is None:
        return
    if file is not None:
        raise CallError("--split and --split-file exclude each other; give one of them")
    if min(parts) < 0 or parts[0] == 0 or not math.isclose(sum(parts), 1, abs_tol=1e-6):
        found = " ".join(f"{part:g}" for part in parts)
        raise CallError(f"--split {found}; wanted: three parts from 0 up that add up to 1")
