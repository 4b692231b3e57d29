#!/usr/bin/env python3
"""Turn folders of paired CT scans into one h5 file of training patches."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeAlias

from ctpatches import streams
from pipeline import config_file, errors
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from utils import (
    EDGES,
    INTENSITIES,
    NORMALIZATIONS,
    PATCH_OVERLAPS,
    TENSOR_FORMATS,
    CallError,
    Config,
    RunError,
    ToolError,
    __version__,
    quoted,
    shown,
)

#: Limits of --hu-window: no CT value is beyond, and float32 tells its ends apart.
MAX_HU, MIN_HU_WIDTH = 1e6, 1.0
#: How long ranks that cannot talk to each other give the first one to print their error, seconds.
FIRST_RANK_S = 1.0


class _Parser(argparse.ArgumentParser):
    """Takes every option with dashes or underscores, and says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise CallError(f"{shown(message)} (see --help)")

    def spelled_as_documented(self, argv: Sequence[str]) -> list[str]:
        """Return the arguments with each option name as it stands in `--help`."""
        documented = {_plain(name): name for name in self._option_string_actions}
        out = []
        for argument in argv:
            name, *value = argument.split("=", 1)
            if value == ["--"]:  # argparse would drop it
                raise CallError(f"{name} has no value (see --help)")
            if name.startswith("--"):
                name = documented.get(_plain(name), name)
            out.append("=".join([name, *value]))
        return out


def _plain(option: str) -> str:
    return option.replace("_", "-")


def _patch_size(text: str) -> int:
    match = re.fullmatch(r"p([1-9]\d{0,3})", text)
    if not match:
        names = " ".join(f"p{size}" for size in PATCH_OVERLAPS)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no patch size; wanted: {names}, or any other pN with --overlap M"
        )
    return int(match[1])


def _whole(least: int) -> type[int]:
    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; wanted: a whole number from {least} up")
        return int(text)

    return convert  # type: ignore[return-value]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: a number")
    return value


def build_parser() -> _Parser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="main.py",
        description=__doc__,
        epilog="Every option may be spelled with dashes or with underscores.",
        allow_abbrev=False,
    )
    for title, add_options in (
        ("data", _add_data),
        ("patches", _add_patches),
        ("augmentation", _add_augmentation),
        ("output", _add_output),
        ("run", _add_run),
    ):
        add_options(parser.add_argument_group(title).add_argument)
    return parser


def _add_data(add: Callable[..., object]) -> None:
    add(
        "--input-folder",
        metavar="DIR",
        help="one sub-folder a patient, in each an input (low-dose) and a target (full-dose) "
        "folder; required",
    )
    for side, begins in (("input", "quarter or low"), ("target", "full or high")):
        add(
            f"--{side}-gen-folder",
            metavar="NAME",
            help=f"name or pattern of each patient's {side} folder, upper or lower case; "
            f"default: what begins with {begins}",
        )
    add(
        "--random_N",
        nargs="?",
        const=7,
        type=_whole(1),
        metavar="N",
        help="pairs a patient, drawn at random; 7 if no number is given; default: all pairs",
    )
    add(
        "--unpaired",
        choices=("error", "skip"),
        default="error",
        help="what to do where slices do not pair, by position or by what else must be equal: "
        "refuse to run, or leave them out and list them; default: %(default)s",
    )
    add(
        "--bad-files",
        choices=("error", "skip"),
        default="error",
        help="what to do where a file is damaged or no CT slice: refuse to run, or leave it out "
        "with its partner and list it; default: %(default)s",
    )
    add(
        "--anatomy-check",
        choices=("error", "warn", "off"),
        default="error",
        help="what to do where an input looks more like another target slice than its own; "
        "default: %(default)s",
    )
    add(
        "--split",
        nargs=3,
        type=_number,
        metavar=("TRAIN", "VAL", "TEST"),
        help="keep patients apart: parts of all patients, adding up to 1, for <name>_train.h5, "
        "<name>_val.h5 and <name>_test.h5, drawn by --seed; 0 makes no such file; "
        "default: one file",
    )
    add(
        "--split-file",
        metavar="FILE",
        help="keep patients apart as a text file says: a line a patient, train, val or test and "
        "the name; default: one file",
    )


def _add_patches(add: Callable[..., object]) -> None:
    sizes = ", ".join(f"p{size} ({overlap})" for size, overlap in PATCH_OVERLAPS.items())
    add(
        "--patch-size",
        type=_patch_size,
        default="p55",
        metavar="pN",
        help=f"pixels a side, with the overlap of neighbouring windows in pixels: {sizes}; "
        "any other pN with --overlap; default: %(default)s",
    )
    add(
        "--overlap",
        type=_whole(0),
        metavar="M",
        help="pixels that neighbouring windows share, below the patch size; "
        "default: as --patch-size says",
    )
    add(
        "--edge",
        choices=EDGES,
        default=EDGES[0],
        help="shift: the last window moves inward, every pixel is covered and none invented; "
        "pad: what reaches past the image is filled with air, as older data sets have it; "
        "default: %(default)s",
    )
    add(
        "--intensity",
        choices=INTENSITIES,
        default=INTENSITIES[0],
        help="stored: pixels as the file stores them, the same slope and intercept needed "
        "throughout; hu: in HU; default: %(default)s",
    )
    add(
        "--normalization-type",
        choices=NORMALIZATIONS,
        default="None",
        help="of each whole image before augmentation. None: pixels as stored; "
        "unity_independent: to [0, 1] by its own minimum and maximum; unity_wrt_ld: both by the "
        "low-dose image's; std_independent: less its mean, over its standard deviation; "
        "std_wrt_ld: both by the low-dose image's; hu_window: HU clipped to --hu-window and scaled "
        "to [0, 1]; dataset_unity, dataset_std: HU, by the figures of all input images of the run "
        "(of train, if split); default: %(default)s",
    )
    add(
        "--hu-window",
        nargs=2,
        type=_number,
        default=Config.hu_window,
        metavar=("LO", "HI"),
        help="the range of hu_window, HU; default: -1024 3072",
    )
    add(
        "--air_threshold",
        action="store_true",
        help="leave out patches of air: kept are those with more than 10 %% of the target's "
        "pixels above -824 HU and a mean above -924 HU; default: all are kept",
    )


def _add_augmentation(add: Callable[..., object]) -> None:
    add(
        "--rot_augment",
        action="store_true",
        help="each patch three times: as it is, turned by 90, 180 or 270 degrees, and flipped "
        "up-down or left-right; default: once",
    )
    add(
        "--ds_augment",
        action="store_true",
        help="patches also from the pair downscaled to 0.8 and 0.6; default: full size only",
    )
    add(
        "--blurr_n_noise",
        action="store_true",
        help="blur 40 %% of the input images by a 3x3 mean, add noise of 1 %% of the root mean "
        "square to 40 %%, leave 20 %%; default: none is changed",
    )


def _add_output(add: Callable[..., object]) -> None:
    add(
        "--output-fname",
        metavar="FILE",
        default=Config.output_fname,
        help="the h5 file to make; folders are made; default: %(default)s",
    )
    add(
        "--tensor-format",
        choices=TENSOR_FORMATS,
        default="torch",
        help="torch: (N, 1, p, p); tf: (N, p, p, 1); default: %(default)s",
    )
    add(
        "--anonymize",
        action="store_true",
        help="replace names of patients and files by P0001, P0001/in_0001, ... and keep what they "
        "stand for in <name>_key.csv, readable by you alone; default: names as they are",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace an output that exists; default: refuse to",
    )
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted run of the same job, or start over where there is nothing to "
        "continue; nothing is done where the output is complete; default: refuse to touch what a "
        "run left",
    )
    add(
        "--verify",
        nargs="+",
        metavar="FILE",
        help="check every byte of finished h5 files against the checksums in them, with "
        "--input-folder also that they were made from the scans in it, and do no more",
    )


def _add_run(add: Callable[..., object]) -> None:
    add(
        "--mpi_run",
        action="store_true",
        help="share the work over the ranks of mpiexec; default: one process, no MPI",
    )
    add(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="S",
        help="every random draw hangs on it; a whole number; default: %(default)s",
    )
    add(
        "--config",
        metavar="FILE",
        help="take all options that decide what the file holds from an h5 file of this tool, or "
        "from JSON; options given beside it win; default: none",
    )
    add(
        "--dry-run",
        action="store_true",
        help="stop after the plan, and tell what would be made; default: make it",
    )
    add(
        "--profile",
        action="store_true",
        help="tell at the end where the time went, by rank, s; default: do not",
    )
    add(
        "--quiet",
        action="store_true",
        help="print warnings and errors alone; default: progress and a summary too",
    )
    add(
        "--verbose",
        action="store_true",
        help="print also what the headers tell, the patches of each patient, and where the tool "
        "itself failed; default: do not",
    )
    add(
        "--no-report",
        action="store_true",
        help="write the h5 file alone, no report and no sanity-check images; default: write them",
    )
    add(
        "--hand_over",
        choices=("auto", "messages"),
        default="auto",
        help="how ranks bring patches into the file. auto: those on rank 0's host write them at "
        "their place, others send them to rank 0; messages: all send; default: %(default)s",
    )
    add("--version", action="version", version=f"%(prog)s {__version__}")


class FilesToVerify(NamedTuple):
    """What `--verify` is about: h5 files, and the folder of the scans that they were made from."""

    files: list[str]
    input_folder: str | None


#: What a command line asks for: a run, files to verify, or the text of --help or --version.
Request: TypeAlias = Config | FilesToVerify | str


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises
    ------
    CallError
        An option or a value that does not exist, or values that do not go together.
    """
    parser = build_parser()
    spelled = parser.spelled_as_documented(argv)
    given = {_field(word.split("=")[0]) for word in spelled if word.startswith("--")}
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            options = parser.parse_args(spelled)
    except SystemExit:  # --help, --version
        return text.getvalue()
    if options.verify:
        return FilesToVerify(options.verify, options.input_folder)
    stored: dict[str, object] = {}
    if options.config is not None:
        stored = config_file.read(options.config, parser._actions)
        # What belongs together is not taken from two places.
        for name, other in (("patch_size", "overlap"), ("split_file", "split")):
            if name in given:
                stored.pop(other, None)
        parser.set_defaults(**stored)
        options = parser.parse_args(spelled)
    try:
        return _config(options, given, tuple(spelled))
    except CallError as error:
        if not stored:
            raise
        source = f"with the options from --config {quoted(options.config)}"
        raise CallError(f"{error} ({source})") from None


def _config(options: argparse.Namespace, given: set[str], argv: tuple[str, ...]) -> Config:
    """Return the configuration, if its values go together."""
    values = {k: v for k, v in vars(options).items() if k not in ("config", "verify")}
    if options.input_folder is None:
        raise CallError("--input-folder is needed (see --help)")
    values["overlap"] = _overlap(options.patch_size, options.overlap)
    if "hu_window" in given and options.normalization_type != "hu_window":
        raise CallError("--hu-window goes with --normalization-type hu_window alone")
    values["hu_window"] = _hu_window(*options.hu_window)
    if options.split is not None:
        values["split"] = _split(tuple(options.split), options.split_file)
    return Config(**values, argv=argv)


def _field(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _overlap(size: int, overlap: int | None) -> int:
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


def _hu_window(low: float, high: float) -> tuple[float, float]:
    if not -MAX_HU <= low <= high - MIN_HU_WIDTH <= MAX_HU - MIN_HU_WIDTH:
        raise CallError(
            f"--hu-window {low:g} {high:g}; wanted: the lower HU first, at least "
            f"{MIN_HU_WIDTH:g} apart, from {-MAX_HU:g} to {MAX_HU:g}"
        )
    return low, high


def _split(parts: tuple[float, ...], file: str | None) -> tuple[float, ...]:
    if file is not None:
        raise CallError("--split and --split-file exclude each other; give one of them")
    if min(parts) < 0 or parts[0] == 0 or not math.isclose(sum(parts), 1, abs_tol=1e-6):
        told = " ".join(f"{part:g}" for part in parts)
        raise CallError(f"--split {told}; wanted: three parts from 0 up that add up to 1")
    return parts


def verify(files: Sequence[str], input_folder: str | None) -> int:
    """Check finished files; return 1 if any is damaged, or was not made from the scans."""
    from ctpatches.verify import verify

    if input_folder is not None and not os.path.isdir(input_folder):
        raise CallError(f"--input-folder {quoted(input_folder)} is not a folder")
    status = 0
    for file in files:
        found = ["every byte as it was written"]
        try:
            damages = verify(file)
            if input_folder is not None and not damages:
                from pipeline import verification

                found.append(verification.check_scans(file, input_folder))
        except OSError as error:
            damages = [f"cannot be read: {error.strerror or error}"]
        except RunError as error:
            damages = [str(error)]
        for damage in damages:
            streams.print_error(f"{quoted(file)}: {damage}")
        if damages:
            status = 1
        else:
            print(f"{shown(file)}: {'; '.join(found)}")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed run, 2 for a bad call."""
    # Else numpy, once imported, starts threads for its matrix products that spin while they wait:
    # they took the cores that other ranks worked on.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else argv
    asked = _request(words)
    try:
        mpi_run = any(_field(word) == "mpi_run" for word in words)
        ranks = launch.connect(mpi_run, os.environ)
    except ToolError as error:
        return _unconnected(error)
    _prepare_signals(ranks)
    try:
        request: Request = launch.agree(ranks, _loaded(asked))
        status = _fulfil(request, ranks)
        ranks.close()
    except BaseException as error:
        if isinstance(asked, Config) and asked.verbose:
            print(streams.escaped(traceback.format_exc()), end="", file=sys.stderr)
        return ranks.fail(error)
    return status


def _request(words: Sequence[str]) -> Request | ToolError:
    """Return what the command line of this rank asks for, or why it is invalid."""
    try:
        request = parse(words)
        _, launched = launch.launcher_ranks(os.environ)
        if launched > 1 and isinstance(request, Config) and not request.mpi_run:
            launcher = launch.launcher_name(os.environ)
            raise CallError(
                f"{launcher} started {launched} processes, but without --mpi_run each would do the "
                f"whole job; add --mpi_run, or run without {launcher}"
            )
        return request
    except Exception as error:  # whatever it is, the other ranks have to know
        return errors.failure_of(error)


def _loaded(asked: Request | ToolError) -> Request | ToolError:
    """Load what a run needs, so that a rank that lacks a library tells the others."""
    if isinstance(asked, Config):
        try:
            importlib.import_module("pipeline.run")
        except Exception as error:  # with too little memory, of any kind
            return errors.not_loaded(error)
    return asked


def _unconnected(error: ToolError) -> int:
    """Print an error that all ranks have but none can tell another; return the exit status."""
    rank, _ = launch.launcher_ranks(os.environ)
    if rank == 0:
        streams.print_error(error)
    else:  # some launchers end all others as soon as one has failed
        time.sleep(FIRST_RANK_S)
    return error.status


def _fulfil(request: Request, ranks: Ranks) -> int:
    """Do what the command line asks for; return the exit status."""
    if isinstance(request, str):
        ranks.on_root(lambda: print(request, end=""))
        return 0
    if isinstance(request, FilesToVerify):
        return ranks.share(ranks.on_root(lambda: verify(*request)))
    from pipeline import run

    run.run(request, ranks)
    return 0


def _prepare_signals(ranks: Ranks) -> None:
    """Make a serial run end in one line when it is told to end, and leave MPI's ranks to mpiexec.

    With a handler of Python's own, MPICH was seen to hang on SIGTERM.
    """
    if ranks.parallel:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


if __name__ == "__main__":
    sys.exit(streams.run(main))
