"""The file given with `--config`: the options that it holds, in one of several formats."""

from __future__ import annotations

import json
import reprlib
from typing import Any

import yaml

from ctpatches.messages import CallError, did_you_mean, join_lines, printable, quoted
from ctpatches.validation import ValidatedFile
from pipeline.config import FILE_OPTIONS, OPTIONS
from pipeline.errors import reason_of

#: Largest file: a report.json on thousands of patients, and a YAML written by hand.
MAX_BYTES, MAX_YAML_BYTES = 64 << 20, 1 << 16
EXPECTED = (
    "an h5 file or a report.json of this tool, or options in YAML or JSON, such as patch-size: p64"
)


def read_options(path: str) -> dict[str, Any]:
    """Return the options in the file given with `--config`.

    Values are checked as those of `Config`, never parsed: one could pose as an option.
    """
    where = f"--config {quoted(path)}"
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise CallError(f"{where}: {reason}; expected: {EXPECTED}") from None
    try:
        stored = _parsed(path, text)
        found = reprlib.repr(stored)
    except Exception as error:  # h5py and PyYAML raise errors of many kinds
        stored, mark = None, getattr(error, "problem_mark", None)
        found = f"line {mark.line + 1}: {error.problem}" if mark else reason_of(error)  # type: ignore[attr-defined]
    if isinstance(stored, dict) and isinstance(stored.get("configuration"), dict):
        stored = stored["configuration"]  # a report.json
    if not isinstance(stored, dict):
        raise CallError(
            f"{where} holds no configuration; found: {printable(found)}; expected: {EXPECTED}"
        )
    values: dict[str, Any] = {}
    problems = []
    for key, value in stored.items():
        name = str(key).lstrip("-").replace("-", "_")
        try:
            if name in values:
                raise CallError(f"{quoted(key)} occurs twice; expected: once")
            if name not in OPTIONS:
                hint = did_you_mean(name, (option.flag[2:] for option in FILE_OPTIONS.values()))
                expected = f"those of docs/options.md{hint}"
                raise CallError(f"{quoted(key)} is not an option; expected: {expected}")
            if name not in FILE_OPTIONS:
                expected = f"{OPTIONS[name].flag} on the command line"
                found = f"{quoted(key)} does not determine the content of the file"
                raise CallError(f"{found}; expected: {expected}")
            values[name] = OPTIONS[name].checked(value, quoted(key))
        except CallError as error:
            problems.append(str(error))
    if problems:
        raise CallError(join_lines(where, problems))
    return values


def _parsed(path: str, text: bytes) -> Any:
    """Return what is in a file given with `--config`: h5, JSON, which begins with {, or YAML."""
    if text.startswith(b"\x89HDF\r\n\x1a\n"):
        with ValidatedFile(path, complete=False) as file:
            return file.config
    if text.lstrip().startswith(b"{"):
        return json.loads(text)
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"more than {MAX_YAML_BYTES} bytes that are not JSON")
    return yaml.safe_load(text)
