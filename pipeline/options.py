"""The options: one table for the command line, `Config`, `--config`, the report and the docs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.option_kinds import (
    PATCH_OVERLAPS,
    Choice,
    File,
    Files,
    Flag,
    Integer,
    Kind,
    Numbers,
    PatchSize,
    Text,
)
from utils import NORMALIZATIONS


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes
    ----------
    flag : str
        As it is written on the command line, such as ``--patch-size``.
    group : str
        Its group in `--help`.
    kind : Kind
        Type and valid values.
    default : object
        Value of an option that is not given.
    help : str
        Text of `--help`.
    metavar : str or tuple of str, optional
        Name of the value in `--help`.
    unit : str
        Unit of the value.
    meaning : str
        What the report says about it; for options that affect the file.
    affects_file : bool
        Whether the file's configuration has it: it decides what the file holds and is not a path.
    without_value : object
        The value where the option is given without one, None if it needs one.
    in_config : bool
        Whether `Config` has it: it describes a run, not a command line.
    """

    flag: str
    group: str
    kind: Kind
    default: Any
    help: str
    metavar: str | tuple[str, ...] | None = None
    unit: str = ""
    meaning: str = ""
    affects_file: bool = True
    without_value: Any = None
    in_config: bool = True

    @property
    def name(self) -> str:
        """Name of the field of `Config`."""
        return self.flag.lstrip("-").replace("-", "_")

    def checked(self, value: Any) -> Any:
        """Return a value as `Config` stores it.

        Raises
        ------
        ValueError
            It is not valid; with the message of the command line.
        """
        if value is None and self.default is None:
            return None
        if not self.kind.fits(value):
            raise ValueError(self.kind.misfit(value))
        return self.kind.check(value)


_SIZES = ", ".join(f"p{size} ({overlap})" for size, overlap in PATCH_OVERLAPS.items())

_DATA = (
    Option(
        *("--input-folder", "data", File(), None),
        "one sub-folder a patient, in each an input (low-dose) and a target (full-dose) "
        "folder; required",
        metavar="DIR",
        affects_file=False,
    ),
    Option(
        *("--input-gen-folder", "data", Text(), None),
        "name or pattern of each patient's input folder, upper or lower case; "
        "default: what begins with quarter or low",
        metavar="NAME",
        meaning="name or pattern of the low-dose folders",
    ),
    Option(
        *("--target-gen-folder", "data", Text(), None),
        "name or pattern of each patient's target folder, upper or lower case; "
        "default: what begins with full or high",
        metavar="NAME",
        meaning="name or pattern of the full-dose folders",
    ),
    Option(
        *("--random_N", "data", Integer(1), None),
        "pairs a patient, drawn at random; 7 if no number is given; default: all pairs",
        metavar="N",
        unit="pairs",
        meaning="per patient, drawn at random",
        without_value=7,
    ),
    Option(
        *("--unpaired", "data", Choice(("error", "skip")), "error"),
        "what to do where slices do not pair, by position or by what else must be equal: "
        "refuse to run, or leave them out and list them; default: %(default)s",
        meaning="slices without a partner",
    ),
    Option(
        *("--bad-files", "data", Choice(("error", "skip")), "error"),
        "what to do where a file is damaged or no CT slice: refuse to run, or leave it out "
        "with its partner and list it; default: %(default)s",
        meaning="damaged files",
    ),
    Option(
        *("--anatomy-check", "data", Choice(("error", "warn", "off")), "error"),
        "what to do where an input looks more like another target slice than its own; "
        "default: %(default)s",
        meaning="pairs that show different anatomy",
    ),
    Option(
        *("--split", "data", Numbers(3), None),
        "keep patients apart: parts of all patients, adding up to 1, for <name>_train.h5, "
        "<name>_val.h5 and <name>_test.h5, drawn by --seed; 0 makes no such file; "
        "default: one file",
        metavar=("TRAIN", "VAL", "TEST"),
        meaning="fractions of all patients: train, val, test",
    ),
    Option(
        *("--split-file", "data", File(), None),
        "keep patients apart as a text file says: a line a patient, train, val or test and "
        "the name; default: one file",
        metavar="FILE",
        affects_file=False,
    ),
)

_PATCHES = (
    Option(
        *("--patch-size", "patches", PatchSize(1), 55),
        f"pixels a side, with the overlap of neighbouring windows in pixels: {_SIZES}; "
        "any other pN with --overlap; default: %(default)s",
        metavar="pN",
        meaning="side of a patch in pixels",
    ),
    Option(
        *("--overlap", "patches", Integer(), None),
        "pixels that neighbouring windows share, below the patch size; "
        "default: as --patch-size says",
        metavar="M",
        unit="pixels",
        meaning="shared by neighbouring windows",
    ),
    Option(
        *("--edge", "patches", Choice(("shift", "pad")), "shift"),
        "shift: the last window moves inward, every pixel is covered and none invented; "
        "pad: what reaches past the image is filled with air, as older data sets have it; "
        "default: %(default)s",
        meaning="the last window of a row: moved inward, or padded",
    ),
    Option(
        *("--intensity", "patches", Choice(("stored", "hu")), "stored"),
        "stored: pixels as the file stores them, the same slope and intercept needed "
        "throughout; hu: in HU; default: %(default)s",
        meaning="unit of the pixels before normalisation",
    ),
    Option(
        *("--normalization-type", "patches", Choice(NORMALIZATIONS), "None"),
        "of each whole image before augmentation. None: pixels as stored; "
        "unity_independent: to [0, 1] by its own minimum and maximum; unity_wrt_ld: both by the "
        "low-dose image's; std_independent: less its mean, over its standard deviation; "
        "std_wrt_ld: both by the low-dose image's; hu_window: HU clipped to --hu-window and scaled "
        "to [0, 1]; dataset_unity, dataset_std: HU, by the figures of all input images of the run "
        "(of train, if split); default: %(default)s",
        meaning="of each whole image, before augmentation",
    ),
    Option(
        *("--hu-window", "patches", Numbers(2), (-1024.0, 3072.0)),
        "the range of hu_window, HU; default: -1024 3072",
        metavar=("LO", "HI"),
        unit="HU",
        meaning="range of the normalisation hu_window",
    ),
    Option(
        *("--air_threshold", "patches", Flag(), False),
        "leave out patches of air: kept are those with more than 10 %% of the target's "
        "pixels above -824 HU and a mean above -924 HU; default: all are kept",
        meaning="windows of air give no patches",
    ),
)

_AUGMENTATION = (
    Option(
        *("--rot_augment", "augmentation", Flag(), False),
        "each patch three times: as it is, turned by 90, 180 or 270 degrees, and flipped "
        "up-down or left-right; default: once",
        meaning="each patch also rotated, and flipped",
    ),
    Option(
        *("--ds_augment", "augmentation", Flag(), False),
        "patches also from the pair downscaled to 0.8 and 0.6; default: full size only",
        meaning="patches also from pairs downscaled to 0.8 and 0.6",
    ),
    Option(
        *("--blurr_n_noise", "augmentation", Flag(), False),
        "blur 40 %% of the input images by a 3x3 mean, add noise of 1 %% of the root mean "
        "square to 40 %%, leave 20 %%; default: none is changed",
        meaning="some input images blurred, some with added noise",
    ),
)

_OUTPUT = (
    Option(
        *("--output-fname", "output", File(), "results/patched_out.h5"),
        "the h5 file to make; folders are made; default: %(default)s",
        metavar="FILE",
        affects_file=False,
    ),
    Option(
        *("--tensor-format", "output", Choice(("torch", "tf")), "torch"),
        "torch: (N, 1, p, p); tf: (N, p, p, 1); default: %(default)s",
        meaning="position of the channel axis",
    ),
    Option(
        *("--anonymize", "output", Flag(), False),
        "replace names of patients and files by P0001, P0001/in_0001, ... and keep what they "
        "stand for in <name>_key.csv, readable by you alone; default: names as they are",
        meaning="names of patients and files replaced by pseudonyms",
    ),
    Option(
        *("--overwrite", "output", Flag(), False),
        "replace an output that exists; default: refuse to",
        affects_file=False,
    ),
    Option(
        *("--resume", "output", Flag(), False),
        "continue an interrupted run of the same job, or start over where there is nothing to "
        "continue; nothing is done where the output is complete; default: refuse to touch what a "
        "run left",
        affects_file=False,
    ),
    Option(
        *("--verify", "output", Files(), None),
        "check every byte of finished h5 files against the checksums in them, with "
        "--input-folder also that they were made from the scans in it, and do no more",
        metavar="FILE",
        affects_file=False,
        in_config=False,
    ),
)

_RUN = (
    Option(
        *("--mpi_run", "run", Flag(), False),
        "share the work over the ranks of mpiexec; default: one process, no MPI",
        affects_file=False,
    ),
    Option(
        *("--seed", "run", Integer(), 0),
        "every random draw hangs on it; a whole number; default: %(default)s",
        metavar="S",
        meaning="seed for all random draws",
    ),
    Option(
        *("--config", "run", File(), None),
        "take all options that decide what the file holds from an h5 file of this tool, or "
        "from JSON; options given beside it win; default: none",
        metavar="FILE",
        affects_file=False,
        in_config=False,
    ),
    Option(
        *("--dry-run", "run", Flag(), False),
        "stop after the plan, and tell what would be made; default: make it",
        affects_file=False,
    ),
    Option(
        *("--profile", "run", Flag(), False),
        "tell at the end where the time went, by rank, s; default: do not",
        affects_file=False,
    ),
    Option(
        *("--quiet", "run", Flag(), False),
        "print warnings and errors alone; default: progress and a summary too",
        affects_file=False,
    ),
    Option(
        *("--verbose", "run", Flag(), False),
        "print also what the headers tell, the patches of each patient, and where the tool "
        "itself failed; default: do not",
        affects_file=False,
    ),
    Option(
        *("--no-report", "run", Flag(), False),
        "write the h5 file alone, no report and no sanity-check images; default: write them",
        affects_file=False,
    ),
    Option(
        *("--hand_over", "run", Choice(("auto", "messages")), "auto"),
        "how ranks bring patches into the file. auto: those on rank 0's host write them at "
        "their place, others send them to rank 0; messages: all send; default: %(default)s",
        affects_file=False,
    ),
)

#: All options by name, in the order of `--help`.
OPTIONS = {option.name: option for option in (*_DATA, *_PATCHES, *_AUGMENTATION, *_OUTPUT, *_RUN)}
#: Those that the configuration in the file has.
FILE_OPTIONS = {name: option for name, option in OPTIONS.items() if option.affects_file}
