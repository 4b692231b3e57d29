"""How `Config` declares its options: which values are valid, and how a shell writes them."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import reprlib
import sys
from dataclasses import MISSING, dataclass
from typing import Any

from ctpatches.messages import CallError, did_you_mean

#: Patch sizes with a default overlap of neighbouring windows, both in pixels.
PATCH_OVERLAPS = {96: 12, 75: 11, 64: 4, 55: 8, 42: 6, 32: 4, 24: 4, 12: 4}
#: Options that are documented with underscores.
UNDERSCORED = (
    *("random_N", "air_threshold", "rot_augment", "ds_augment", "blurr_n_noise", "mpi_run"),
    "shuffle_patches",
)
MAX_INTEGER = 10**18 - 1


@dataclass(frozen=True)
class Kind:
    """Which values are valid: of a type, in words, and as arguments of `add_argument`."""

    type: type
    expected: str
    arguments: dict[str, Any]
    default: Any = None
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = MAX_INTEGER
    #: How many values: of two or more, the option has a list.
    count: int = 1

    def is_valid(self, value: Any) -> bool:
        """Return whether Python or JSON may give an option this value."""
        values = value if self.count > 1 and isinstance(value, list | tuple) else [value]
        return len(values) == self.count and all(map(self._is_valid_item, values))

    def _is_valid_item(self, value: Any) -> bool:
        if self.type is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        types = (int, float) if self.type is float else (self.type,)
        return type(value) in types and self.least <= value <= self.most


def _read(number: type[float], word: str) -> float | str:
    """Return the number that a word of the command line is; any other word, which is not valid."""
    try:
        return number(word)
    except ValueError:
        return word


FLAG = Kind(bool, "true or false", {"action": "store_true"}, False)
FILE, FOLDER, NAME = (Kind(str, "a string", {"metavar": name}) for name in ("FILE", "DIR", "NAME"))
PATCH_SIZE = Kind(
    int,
    f"{' '.join(f'p{size}' for size in PATCH_OVERLAPS)}, or with --overlap M any other pN up to "
    "p9999",
    {"metavar": "pN"},
    least=1,
    most=9999,
)


def choice(*words: str) -> Kind:
    """Return the kind of one of a few words, the first by default."""
    metavar = f"{{{','.join(words)}}}"
    return Kind(str, f"one of {', '.join(words)}", {"metavar": metavar}, words[0], words)


def integer(least: int, metavar: str, most: int = MAX_INTEGER, **arguments: Any) -> Kind:
    """Return the kind of an integer from `least` to `most`."""
    limit = "up, of at most 18 digits" if most == MAX_INTEGER else f"to {most}"
    arguments |= {"type": functools.partial(_read, int), "metavar": metavar}
    return Kind(int, f"an integer from {least} {limit}", arguments, least=least, most=most)


def number(least: float, below: float, metavar: str) -> Kind:
    """Return the kind of a number from `least` up, below `below`."""
    arguments = {"type": functools.partial(_read, float), "metavar": metavar}
    expected = f"a number from {least:g} up, below {below:g}"
    return Kind(float, expected, arguments, least=least, most=math.nextafter(below, least))


def numbers(*metavar: str) -> Kind:
    """Return the kind of a few finite numbers."""
    n, most = len(metavar), sys.float_info.max
    arguments = {"type": functools.partial(_read, float), "nargs": n, "metavar": metavar}
    return Kind(float, f"a list of {n} numbers", arguments, least=-most, most=most, count=n)


@dataclass(frozen=True)
class Option:
    """An option of a run; `default` is MISSING where it is required."""

    name: str
    default: Any
    group: str
    kind: Kind
    #: For `--help` and the report; ends with the default where that is None.
    description: str
    unit: str = ""

    @property
    def flag(self) -> str:
        """The option as `--help` has it, such as ``--patch-size``."""
        return "--" + (self.name if self.name in UNDERSCORED else self.name.replace("_", "-"))

    @property
    def is_path(self) -> bool:
        """Whether it is the path of an input or an output."""
        return self.kind in (FILE, FOLDER)

    @property
    def meaning(self) -> str:
        """The description without the default."""
        return self.description.split("; default: ")[0]

    @property
    def help(self) -> str:
        """The description with the default."""
        if self.default in (None, MISSING):
            return self.description
        return f"{self.description}; default: {self.text(self.default)}"

    def text(self, value: Any) -> str:
        """Return a value as a shell writes it; a flag is on or off."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, tuple):
            return " ".join(map(self.text, value))
        if isinstance(value, float):
            return str(value).removesuffix(".0")
        return f"p{value}" if self.kind is PATCH_SIZE else str(value)

    def words(self, value: Any) -> str:
        """Return what a command line that sets a value contains."""
        return self.flag if value is True else f"{self.flag} {self.text(value)}"

    def checked(self, value: Any, where: str = "") -> Any:
        """Return a value as `Config` stores it, or raise CallError naming where it was found."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.kind is PATCH_SIZE and (match := re.fullmatch(r"p?([1-9]\d{0,3})", str(value))):
            value = int(match[1])
        if value is False and "off" in self.kind.choices:  # what YAML reads from `off`
            value = "off"
        if value is None and self.default is None:
            return None
        if not self.kind.is_valid(value):
            where = where or f"argument {self.flag}"
            found, expected = reprlib.repr(value), self.kind.expected
            hint = did_you_mean(value, self.kind.choices)
            raise CallError(f"{where}: {found}; expected: {expected}{hint} (see --help)")
        if isinstance(value, list | tuple):
            return tuple(map(float, value))
        return float(value) if self.kind.type is float else value


def option(group: str, kind: Kind, description: str, unit: str = "", **default: Any) -> Any:
    """Return the field of a dataclass for an option; its default is that of its kind, or given."""
    metadata = {"group": group, "kind": kind, "description": description, "unit": unit}
    return dataclasses.field(metadata=metadata, **{"default": kind.default, **default})
