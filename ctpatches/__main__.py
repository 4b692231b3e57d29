"""The command line of the package: `python -m ctpatches verify|info|stitch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ctpatches import __version__, stitch_command, streams
from ctpatches.checksums import verify
from ctpatches.file import overview
from ctpatches.messages import CallError, RunError, ToolError, printable, quoted

PROGRAM = "ctpatches"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CallError(f"{message} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="python -m ctpatches", description="Reads h5 files of ctpatches.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    for name, run, text in (
        ("verify", _verify, "compare every byte of files with their checksums"),
        ("info", _info, "print an overview of a file"),
    ):
        add(name, run, text).add_argument("files", nargs="+", metavar="FILE", help="an h5 file")
    stitching = add("stitch", _stitch, "assemble a slice from the patches of a pair")
    stitch_command.add_options(stitching)
    return parser


def _verify(options: argparse.Namespace) -> int:
    """Print whether each file is as it was written; return 1 if one is not."""
    status = 0
    for file in options.files:
        try:
            damages = verify(file)
        except OSError as error:
            damages = [f"cannot be read: {error.strerror or error}"]
        for damage in damages:
            streams.print_error(f"{quoted(file)}: {damage}", PROGRAM)
            status = 1
        if not damages:
            print(f"{printable(file)}: every byte as it was written")
    return status


def _info(options: argparse.Namespace) -> int:
    for file in options.files:
        try:
            print("\n".join(overview(file)))
        except OSError as error:
            raise RunError(f"{quoted(file)}: {error.strerror or error}") from error
        except ValueError as error:
            raise RunError(printable(error)) from error
    return 0


def _stitch(options: argparse.Namespace) -> int:
    stitch_command.run(options)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 (failed run) or 2 (invalid call)."""
    try:
        options = build_parser().parse_args(argv)
        return int(options.run(options))
    except ToolError as error:
        streams.print_error(error, PROGRAM)
        return error.status
    except SystemExit as leaving:  # --help, --version
        return int(leaving.code or 0)


if __name__ == "__main__":
    sys.exit(streams.run(main, PROGRAM))
