"""The file given with `--config`: JSON, or an h5 file of this tool with JSON in it.

Each value is converted by the type of its option. None is ever part of a command line: a value
could pose as an option.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.options import FILE_OPTIONS
from utils import CallError, quoted

MAX_BYTES = 1 << 20
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read(path: str) -> dict[str, Any]:
    """Return the options in a configuration file, by name of their field in `Config`.

    Accepted are those that decide what the output holds.

    Raises
    ------
    CallError
        The file cannot be read, holds no configuration, or a value that its option does not accept.
    """
    values = {}
    for key, value in _load(path).items():
        where = f"--config {quoted(path)}: {quoted(key)}"
        if key not in FILE_OPTIONS:
            raise CallError(f"{where} is not one of the options in a configuration")
        option = FILE_OPTIONS[key]
        if not option.kind.fits(value) and not (value is None and option.default is None):
            expected = option.kind.expected
            raise CallError(f"{where} is {_found(value)}; expected: {expected}")
        try:
            values[key] = option.checked(value)
        except ValueError as error:
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


def _found(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        text = type(value).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."
