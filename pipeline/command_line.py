"""The command line: parsed with the options of `Config`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from ctpatches import __version__
from ctpatches.messages import CallError, did_you_mean, join_lines, printable, quoted
from ctpatches.parser import Parser
from pipeline.config import FILE_OPTIONS, GROUPS, OPTIONS, REQUIREMENTS, Config
from pipeline.errors import reason_of

#: Largest file for `--config`: a report.json on thousands of patients, and a YAML written by hand.
MAX_CONFIG_BYTES, MAX_YAML_BYTES = 64 << 20, 1 << 16
_CONFIG_FILE = (
    "an h5 file or a report.json of this tool, or options in YAML or JSON, such as patch-size: p64"
)


class FilesToVerify(NamedTuple):
    """What `--verify` asks for: h5 files, and the folder of the scans that they were made from."""

    files: list[str]
    input_folder: str | None


#: What a command line asks for: a run, files to verify, or the text of --help or --version.
Request: TypeAlias = Config | FilesToVerify | str


def build_parser() -> Parser:
    """Return the parser of the command line; what it parses has the given options only."""
    parser = Parser(
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
        help="read options that determine the content of the file from an h5 file or a report.json "
        "of this tool, or from YAML or JSON; options on the command line take precedence; default: "
        "none",
    )
    version = f"%(prog)s {__version__}"
    groups["run"].add_argument("--version", action="version", version=version)
    return parser


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for, or raise CallError."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            given = vars(build_parser().parse_args(argv))
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
    for name, needed in REQUIREMENTS.items():
        if any(given.get(other, value) != value for other, value in needed.items()):
            stored.pop(name, None)
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
    """Return the options in the file given with `--config`.

    Values are checked as those of `Config`, never parsed: one could pose as an option.
    """
    where = f"--config {quoted(path)}"
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise CallError(f"{where}: {reason}; expected: {_CONFIG_FILE}") from None
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
            f"{where} holds no configuration; found: {printable(found)}; expected: {_CONFIG_FILE}"
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
        from ctpatches.validation import ValidatedFile

        with ValidatedFile(path, complete=False) as file:
            return file.config
    if text.lstrip().startswith(b"{"):
        return json.loads(text)
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"more than {MAX_YAML_BYTES} bytes that are not JSON")
    import yaml

    return yaml.safe_load(text)
