"""The configuration of a run: one table of options.

It drives Python, the command line, `--config`, the report, and the test of the documentation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import MISSING, dataclass
from typing import Any

from ctpatches.messages import CallError
from ctpatches.schema import COMPRESSIONS, DTYPES, PATCH_COLUMNS, STORES, check_storage
from pipeline.options import (
    FLAG,
    PATCH_OVERLAPS,
    PATCH_SIZE,
    Option,
    choice,
    integer,
    number,
    numbers,
    option,
    text,
)

NORMALIZATIONS = {
    "None": "pixels unchanged",
    "unity_independent": "to [0, 1] by its own minimum and maximum",
    "unity_wrt_ld": "to [0, 1] by minimum and maximum of the low-dose image",
    "std_independent": "minus its mean, divided by its standard deviation",
    "std_wrt_ld": "by mean and standard deviation of the low-dose image",
    "hu_window": "HU clipped to --hu-window and scaled to [0, 1]",
    "dataset_unity": "HU, by minimum and maximum of all input images (of train, if split)",
    "dataset_std": "HU, by mean and standard deviation of all input images (of train, if split)",
}
#: Limits of --hu-window: no CT value is beyond, and float32 can distinguish its ends.
MAX_HU, MIN_HU_WIDTH = 1e6, 1.0
#: The groups of `--help`. Options of the first three determine the content of the file.
GROUPS = ("data", "patches", "augmentation", "output", "run")
data_option, patch_option, augment_option, output_option, run_option = (
    functools.partial(option, group) for group in GROUPS
)
#: Options that are in use only with certain values of others.
REQUIREMENTS: dict[str, dict[str, Any]] = {
    "hu_window": {"normalization_type": "hu_window"},
    "air_rule": {"air_threshold": True},
    "min_body": {"air_threshold": True, "air_rule": "body"},
    "air_threshold_hu": {"air_threshold": True, "air_rule": "patch"},
    "air_fraction": {"air_threshold": True, "air_rule": "patch"},
}
_SIZES = ", ".join(f"p{size} ({overlap})" for size, overlap in PATCH_OVERLAPS.items())


@dataclass(frozen=True)
class Config:
    """The options of a run, named as on the command line; `docs/options.md` explains them.

    Paths may be `os.PathLike`, and sequences of numbers lists. With ``overlap=None`` the overlap is
    the default for the patch size.

    Raises
    ------
    CallError
        A value is not valid, with the message of the command line.

    Examples
    --------
    >>> Config("scans", patch_size=64).overlap
    4
    """

    input_folder: str = data_option(
        text("DIR", MISSING),
        "folder with one sub-folder per patient, each with an input (low-dose) and a target "
        "(full-dose) folder; required",
    )
    output_fname: str = output_option(
        text("FILE", "results/patched_out.h5"), "h5 file to create; missing folders are created"
    )
    input_gen_folder: str | None = data_option(
        text("NAME"),
        "name or pattern of each patient's input folder, upper or lower case; default: begins with "
        "quarter or low",
    )
    target_gen_folder: str | None = data_option(
        text("NAME"),
        "name or pattern of each patient's target folder, upper or lower case; default: begins "
        "with full or high",
    )
    random_N: int | None = data_option(
        integer(1, "N", nargs="?", const=7, unit="pairs"),
        "pairs per patient, drawn at random; 7 if no number is given; default: all pairs",
    )
    unpaired: str = data_option(
        choice("error", "skip"),
        "slices without a partner, or that do not match it: end the run, or leave them out and "
        "list them",
    )
    bad_files: str = data_option(
        choice("error", "skip"),
        "files that are damaged or not CT slices: end the run, or leave them out with their "
        "partners and list them",
    )
    incomplete: str = data_option(
        choice("error", "skip"),
        "patients without an input or a target folder, or with an empty one: end the run, or leave "
        "them out and list them",
    )
    anatomy_check: str = data_option(
        choice("error", "warn", "off"),
        "inputs that resemble another target slice more than their own: end the run, warn, or skip "
        "the check",
    )
    split: tuple[float, ...] | None = data_option(
        numbers("TRAIN", "VAL", "TEST"),
        "fractions of the patients, adding up to 1, or percentages, adding up to 100, to assign to "
        "<name>_train.h5, <name>_val.h5 and <name>_test.h5, drawn by --seed; 0 creates no such "
        "file; default: one file",
    )
    split_file: str | None = data_option(
        text("FILE"),
        "text file that assigns patients to subsets: per line train, val or test, and the name; "
        "default: one file",
    )
    nsplit: int = data_option(
        integer(1, "N", 999, default=1, unit="files"),
        "number of files, with equal numbers of patches: <name>_1of4.h5 to <name>_4of4.h5 for 4; "
        "with a split, as many for each subset",
    )
    anonymize: bool = data_option(
        FLAG,
        "replace the names of patients and files by P0001, P0001/in_0001, ..., and save the "
        "original names in <name>_key.csv, readable only by you",
    )
    seed: int = data_option(integer(0, "S", default=0), "seed for all random draws")
    patch_size: int = patch_option(
        PATCH_SIZE,
        f"pixels per side, with the overlap of neighbouring windows in pixels: {_SIZES}; any other "
        "pN with --overlap",
    )
    overlap: int = patch_option(
        integer(0, "M", unit="pixels"),
        "pixels that neighbouring windows share, fewer than the patch size; default: as listed for "
        "--patch-size",
    )
    edge: str = patch_option(
        choice("shift", "pad"),
        "shift: the last window is moved inward, every pixel is covered and none is invented; pad: "
        "pixels beyond the image are air, as in older data sets",
    )
    intensity: str = patch_option(
        choice("stored", "hu"),
        "stored: pixels as stored in the files, which must all have the same slope and intercept; "
        "hu: in HU",
    )
    normalization_type: str = patch_option(
        choice(*NORMALIZATIONS),
        "of each whole image before augmentation. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in NORMALIZATIONS.items()),
    )
    hu_window: tuple[float, float] = patch_option(
        numbers("LO", "HI", default=(-1024.0, 3072.0), unit="HU"), "range of hu_window"
    )
    air_threshold: bool = patch_option(FLAG, "leave out windows of air, judged by --air-rule")
    air_rule: str = patch_option(
        choice("patch", "body"),
        "with --air_threshold, how windows are judged. patch: by their pixels in the target, as in "
        "older data sets; body: by how much of them lies in the body, which includes lungs, but "
        "neither table nor blankets",
    )
    min_body: float = patch_option(
        number(0, 1, "F", default=0.1),
        "with --air-rule body, windows are kept if more than this fraction of them is body",
    )
    air_threshold_hu: float = patch_option(
        number(-1024, 3072, "HU", default=-824.0, unit="HU"),
        "with --air-rule patch, windows are kept if more than --air-fraction of the target's "
        "pixels lie above this, and the mean above this minus 100 HU",
    )
    air_fraction: float = patch_option(
        number(0, 1, "F", default=0.1),
        "with --air-rule patch, the fraction that --air-threshold-hu refers to",
    )
    tensor_format: str = patch_option(
        choice("torch", "tf"), "torch: (N, 1, p, p); tf: (N, p, p, 1)"
    )
    store: str = patch_option(
        choice(*STORES),
        "patches: every patch, which any h5 reader can read; views: the images that patches are "
        "cut from, with --rot_augment about 0.3 of the size, which the loaders of ctpatches read",
    )
    dtype: str = patch_option(
        choice(*DTYPES),
        "type of the pixels in the file; float16 and int16, the latter for --normalization-type "
        "None alone, round to the nearest value, by how much at most is reported; loaders return "
        "float32",
    )
    shuffle_patches: bool = patch_option(
        FLAG,
        "store the patches in random order, drawn by --seed, for programs that read them one after "
        "another; not needed with the loaders of ctpatches",
    )
    compression: str = patch_option(
        choice(*COMPRESSIONS),
        "of every patch by itself; lz4 is the fastest; gzip, which any h5 reader decompresses, the "
        "slowest; readers of lz4 and zstd need the package hdf5plugin",
    )
    rot_augment: bool = augment_option(
        FLAG,
        "three patches per window: unchanged, rotated by 90, 180 or 270 degrees, and flipped "
        "up-down or left-right",
    )
    ds_augment: bool = augment_option(FLAG, "add patches of the pair downscaled to 0.8 and 0.6")
    blurr_n_noise: bool = augment_option(
        FLAG,
        "blur 40 % of the input images with a 3x3 mean, add Gaussian noise of 8 HU to 40 %, and "
        "leave 20 % unchanged",
    )
    overwrite: bool = output_option(FLAG, "replace an existing output")
    resume: bool = output_option(
        FLAG,
        "continue an interrupted run of the same job, or start from the beginning if there is "
        "none; a complete output is left unchanged",
    )
    sheets: int = output_option(
        integer(0, "N", 100, default=4, unit="images"),
        "images for checking, of each kind: sheets of patches, and slices with their windows; 0 "
        "draws none",
    )
    no_report: bool = output_option(FLAG, "create neither a report nor sanity-check images")
    mpi_run: bool = run_option(FLAG, "distribute the work over the ranks of mpiexec")
    dry_run: bool = run_option(FLAG, "end after the plan, and print what would be created")
    profile: bool = run_option(
        FLAG, "print at the end how much time each rank spent on what, in seconds"
    )
    quiet: bool = run_option(FLAG, "print warnings and errors only")
    verbose: bool = run_option(
        FLAG,
        "also print a summary of the headers, the patches per patient, and the traceback of an "
        "internal error",
    )
    hand_over: str = run_option(
        choice("auto", "messages", "direct"),
        "how ranks bring patches into the file. auto: those on rank 0's host write them at their "
        "offset, others send them to rank 0; messages: all send them; direct: all write them, on "
        "parallel file systems such as Lustre, GPFS and BeeGFS",
    )

    def __post_init__(self) -> None:
        values = {name: one.checked(getattr(self, name)) for name, one in OPTIONS.items()}
        if values["overlap"] is None:
            values["overlap"] = PATCH_OVERLAPS.get(values["patch_size"])
        vars(self).update(values)  # not by assignment: the dataclass is frozen
        if values["overlap"] is None:
            found = f"--patch-size p{self.patch_size} needs --overlap M"
            raise CallError(f"{found}; expected: {PATCH_SIZE.expected}")
        if self.overlap >= self.patch_size:
            raise CallError(
                f"--overlap {self.overlap} is not below the patch size; expected: 0 to "
                f"{self.patch_size - 1} with p{self.patch_size}"
            )
        low, high = self.hu_window
        if not -MAX_HU <= low <= high - MIN_HU_WIDTH <= MAX_HU - MIN_HU_WIDTH:
            raise CallError(
                f"--hu-window {low:g} {high:g}; expected: the lower HU first, at least "
                f"{MIN_HU_WIDTH:g} apart, from {-MAX_HU:g} to {MAX_HU:g}"
            )
        for name, needed in REQUIREMENTS.items():
            value, in_use = getattr(self, name), needed.items() <= vars(self).items()
            if value != OPTIONS[name].default and not in_use:
                required = " ".join(OPTIONS[other].words(needed[other]) for other in needed)
                raise CallError(f"{OPTIONS[name].words(value)} requires {required}")
        check_storage(vars(self))
        if self.hand_over == "direct" and self.compression != "none":
            raise CallError(
                f"--hand-over direct requires --compression none, found {self.compression}: only "
                "rank 0 knows the place of a compressed block"
            )
        if self.split and math.isclose(sum(self.split), 100, abs_tol=1e-4):  # percentages
            vars(self)["split"] = tuple(part / 100 for part in self.split)
        parts = self.split or (1.0,)
        if self.split and self.split_file is not None:
            raise CallError("--split and --split-file exclude each other; give one of them")
        if min(parts) < 0 or parts[0] == 0 or not math.isclose(sum(parts), 1, abs_tol=1e-6):
            found = " ".join(f"{part:g}" for part in parts)
            raise CallError(
                f"--split {found}; expected: three fractions that add up to 1, or percentages that "
                "add up to 100, none below 0, the first above 0"
            )

    @property
    def has_subsets(self) -> bool:
        """Whether the patients are assigned to subsets."""
        return self.split is not None or self.split_file is not None

    @property
    def in_hu(self) -> bool:
        """Whether pixels become HU before they are normalised."""
        return self.intensity == "hu" or self.normalization_type.startswith(("hu", "dataset"))

    @property
    def clip_window(self) -> tuple[float, float] | None:
        """The HU that the normalisation clips to, if any."""
        return self.hu_window if self.normalization_type == "hu_window" else None

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales of the views of a pair, the largest first."""
        return (1.0, 0.8, 0.6) if self.ds_augment else (1.0,)

    @property
    def orientations(self) -> int:
        """Number of patches per kept window."""
        return 3 if self.rot_augment else 1

    def bytes_of(self, patches: int, pixels: int) -> int:
        """Return the bytes of blocks in the file, with the provenance of their patches."""
        per_pixel = 2 * int(DTYPES[self.dtype][-1])
        per_patch = sum(int(dtype[-1]) for dtype in PATCH_COLUMNS.values())
        return per_pixel * pixels + per_patch * patches

    def as_json(self) -> str:
        """Return the options that determine the content of the file, as JSON with sorted keys."""
        values = {name: getattr(self, name) for name in FILE_OPTIONS}
        if self.anonymize:
            values["input_gen_folder"] = values["target_gen_folder"] = None
        return json.dumps(values, sort_keys=True)


#: All options by name.
OPTIONS = {f.name: Option(f.name, f.default, **f.metadata) for f in dataclasses.fields(Config)}
#: Those in the configuration of a file: they determine its content.
FILE_OPTIONS = {n: o for n, o in OPTIONS.items() if o.group in GROUPS[:3] and not o.is_path}
