"""The command line: parsed with the options of `Config`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

from ctpatches import __version__
from ctpatches.messages import CallError, printable, quoted
from pipeline.config import FILE_OPTIONS, GROUPS, OPTIONS, Config

_DOCUMENTED = {option.flag.replace("_", "-"): option.flag for option in OPTIONS.values()}
MAX_CONFIG_BYTES = 1 << 20


class FilesToVerify(NamedTuple):
    """What `--verify` asks for: h5 files, and the folder of the scans that they were made from."""

    files: list[str]
    input_folder: str | None


#: What a command line asks for: a run, files to verify, or the text of --help or --version.
Request: TypeAlias = Config | FilesToVerify | str


class _Parser(argparse.ArgumentParser):
    """Raises an error instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise CallError(f"{printable(message)} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; what it parses has the given options only."""
    parser = _Parser(
        prog="main.py",
        description="Turn folders of paired CT scans into one h5 file of training patches.",
        epilog="Every option may be spelled with dashes or with underscores.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for option in OPTIONS.values():
        text = option.help.replace("%", "%%")
        groups[option.group].add_argument(option.flag, help=text, **option.kind.arguments)
    groups["output"].add_argument(
        "--verify",
        nargs="+",
        metavar="FILE",
        help="check every byte of finished h5 files against their checksums and, with "
        "--input-folder, that they were created from its scans; do nothing else; default: none",
    )
    groups["run"].add_argument(
        "--config",
        metavar="FILE",
        help="read all options that determine the content of the file from an h5 file of this tool "
        "or from JSON; options on the command line take precedence; default: none",
    )
    version = f"%(prog)s {__version__}"
    groups["run"].add_argument("--version", action="version", version=version)
    return parser


def _documented(argument: str) -> str:
    """Return an argument with the name of its option as it stands in `--help`."""
    name, equals, value = argument.partition("=")
    if equals and value == "--":  # argparse would drop it
        raise CallError(f"{printable(name)} has no value (see --help)")
    return _DOCUMENTED.get(name.replace("_", "-"), name) + equals + value


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for, or raise CallError."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            given = vars(build_parser().parse_args([_documented(word) for word in argv]))
    except SystemExit:  # --help, --version
        return text.getvalue()
    files, path = given.pop("verify", None), given.pop("config", None)
    given = {name: OPTIONS[name].checked(value) for name, value in given.items()}
    if files:
        return FilesToVerify(files, given.get("input_folder"))
    stored = _read_config(path) if path is not None else {}
    # Options that belong together are not taken from two places.
    for name, other in (("patch_size", "overlap"), ("split_file", "split")):
        if name in given:
            stored.pop(other, None)
    if given.get("normalization_type", "hu_window") != "hu_window":
        stored.pop("hu_window", None)
    if "input_folder" not in given:
        raise CallError("--input-folder is required (see --help)")
    try:
        return Config(**{**stored, **given})
    except CallError as error:
        if not stored:
            raise
        source = f"with the options from --config {quoted(path)}"
        raise CallError(f"{error} ({source})") from None


def _read_config(path: str) -> dict[str, Any]:
    """Return the options in the file given with `--config`: JSON, or an h5 file of this tool.

    Values are checked as those of `Config`, never parsed: one could pose as an option.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise CallError(f"--config {quoted(path)}: {reason}") from None
    try:
        stored = json.loads(
            _configuration_of(path) if text.startswith(b"\x89HDF\r\n\x1a\n") else text
        )
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise CallError(
            f"--config {quoted(path)} holds no configuration; "
            "expected: an h5 file of this tool, or a JSON object of options"
        )
    values = {}
    for key, value in stored.items():
        where = f"--config {quoted(path)}: {quoted(key)}"
        if key not in FILE_OPTIONS:
            raise CallError(f"{where} is not one of the options in a configuration")
        values[key] = FILE_OPTIONS[key].checked(value, where)
    return values


def _configuration_of(path: str) -> bytes:
    from ctpatches.validation import opened

    try:
        with opened(path, complete=False) as file:
            return bytes(file.attributes["configuration"])
    except Exception as error:  # h5py raises errors of many kinds for damaged and foreign files
        raise ValueError(path) from error


def verify(files: Sequence[str], input_folder: str | None) -> int:
    """Check finished files; return 1 if any is damaged, or was not made from the scans."""
    from ctpatches import verify_command

    if input_folder is None:
        return verify_command.run(files, "main.py")
    if not os.path.isdir(input_folder):
        raise CallError(f"--input-folder {quoted(input_folder)} is not a folder")
    from pipeline.verification import check_scans

    check = functools.partial(check_scans, root=input_folder)
    return verify_command.run(files, "main.py", check)
