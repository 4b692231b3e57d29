"""The job as the report may show it: no folders and, with `--anonymize`, no names."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from pipeline.config import FILE_OPTIONS, OPTIONS, Config
from pipeline.options import PATCH_OVERLAPS, Option

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
    lines = ["python main.py"]
    for option in OPTIONS.values():
        value = getattr(config, option.name)
        if option.is_path and value is not None:
            value = os.path.basename(os.path.abspath(value))
        elif option.is_path or option.name not in FILE_OPTIONS or is_default(config, option):
            continue
        text = option.text(value)
        if value is True:
            lines.append(option.flag)
        elif config.anonymize and option.kind.type is str and not option.kind.choices:
            lines.append(f"{option.flag} {HIDDEN}")
        elif isinstance(value, tuple):
            lines.append(f"{option.flag} {text}")
        else:
            join = "=" if text.startswith("-") else " "
            lines.append(f"{option.flag}{join}{shlex.quote(text)}")
    return lines


def warnings(found: Sequence[str], config: Config) -> list[str]:
    """Return the warnings of the run; with `--anonymize`, the number of each kind.

    Their text names patients and files, also those of pairs that are not in this file.
    """
    if not config.anonymize:
        return list(found)
    kinds = [next((k for k in WARNING_KINDS if k in text), "other warnings") for text in found]
    return [f"{kind}: {kinds.count(kind)}" for kind in dict.fromkeys(kinds)]
