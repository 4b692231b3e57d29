"""The kinds of options: the type of a value, how it is written, and which values are valid."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

#: Patch sizes with a default overlap of neighbouring windows, both in pixels.
PATCH_OVERLAPS = {96: 12, 75: 11, 64: 4, 55: 8, 42: 6, 32: 4, 24: 4, 12: 4}
#: Numbers of options are below this: as many digits as the command line accepts.
MAX_INTEGER = 10**18


class Kind:
    """The values of an option: of which type, how they are written, and which are valid."""

    #: The type, for messages.
    expected = ""

    def fits(self, value: object) -> bool:
        """Return whether a value has the type of the option."""
        raise NotImplementedError

    def misfit(self, value: object) -> str:
        """Return the message on a value that does not fit."""
        return f"{str(value)!r}; expected: {self.expected}"

    def parse(self, text: str) -> Any:
        """Return the value of one word of the command line, or raise ValueError."""
        return text

    def check(self, value: Any) -> Any:
        """Return a value that fits as `Config` stores it, or raise ValueError."""
        return value

    def text(self, value: Any) -> Any:
        """Return a value as it is written on the command line, None if it has none."""
        return value


class Flag(Kind):
    """True or false; on the command line given or not."""

    expected = "true or false"

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)


class Text(Kind):
    """A name or a pattern."""

    expected = "a string"

    def fits(self, value: object) -> bool:
        return isinstance(value, str | os.PathLike)

    def check(self, value: Any) -> str:
        return str(os.fspath(value))


class File(Text):
    """The path of a file or a folder."""


class Files(File):
    """The paths of one or several files."""


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    choices: tuple[str, ...]

    @property
    def expected(self) -> str:  # type: ignore[override]
        return f"one of {', '.join(self.choices)}"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value in self.choices

    def misfit(self, value: object) -> str:
        choices = ", ".join(map(repr, self.choices))
        return f"invalid choice: {value!r} (choose from {choices})"

    def parse(self, text: str) -> str:
        if not self.fits(text):
            raise ValueError(self.misfit(text))
        return text


@dataclass(frozen=True)
class Integer(Kind):
    """An integer from `least` up."""

    least: int = 0
    expected = "an integer of at most 18 digits"

    def fits(self, value: object) -> bool:
        return isinstance(value, int) and type(value) is not bool and abs(value) < MAX_INTEGER

    def parse(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < self.least:
            raise ValueError(f"{text!r}; wanted: a whole number from {self.least} up")
        return int(text)

    def check(self, value: int) -> int:
        return self.parse(self.text(value))

    def text(self, value: Any) -> Any:
        return None if value is None else str(value)


class PatchSize(Integer):
    """Pixels per side, written as p55."""

    def parse(self, text: str) -> int:
        match = re.fullmatch(r"p([1-9]\d{0,3})", text)
        if not match:
            names = " ".join(f"p{size}" for size in PATCH_OVERLAPS)
            raise ValueError(
                f"{text!r} is no patch size; wanted: {names}, or any other pN with --overlap M"
            )
        return int(match[1])

    def text(self, value: Any) -> str:
        return f"p{value}"


@dataclass(frozen=True)
class Numbers(Kind):
    """A fixed number of finite numbers."""

    count: int

    @property
    def expected(self) -> str:  # type: ignore[override]
        return f"a list of {self.count} numbers"

    def fits(self, value: object) -> bool:
        # The comparison is false for NaN, infinity, and integers beyond any float.
        return (
            isinstance(value, list | tuple)
            and len(value) == self.count
            and all(type(one) in (int, float) for one in value)
            and all(abs(one) <= sys.float_info.max for one in value)
        )

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not abs(value) <= sys.float_info.max:
            raise ValueError(f"{text!r}; wanted: a number")
        return value

    def check(self, value: Any) -> tuple[float, ...]:
        return tuple(map(float, value))
