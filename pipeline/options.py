"""How `Config` declares its options: which values are valid, and how a shell writes them."""

from __future__ import annotations

import dataclasses
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
    """Which values are valid, in types and in words, and which one is the default."""

    type: type
    expected: str
    #: The name of the value in `--help`, or of each number of a list.
    metavar: str | tuple[str, ...] = ""
    default: Any = None
    #: For the report.
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    #: As for `add_argument`.
    nargs: int | str | None = None
    const: int | None = None

    def read(self, word: str) -> Any:
        """Return the value of a word of the command line; the word itself if it is not valid."""
        try:
            return self.type(word)
        except ValueError:
            return word

    def is_valid(self, value: Any) -> bool:
        """Return whether Python or JSON may give an option this value."""
        if isinstance(self.metavar, tuple):
            is_list = isinstance(value, list | tuple) and len(value) == len(self.metavar)
            return is_list and all(map(self._is_valid_item, value))
        return self._is_valid_item(value)

    def _is_valid_item(self, value: Any) -> bool:
        if self.type is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        types = (int, float) if self.type is float else (self.type,)
        return type(value) in types and self.least <= value <= self.most


FLAG = Kind(bool, "true or false", default=False)
_SIZES = " ".join(f"p{size}" for size in PATCH_OVERLAPS)
PATCH_SIZE = Kind(
    int, f"{_SIZES}, or with --overlap M any other pN up to p9999", "pN", 55, least=1, most=9999
)


def text(metavar: str, default: Any = None) -> Kind:
    """Return the kind of any string; `FILE` and `DIR` are paths."""
    return Kind(str, "a string", metavar, default)


def choice(*words: str) -> Kind:
    """Return the kind of one of a few words, the first by default."""
    expected = f"one of {', '.join(words)}"
    return Kind(str, expected, f"{{{','.join(words)}}}", words[0], choices=words)


def integer(least: int, metavar: str, most: int = MAX_INTEGER, **more: Any) -> Kind:
    """Return the kind of an integer from `least` to `most`."""
    limit = "up, of at most 18 digits" if most == MAX_INTEGER else f"to {most}"
    expected = f"an integer from {least} {limit}"
    return Kind(int, expected, metavar, least=least, most=most, **more)


def number(least: float, below: float, metavar: str, **more: Any) -> Kind:
    """Return the kind of a number from `least` up, below `below`."""
    expected = f"a number from {least:g} up, below {below:g}"
    return Kind(float, expected, metavar, least=least, most=math.nextafter(below, least), **more)


def numbers(*metavar: str, **more: Any) -> Kind:
    """Return the kind of a list of finite numbers."""
    expected = f"a list of {len(metavar)} numbers"
    return Kind(float, expected, metavar, nargs=len(metavar), **more)


@dataclass(frozen=True)
class Option:
    """An option of a run; `default` is MISSING where it is required."""

    name: str
    default: Any
    group: str
    kind: Kind
    #: For `--help` and the report; ends with the default where that is None.
    description: str

    @property
    def flag(self) -> str:
        """The option as `--help` has it, such as ``--patch-size``."""
        return "--" + (self.name if self.name in UNDERSCORED else self.name.replace("_", "-"))

    @property
    def is_path(self) -> bool:
        """Whether it is the path of an input or an output."""
        return self.kind.metavar in ("FILE", "DIR")

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


def option(group: str, kind: Kind, description: str) -> Any:
    """Return the field of a dataclass for an option."""
    metadata = {"group": group, "kind": kind, "description": description}
    return dataclasses.field(default=kind.default, metadata=metadata)
