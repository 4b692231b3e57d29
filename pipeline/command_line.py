"""The command line: parsed with the options of `Config`."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from ctpatches import __version__
from ctpatches.messages import CallError, quoted
from ctpatches.parser import Parser
from pipeline.config import GROUPS, OPTIONS, REQUIREMENTS, Config


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
        kind, text = option.kind, option.help.replace("%", "%%")
        arguments: dict[str, Any] = {"action": "store_true"}
        if kind.type is not bool:
            count = {"nargs": kind.nargs, "const": kind.const}
            arguments = {"type": kind.read, "metavar": kind.metavar, **count}
        groups[option.group].add_argument(option.flag, help=text, **arguments)
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
    stored: dict[str, Any] = {}
    if path is not None:
        from pipeline.config_file import read_options  # here: for --help, NumPy is not loaded

        stored = read_options(path)
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
