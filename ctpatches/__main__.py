"""The command line of the package: `python -m ctpatches verify|info|stitch|convert`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ctpatches import __version__, stitch_command, streams, verify_command
from ctpatches.conversion import convert
from ctpatches.file import overview, rounding_text, stored_as
from ctpatches.messages import ToolError, printable, quoted
from ctpatches.parser import Parser
from ctpatches.schema import STORAGE
from ctpatches.validation import ValidatedFile

PROGRAM = "ctpatches"
COMMANDS = {
    "verify": "compare every byte of files with their checksums",
    "info": "print an overview of a file",
    "stitch": "assemble slices from patches, as DICOM, NumPy array or NIfTI",
    "convert": "store the patches of a file in another way",
}
STORAGE_HELP = {
    "store": "every patch, or the views that patches are cut from",
    "dtype": "type of the pixels; int16 for files of --normalization-type None alone",
    "compression": "of the patches",
}


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m ctpatches", description="Reads h5 files of ctpatches.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        for name, text in COMMANDS.items()
    }
    for name in ("verify", "info"):
        parsers[name].add_argument("files", nargs="+", metavar="FILE", help="an h5 file")
    stitch_command.add_options(parsers["stitch"])
    add = parsers["convert"].add_argument
    add("source", metavar="IN", help="an h5 file of ctpatches")
    add("target", metavar="OUT", help="the h5 file to create; missing folders are created")
    for name, text in STORAGE_HELP.items():
        add(f"--{name}", choices=STORAGE[name], help=f"{text}; default: as in IN")
    add("--overwrite", action="store_true", help="replace an existing OUT; default: an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 (failed run) or 2 (invalid call)."""
    try:
        options = build_parser().parse_args(argv)
        if options.command == "verify":
            return verify_command.run(options.files, PROGRAM)
        if options.command == "stitch":
            stitch_command.run(options, PROGRAM)
        elif options.command == "convert":
            _convert(options)
        else:
            for file in options.files:
                print("\n".join(overview(file)))
        return 0
    except SystemExit as leaving:  # --help, --version
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except ToolError as error:
        message, status = str(error), error.status
    except (OSError, ValueError, IndexError, MemoryError) as error:
        message, status = printable(error), 1
        if isinstance(error, OSError) and error.filename:  # else the file is named in the text
            message = f"{quoted(error.filename)}: {error.strerror}"
    streams.print_error(message, PROGRAM)
    return status


def _convert(options: argparse.Namespace) -> None:
    """Convert a file; print how both are stored, and by how much pixels were rounded."""
    given = {name: getattr(options, name) for name in (*STORAGE, "overwrite")}
    convert(options.source, options.target, **given)
    for label, path in (("input", options.source), ("output", options.target)):
        with ValidatedFile(path) as file:
            size = f"{os.path.getsize(path) / 1e6:.1f} MB"
            print(f"{label:10} {printable(path)}, {size}: {stored_as(file)}")
            if label == "output" and (text := rounding_text(file)):
                print(f"rounded    {text}")


if __name__ == "__main__":
    sys.exit(streams.run(main, PROGRAM))
