"""The command `stitch`: a slice from the patches of a pair, as a DICOM file or an array."""

from __future__ import annotations

import argparse
import importlib
import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.files import atomic_write
from ctpatches.messages import CallError, RunError, errors_naming, printable, quoted
from ctpatches.stitching import DESCRIPTION, ROLES, UNITS, Image, stitch
from ctpatches.validation import opened


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    add = parser.add_argument
    add("file", metavar="FILE", help="an h5 file of ctpatches")
    add(
        "--pair",
        type=int,
        required=True,
        metavar="N",
        help="row of its pair/ table, from 0; required",
    )
    add(
        "--side",
        choices=ROLES,
        default="target",
        help="whose patches, and with --values whose normalisation is undone; default: %(default)s",
    )
    add(
        "--values",
        metavar="FILE.npy",
        help="a network's output for the patches of the pair, in the order of the file; "
        "default: the file's own patches",
    )
    add("--scale", type=float, default=1.0, metavar="S", help="1, 0.8 or 0.6; default: %(default)g")
    add(
        "--unit",
        choices=UNITS,
        default="hu",
        help="of .npy: HU, stored values, or as the file holds them; default: %(default)s",
    )
    add(
        "--source",
        metavar="PATH",
        help="for .dcm: the input folder of the run, or the very slice whose header is taken; from "
        "the folder that is the slice of --side, and with --values the input slice",
    )
    add("--series-uid", metavar="UID", help="for .dcm: the series to put it in; default: a new one")
    add(
        "--description",
        default=DESCRIPTION,
        metavar="TEXT",
        help="for .dcm: what was done to the slice; default: %(default)s",
    )
    add("--output", required=True, metavar="FILE", help="a .dcm or .npy file to make; required")
    add(
        "--overwrite", action="store_true", help="replace an output that exists; default: refuse to"
    )


def run(options: argparse.Namespace) -> None:
    """Make the slice that the command line asks for.

    Raises
    ------
    ToolError
        The call or a file is wrong.
    """
    dicom = _check(options)
    lines = []
    try:
        values = _load(options.values) if options.values else None
        unit = "hu" if dicom else options.unit
        image = stitch(values, options.file, options.pair, options.side, options.scale, unit)
        if dicom:
            lines = _save_dicom(image, options)
        else:
            _save_array(image, options.output)
    except OSError as error:
        if error.strerror is None:  # of HDF5, with the file's name in it
            raise RunError(printable(error)) from error
        raise RunError(f"{quoted(error.filename or options.file)}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise RunError(printable(error)) from error
    print("\n".join([*lines, f"{'output':10} {printable(options.output)}"]))


def _check(options: argparse.Namespace) -> bool:
    """Return whether DICOM is wanted, if the call is right."""
    ending = os.path.splitext(options.output)[1].lower()
    if ending not in (".dcm", ".ima", ".npy"):
        raise CallError(f"--output {quoted(options.output)}; wanted: a name ending in .dcm or .npy")
    dicom: bool = ending != ".npy"
    if dicom and not options.source:
        raise CallError("a .dcm needs --source, the input folder of the run or the source slice")
    if dicom and options.scale != 1:
        raise CallError(f"--scale {options.scale:g} fits no source slice; wanted: .npy, or scale 1")
    if dicom:
        try:
            _dicom_export().check_texts(options.series_uid, options.description)
        except ValueError as error:
            raise CallError(printable(error)) from error
    if os.path.lexists(options.output) and not options.overwrite:
        raise CallError(f"--output {quoted(options.output)} exists; add --overwrite to replace it")
    return dicom


def _load(path: str) -> NDArray[Any]:
    try:
        # Mapped, so that a shape which the file is too short for takes no memory.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RunError(f"--values {quoted(path)} is no .npy file") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not values.ndim:
        raise RunError(f"--values {quoted(path)} holds no array of numbers")
    return values


def _dicom_export() -> ModuleType:
    """Import what writes DICOM: an array can be written without pydicom."""
    try:
        return importlib.import_module("ctpatches.dicom_export")
    except ModuleNotFoundError as error:
        raise RunError("a .dcm needs pydicom: pip install pydicom") from error


def _save_dicom(image: Image, options: argparse.Namespace) -> list[str]:
    """Write the slice; return what to print about it."""
    source = _source(options)
    derived = _dicom_export().write_dicom(
        image,
        source,
        options.output,
        series_uid=options.series_uid,
        description=options.description,
    )
    lines = [f"{'slice':10} {printable(source)}", f"{'series':10} {derived.series_uid}"]
    if derived.clipped:
        lines.append(
            f"{'clipped':10} {derived.clipped} of {image.size} pixels to "
            f"{derived.low_hu:g} ... {derived.high_hu:g} HU"
        )
    return lines


def _save_array(image: Image, path: str) -> None:
    with (
        errors_naming(path, "cannot be written"),
        atomic_write(path) as partial,
        open(partial, "wb") as file,
    ):
        np.save(file, image)


def _source(options: argparse.Namespace) -> str:
    """Return the slice whose header is taken.

    Raises
    ------
    RunError
        It is not there, or lies at another place in the patient than the pair.
    """
    path: str = options.source
    with opened(options.file) as source:
        name = source.slice_file("input" if options.values else options.side, options.pair)
        position = float(source.values("pair/position_mm", options.pair))
    if os.path.isdir(path):
        path = os.path.join(path, name)
    if os.path.realpath(path) == os.path.realpath(options.output):
        raise CallError(f"--output {quoted(options.output)} is the source slice; name another")
    if not os.path.isfile(path):
        raise RunError(
            f"no slice {quoted(path)}; name the slice itself with --source if it was moved, or if "
            "its name is a pseudonym"
        )
    found_mm, thickness_mm = _dicom_export().position_of(path)
    # As far apart as input and target of a pair may lie, see `pairing.tolerance_mm`.
    if found_mm is not None and abs(found_mm - position) > max(0.01, 0.1 * thickness_mm):
        raise RunError(
            f"{quoted(path)} lies at {found_mm:g} mm, pair {options.pair} at "
            f"{position:g} mm; wanted: the slice that the patches were cut from"
        )
    return path
