"""The command line: what it asks for, parsed with the table of options."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

from pipeline import config_file
from pipeline.config import Config
from pipeline.option_kinds import Choice, Files, Flag, Kind, Numbers, Text
from pipeline.options import OPTIONS, Option
from utils import CallError, __version__, printable, quoted


class _Parser(argparse.ArgumentParser):
    """Takes every option with dashes or underscores, and says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise CallError(f"{printable(message)} (see --help)")

    def spelled_as_documented(self, argv: Sequence[str]) -> list[str]:
        """Return the arguments with each option name as it stands in `--help`."""
        documented = {_plain(name): name for name in self._option_string_actions}
        out = []
        for argument in argv:
            name, *value = argument.split("=", 1)
            if value == ["--"]:  # argparse would drop it
                raise CallError(f"{name} has no value (see --help)")
            if name.startswith("--"):
                name = documented.get(_plain(name), name)
            out.append("=".join([name, *value]))
        return out


def _plain(option: str) -> str:
    return option.replace("_", "-")


def build_parser() -> _Parser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="main.py",
        description="Turn folders of paired CT scans into one h5 file of training patches.",
        epilog="Every option may be spelled with dashes or with underscores.",
        allow_abbrev=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS.values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(option.flag, **_arguments(option))
    version = f"%(prog)s {__version__}"
    groups["run"].add_argument("--version", action="version", version=version)
    return parser


def _arguments(option: Option) -> dict[str, Any]:
    """Return the arguments of `ArgumentParser.add_argument` for an option."""
    kind = option.kind
    out = {"help": option.help, "default": kind.text(option.default)}
    if isinstance(kind, Flag):
        return {**out, "action": "store_true"}
    if not isinstance(kind, Text):
        out["type"] = _converter(kind)
    if isinstance(kind, Choice):
        out["choices"] = kind.choices
    if isinstance(kind, Numbers):
        out["nargs"] = kind.count
    if isinstance(kind, Files):
        out["nargs"] = "+"
    if option.without_value is not None:
        out |= {"nargs": "?", "const": option.without_value}
    return {**out, "metavar": option.metavar}


def _converter(kind: Kind) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class FilesToVerify(NamedTuple):
    """What `--verify` is about: h5 files, and the folder of the scans that they were made from."""

    files: list[str]
    input_folder: str | None


#: What a command line asks for: a run, files to verify, or the text of --help or --version.
Request: TypeAlias = Config | FilesToVerify | str


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises
    ------
    CallError
        An option or a value that does not exist, or values that do not go together.
    """
    parser = build_parser()
    spelled = parser.spelled_as_documented(argv)
    given = {field(word.split("=")[0]) for word in spelled if word.startswith("--")}
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            options = parser.parse_args(spelled)
    except SystemExit:  # --help, --version
        return text.getvalue()
    if options.verify:
        return FilesToVerify(options.verify, options.input_folder)
    stored: dict[str, object] = {}
    if options.config is not None:
        stored = config_file.read(options.config)
        # What belongs together is not taken from two places.
        for name, other in (("patch_size", "overlap"), ("split_file", "split")):
            if name in given:
                stored.pop(other, None)
        parser.set_defaults(**stored)
        options = parser.parse_args(spelled)
    try:
        return _config(options, given)
    except CallError as error:
        if not stored:
            raise
        source = f"with the options from --config {quoted(options.config)}"
        raise CallError(f"{error} ({source})") from None


def _config(options: argparse.Namespace, given: set[str]) -> Config:
    """Return the configuration, if its values go together."""
    values = {name: value for name, value in vars(options).items() if OPTIONS[name].in_config}
    if "hu_window" in given and options.normalization_type != "hu_window":
        raise CallError("--hu-window goes with --normalization-type hu_window alone")
    return Config(**values)


def field(option: str) -> str:
    """Return the name of the field of `Config` for an option of the command line."""
    return option.lstrip("-").replace("-", "_")


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
