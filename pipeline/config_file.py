"""The file given with `--config`: JSON, or an h5 file of this tool with JSON in it.

Each value is converted by the type of its option. None is ever part of a command line: a value
could pose as an option.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from utils import CallError, Config, quoted

MAX_BYTES = 1 << 20
#: As many digits as the command line accepts.
MAX_INTEGER = 10**18
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read(path: str, options: Iterable[argparse.Action]) -> dict[str, Any]:
    """Return the options in a configuration file, by name of their field in `Config`.

    Parameters
    ----------
    path : str
    options : iterable of argparse.Action
        The options of the command line; accepted are those that decide what the output holds.

    Raises
    ------
    CallError
        The file cannot be read, holds no configuration, or a value that its option does not accept.
    """
    accepted = set(json.loads(Config("").as_json()))
    known = {option.dest: option for option in options if option.dest in accepted}
    values = {}
    for key, value in _load(path).items():
        where = f"--config {quoted(path)}: {quoted(key)}"
        if key not in known:
            raise CallError(f"{where} is not one of the options in a configuration")
        try:
            values[key] = _converted(value, known[key])
        except ValueError as error:
            raise CallError(f"{where} is {_found(value)}; expected: {error}") from None
        except argparse.ArgumentTypeError as error:
            raise CallError(f"{where}: {error}") from None
    return values


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(len(_HDF5_SIGNATURE))
            if text != _HDF5_SIGNATURE:
                text += file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise CallError(f"--config {quoted(path)}: {reason}") from None
    try:
        stored = json.loads(_from_h5(path) if text == _HDF5_SIGNATURE else text)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise CallError(
            f"--config {quoted(path)} holds no configuration; "
            "expected: an h5 file of this tool, or a JSON object of options"
        )
    return stored


def _from_h5(path: str) -> bytes:
    from ctpatches.validation import open_file

    try:
        with open_file(path) as file:
            return bytes(file.attrs["configuration"])
    except Exception as error:  # h5py raises errors of many kinds for damaged and foreign files
        raise ValueError(path) from error


def _converted(value: Any, option: argparse.Action) -> Any:
    """Return a JSON value as the option's own type; raise ValueError with what is expected."""
    if value is None and option.default is None:
        return None
    if option.nargs == 0:
        return _checked(value, isinstance(value, bool), "true or false")
    if option.choices:
        choices = list(option.choices)
        return _checked(value, value in choices, f"one of {', '.join(choices)}")
    if isinstance(option.nargs, int):
        expected = f"a list of {option.nargs} numbers"
        fits = isinstance(value, list) and len(value) == option.nargs
        fits = fits and all(type(one) in (int, float) and abs(one) < MAX_INTEGER for one in value)
        return list(map(float, _checked(value, fits, expected)))
    if option.type is None:
        return _checked(value, isinstance(value, str), "a string")
    fits = type(value) is int and abs(value) < MAX_INTEGER
    _checked(value, fits, "an integer of at most 18 digits")
    assert callable(option.type)
    return option.type(f"p{value}" if option.dest == "patch_size" else f"{value}")


def _checked(value: Any, fits: bool, expected: str) -> Any:
    if not fits:
        raise ValueError(expected)
    return value


def _found(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        text = type(value).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."
