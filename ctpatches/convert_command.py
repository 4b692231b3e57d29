"""The command `convert`: a file stored in another way."""

from __future__ import annotations

import argparse
import os

from ctpatches.conversion import convert
from ctpatches.file import rounding_text, stored_as
from ctpatches.messages import printable
from ctpatches.schema import STORAGE
from ctpatches.validation import ValidatedFile


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    add = parser.add_argument
    add("source", metavar="IN", help="an h5 file of ctpatches")
    add("target", metavar="OUT", help="the h5 file to create; missing folders are created")
    helps = {
        "store": "every patch, or the views that patches are cut from",
        "dtype": "type of the pixels; int16 for files of --normalization-type None alone",
        "compression": "of the patches",
    }
    for name, text in helps.items():
        add(f"--{name}", choices=STORAGE[name], help=f"{text}; default: as in IN")
    add("--overwrite", action="store_true", help="replace an existing OUT; default: an error")


def run(options: argparse.Namespace) -> None:
    """Convert a file; print how both are stored, and by how much pixels were rounded."""
    given = {name: getattr(options, name) for name in (*STORAGE, "overwrite")}
    convert(options.source, options.target, **given)
    for label, path in (("input", options.source), ("output", options.target)):
        with ValidatedFile(path) as file:
            size = f"{os.path.getsize(path) / 1e6:.1f} MB"
            print(f"{label:10} {printable(path)}, {size}: {stored_as(file)}")
            if label == "output" and (text := rounding_text(file)):
                print(f"rounded    {text}")
