"""The command `stitch`: a slice from the patches of a pair, as a DICOM file or an array."""

from __future__ import annotations

import argparse
import os

import numpy as np

from ctpatches.files import atomic_write
from ctpatches.messages import CallError, RunError, errors_naming, printable, quoted
from ctpatches.stitching import ROLES, UNITS, Image, stitch
from ctpatches.validation import opened


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    add = parser.add_argument
    add("file", metavar="FILE", help="an h5 file of ctpatches")
    add("--pair", type=int, required=True, metavar="N", help="row of pair/, from 0; required")
    add(
        "--role",
        choices=ROLES,
        default="target",
        help="whose patches are used, and with --values whose normalisation is inverted; "
        "default: %(default)s",
    )
    add(
        "--values",
        metavar="FILE.npy",
        help="output of a network for the patches of the pair, in the order of the file; "
        "default: the patches in the file",
    )
    add("--scale", type=float, default=1.0, metavar="S", help="1, 0.8 or 0.6; default: %(default)g")
    add("--unit", choices=UNITS, default="hu", help="unit of a .npy output; default: %(default)s")
    add(
        "--source",
        metavar="PATH",
        help="for .dcm: the input folder of the run, or the slice whose header is used; in the "
        "folder this is the slice of --role, and with --values the input slice",
    )
    add("--series-uid", metavar="UID", help="for .dcm: series of the slice; default: a new one")
    add(
        "--description",
        default="stitched from patches",
        metavar="TEXT",
        help="for .dcm: description of the derivation; default: %(default)s",
    )
    add("--output", required=True, metavar="FILE", help="the .dcm or .npy file; required")
    add("--overwrite", action="store_true", help="replace an existing output; default: an error")


def run(options: argparse.Namespace) -> None:
    """Write the slice and print its name."""
    ending = os.path.splitext(options.output)[1].lower()
    dicom = ending in (".dcm", ".ima")
    output = f"--output {quoted(options.output)}"
    if not dicom and ending != ".npy":
        raise CallError(f"{output}; expected: a name ending in .dcm or .npy")
    if dicom and not options.source:
        raise CallError("a .dcm needs --source, the input folder of the run or the source slice")
    if dicom and options.scale != 1:
        raise CallError(f"no source slice has --scale {options.scale:g}; expected: 1, or a .npy")
    if os.path.lexists(options.output) and not options.overwrite:
        raise CallError(f"{output} exists; add --overwrite to replace it")
    values = None
    if options.values:
        with errors_naming(options.values, "cannot be read as .npy"):
            # Mapped: a shape larger than the file needs no memory.
            values = np.lib.format.open_memmap(options.values, mode="r")
    unit = "hu" if dicom else options.unit
    image = stitch(values, options.file, options.pair, options.role, options.scale, unit)
    if dicom:
        _write_dicom(image, options)
    else:
        with (
            errors_naming(options.output, "cannot be written"),
            atomic_write(options.output) as partial,
            open(partial, "wb") as file,
        ):
            np.save(file, image)
    print(f"output     {printable(options.output)}")


def _write_dicom(image: Image, options: argparse.Namespace) -> None:
    """Write the slice; print its source, its series and how many pixels were clipped."""
    try:
        from ctpatches import dicom_export
    except ModuleNotFoundError as error:
        raise RunError("a .dcm needs pydicom: pip install pydicom") from error
    dicom_export.check_texts(options.series_uid, options.description)
    with opened(options.file) as file:
        name = file.slice_file("input" if options.values else options.role, options.pair)
        position_mm = float(file.values("pair/position_mm", options.pair))
    source = options.source
    if os.path.isdir(source):
        source = os.path.join(source, name)
    if os.path.realpath(source) == os.path.realpath(options.output):
        raise CallError(f"--output {quoted(options.output)} is the source slice; name another")
    if not os.path.isfile(source):
        raise RunError(
            f"no slice {quoted(source)}; name the slice itself with --source if it was moved, or "
            "if its name is a pseudonym"
        )
    written = dicom_export.write_dicom(
        image,
        source,
        options.output,
        description=options.description,
        series_uid=options.series_uid,
        position_mm=position_mm,
    )
    print(f"slice      {printable(source)}\nseries     {written.series_uid}")
    if written.clipped:
        low, high = written.low_hu, written.high_hu
        print(f"clipped    {written.clipped} of {image.size} pixels to {low:g} ... {high:g} HU")
