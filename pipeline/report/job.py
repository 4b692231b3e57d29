"""The job as the report may show it: no folders and, with `--anonymize`, no names."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any

from utils import PATCH_OVERLAPS, Config

#: Options that decide what the file holds: as on the command line, unit, meaning.
OPTIONS = {
    "patch_size": ("--patch-size", "", "side of a patch in pixels"),
    "overlap": ("--overlap", "pixels", "shared by neighbouring windows"),
    "edge": ("--edge", "", "the last window of a row: moved inward, or padded"),
    "normalization_type": ("--normalization-type", "", "of each whole image, before augmentation"),
    "tensor_format": ("--tensor-format", "", "position of the channel axis"),
    "random_N": ("--random_N", "pairs", "per patient, drawn at random"),
    "rot_augment": ("--rot_augment", "", "each patch also rotated, and flipped"),
    "ds_augment": ("--ds_augment", "", "patches also from pairs downscaled to 0.8 and 0.6"),
    "air_threshold": ("--air_threshold", "", "windows of air give no patches"),
    "blurr_n_noise": ("--blurr_n_noise", "", "some input images blurred, some with added noise"),
    "intensity": ("--intensity", "", "unit of the pixels before normalisation"),
    "hu_window": ("--hu-window", "HU", "range of the normalisation hu_window"),
    "input_gen_folder": ("--input-gen-folder", "", "name or pattern of the low-dose folders"),
    "target_gen_folder": ("--target-gen-folder", "", "name or pattern of the full-dose folders"),
    "unpaired": ("--unpaired", "", "slices without a partner"),
    "anatomy_check": ("--anatomy-check", "", "pairs that show different anatomy"),
    "split": ("--split", "", "fractions of all patients: train, val, test"),
    "bad_files": ("--bad-files", "", "damaged files"),
    "anonymize": ("--anonymize", "", "names of patients and files replaced by pseudonyms"),
    "seed": ("--seed", "", "seed for all random draws"),
}
#: Options whose value is a path or a name that the user gave.
PATHS = {
    "input_folder": "--input-folder",
    "output_fname": "--output-fname",
    "split_file": "--split-file",
}
NAMES = ("input_gen_folder", "target_gen_folder")
HIDDEN = "\u2026"
#: Parts of warnings that name no patient; with pseudonyms, warnings are counted by them.
WARNING_KINDS = ("not the same anatomy", "paired by InstanceNumber", "fewer than --random_N")

DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(Config)}


def is_default(config: Config, name: str) -> bool:
    """Return whether an option has the value that it has when it is not given."""
    default = PATCH_OVERLAPS.get(config.patch_size) if name == "overlap" else DEFAULTS[name]
    return bool(getattr(config, name) == default)


def command(config: Config) -> list[str]:
    """Return the command that writes the same file: a line per option, quoted as for a shell.

    It follows from the configuration alone, so options that do not affect the file are not in it.
    Of paths it has the last name; with `--anonymize` neither paths nor names.
    """
    lines = ["python main.py", *map(shlex.join, _options(config))]
    return [line.replace(shlex.quote(HIDDEN), HIDDEN) for line in lines]


def _options(config: Config) -> Iterator[list[str]]:
    for name, option in PATHS.items():
        if (path := getattr(config, name)) is not None:
            hidden = config.anonymize
            yield _words(option, HIDDEN if hidden else os.path.basename(os.path.abspath(path)))
    for name, (option, *_) in OPTIONS.items():
        if not is_default(config, name):
            hidden = config.anonymize and name in NAMES
            yield _words(option, HIDDEN if hidden else _typed(name, getattr(config, name)))


def _typed(name: str, value: Any) -> Any:
    return f"p{value}" if name == "patch_size" else value


def _words(option: str, value: Any) -> list[str]:
    if value is True:
        return [option]
    if isinstance(value, tuple):
        return [option, *map(str, value)]
    text = str(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def configuration(config: Config) -> dict[str, Any]:
    """Return the options that decide what the file holds, as the file has them."""
    found: dict[str, Any] = json.loads(config.as_json())
    return found


def warnings(found: Sequence[str], config: Config) -> list[str]:
    """Return the warnings of the run; with `--anonymize`, the number of each kind.

    Their text names patients and files, also such as are in no pair of this file.
    """
    if not config.anonymize:
        return list(found)
    kinds = [next((k for k in WARNING_KINDS if k in text), "other warnings") for text in found]
    return [f"{kind}: {kinds.count(kind)}" for kind in dict.fromkeys(kinds)]
