"""The command line of the package: `python -m ctpatches verify|info|stitch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ctpatches import __version__, stitch_command, streams
from ctpatches.info import overview
from ctpatches.messages import CallError, ToolError, printable, quoted
from ctpatches.verify import verify_files

PROGRAM = "ctpatches"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CallError(f"{printable(message)} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="python -m ctpatches", description="Reads h5 files of ctpatches.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, add_options, text in (
        ("verify", _verify, _add_files, "compare every byte of files with their checksums"),
        ("info", _info, _add_files, "print an overview of a file"),
        (
            "stitch",
            stitch_command.run,
            stitch_command.add_options,
            "assemble a slice from the patches of a pair",
        ),
    ):
        command = commands.add_parser(
            name, help=text, description=f"{text.capitalize()}.", allow_abbrev=False
        )
        command.set_defaults(run=run)
        add_options(command)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="an h5 file")


def _verify(options: argparse.Namespace) -> int:
    return verify_files(options.files, PROGRAM)


def _info(options: argparse.Namespace) -> int:
    for file in options.files:
        print("\n".join(overview(file)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 (failed run) or 2 (invalid call)."""
    try:
        options = build_parser().parse_args(argv)
        return int(options.run(options))
    except SystemExit as leaving:  # --help, --version
        return int(leaving.code or 0)
    except ToolError as error:
        message, status = str(error), error.status
    except (OSError, ValueError, IndexError) as error:
        message, status = printable(error), 1
        if isinstance(error, OSError) and error.filename:  # else the file is named in the text
            message = f"{quoted(error.filename)}: {error.strerror}"
    streams.print_error(message, PROGRAM)
    return status


if __name__ == "__main__":
    sys.exit(streams.run(main, PROGRAM))
