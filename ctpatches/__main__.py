"""The command line of the package: `python -m ctpatches verify|info|stitch|convert`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ctpatches import __version__, convert_command, stitch_command, streams, verify_command
from ctpatches.file import overview
from ctpatches.messages import ToolError, printable, quoted
from ctpatches.parser import Parser

PROGRAM = "ctpatches"
COMMANDS = {
    "verify": "compare every byte of files with their checksums",
    "info": "print an overview of a file",
    "stitch": "assemble slices from patches, as DICOM, NumPy array or NIfTI",
    "convert": "store the patches of a file in another way",
}


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m ctpatches", description="Reads h5 files of ctpatches.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if name == "stitch":
            stitch_command.add_options(command)
        elif name == "convert":
            convert_command.add_options(command)
        else:
            command.add_argument("files", nargs="+", metavar="FILE", help="an h5 file")
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
            convert_command.run(options)
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


if __name__ == "__main__":
    sys.exit(streams.run(main, PROGRAM))
