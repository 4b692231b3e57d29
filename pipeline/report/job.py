"""The job as the report may show it: no folders and, with `--anonymize`, no names."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config import Config
from pipeline.option_kinds import PATCH_OVERLAPS, File, Text
from pipeline.options import FILE_OPTIONS, OPTIONS, Option

#: Options whose value is a path or a name that the user gave.
PATHS = [o for o in OPTIONS.values() if isinstance(o.kind, File) and o.in_config]
NAMES = [o for o in FILE_OPTIONS.values() if isinstance(o.kind, Text)]
HIDDEN = "\u2026"
#: Parts of warnings that name no patient; with pseudonyms, warnings are counted by them.
WARNING_KINDS = ("not the same anatomy", "paired by InstanceNumber", "fewer than --random_N")


def is_default(config: Config, option: Option) -> bool:
    """Return whether an option has the value that it has when it is not given."""
    default = option.default
    if option.name == "overlap":
        default = PATCH_OVERLAPS.get(config.patch_size)
    return bool(getattr(config, option.name) == default)


def command(config: Config) -> list[str]:
    """Return the command that writes the same file: a line per option, quoted as for a shell.

    It follows from the configuration alone, so options that do not affect the file are not in it.
    Of paths it has the last name; with `--anonymize` neither paths nor names.
    """
    lines = ["python main.py", *map(shlex.join, _options(config))]
    return [line.replace(shlex.quote(HIDDEN), HIDDEN) for line in lines]


def _options(config: Config) -> Iterator[list[str]]:
    for option in PATHS:
        if (path := getattr(config, option.name)) is not None:
            hidden = config.anonymize
            yield _words(option.flag, HIDDEN if hidden else os.path.basename(os.path.abspath(path)))
    for option in FILE_OPTIONS.values():
        if not is_default(config, option):
            hidden = config.anonymize and option in NAMES
            value = option.kind.text(getattr(config, option.name))
            yield _words(option.flag, HIDDEN if hidden else value)


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
