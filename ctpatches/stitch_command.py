"""The command `stitch`: slices from patches, as DICOM files, a NumPy array or a NIfTI file."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from typing import Any

import h5py
import numpy as np

from ctpatches.files import Invalid
from ctpatches.messages import CallError, RunError, errors_naming, printable, quoted
from ctpatches.schema import ROLES
from ctpatches.stitch_output import Series, Slices, write_dicom_slices, write_volume
from ctpatches.stitching import UNITS, check_pair
from ctpatches.validation import ValidatedFile, opened

#: Endings of the names of files, by format.
FORMATS = {"dicom": (".dcm", ".ima"), "npy": (".npy",), "nifti": (".nii.gz", ".nii")}
#: Beyond it no number can be a value to fill with, float32.
MAX_FILL = 1e30
#: Longer lists of names are abbreviated.
MAX_NAMES = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    add = parser.add_argument
    add("file", metavar="FILE", help="an h5 file of ctpatches")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pair", type=int, metavar="N", help="one slice: row of pair/, from 0")
    which.add_argument("--patient", metavar="NAME", help="all slices of a patient")
    which.add_argument("--all", action="store_true", help="all slices of all patients")
    add(
        "--role",
        choices=ROLES,
        default="target",
        help="whose patches are used, and with --values whose normalisation is inverted; "
        "default: %(default)s",
    )
    add(
        "--values",
        metavar="FILE",
        help="output of a network, a .npy file or FILE.h5:DATASET, for all patches of the h5 file "
        "or those of --pair or --patient, in its order; default: the patches in the file",
    )
    add("--scale", type=float, default=1.0, metavar="S", help="1, 0.8 or 0.6; default: %(default)g")
    add("--unit", choices=UNITS, default="hu", help="of .npy and NIfTI; default: %(default)s")
    add(
        "--fill",
        type=_fill,
        metavar="VALUE",
        help="pixels without a patch: a number, or input for the input slice in the folder "
        "--source; default: air in DICOM, else NaN",
    )
    add(
        "--source",
        metavar="PATH",
        help="for DICOM, NIfTI and --fill input: the input folder of the run, or with --pair the "
        "slice whose header is used; in the folder this is the slice of --role, and with --values "
        "the input slice",
    )
    add("--series-uid", metavar="UID", help="for DICOM: UID of the series; default: a new one")
    add(
        "--description",
        default="stitched from patches",
        metavar="TEXT",
        help="for DICOM: description of the derivation; default: %(default)s",
    )
    add(
        "--format",
        choices=FORMATS,
        default="dicom",
        help="what is written to a folder: a DICOM series, .npy or .nii.gz per patient; "
        "default: %(default)s",
    )
    add(
        "--output",
        required=True,
        metavar="PATH",
        help="a .dcm, .npy or .nii.gz file, or with --patient and --all a folder; required",
    )
    add("--overwrite", action="store_true", help="replace an existing output; default: an error")


def _fill(text: str) -> float | str:
    """Return what `--fill` says."""
    with contextlib.suppress(ValueError):
        if text == "input" or abs(float(text)) < MAX_FILL:
            return text if text == "input" else float(text)
    raise argparse.ArgumentTypeError(f"{text!r}; expected: a number or input")


def run(options: argparse.Namespace, program: str) -> None:
    """Write the slices; print what was written, and a warning about pixels without a patch."""
    form = _checked_format(options)
    if options.fill is None:
        fill = "air, -1024 HU" if form == "dicom" else "NaN"
    else:
        fill = "the input slice" if options.fill == "input" else f"{options.fill:g}"
    pixels = empty = 0
    values = _mapped(options.values) if options.values else None
    with opened(options.file) as file:
        outputs = _outputs(options, form, file)
        slices = Slices(options, file, values, outputs)
        chosen = {pair for one in outputs for pair in one.pairs}
        if file.config.get("nsplit", 1) != 1 and chosen & {0, file.pairs - 1}:
            found = f"{quoted(options.file)} is one of several files of a run with --nsplit"
            hint = "patches and slices at its beginning and end may be in the files next to it"
            print(f"{program}: warning: {found}: {hint}", file=sys.stderr)
        for one in outputs:
            slices.pixels = slices.empty = 0
            if options.pair is None:
                print(f"patient    {printable(one.patient)}, {len(one.pairs)} slices")
            if form == "dicom":
                write_dicom_slices(slices, one)
            else:
                write_volume(slices, one, form)
            if slices.empty:
                share = slices.empty / slices.pixels
                print(f"no patch   {slices.empty} of {slices.pixels} pixels ({share:.2%}): {fill}")
            print(f"output     {printable(one.path)}", flush=True)
            pixels, empty = pixels + slices.pixels, empty + slices.empty
    if empty and options.fill is None:
        warning = f"{empty} of {pixels} pixels have no patch and are {fill}"
        hint = "--fill input takes them from the input slices"
        print(f"{program}: warning: {warning}; {hint}", file=sys.stderr)


def _checked_format(options: argparse.Namespace) -> str:
    """Return the format of the output; refuse options that contradict each other."""
    output, series = f"--output {quoted(options.output)}", options.pair is None
    form = _format_of(options.output)
    if not form and not series:
        raise CallError(f"{output}; expected: a name ending in .dcm, .npy or .nii.gz")
    if form and (options.all or (series and form == "dicom")):
        raise CallError(f"{output} for a series; expected: a folder, and --format {form}")
    form = form or options.format
    reader = {"dicom": "DICOM", "nifti": "NIfTI"}.get(form, "")
    if options.fill == "input":
        reader = "--fill input"
        if form != "dicom" and options.unit != "hu":
            raise CallError(f"--fill input with --unit {options.unit}; expected: hu")
    if reader:
        if not options.source:
            raise CallError(f"{reader} needs --source, the input folder of the run")
        if (series or options.fill == "input") and not os.path.isdir(options.source):
            expected = f"{reader} needs the input folder of the run"
            raise CallError(f"--source {quoted(options.source)} is not a folder; {expected}")
        if options.scale != 1:
            raise CallError(f"no source slice has --scale {options.scale:g}; {reader} needs 1")
        for package in ("pydicom", "nibabel") if form == "nifti" else ("pydicom",):
            if importlib.util.find_spec(package) is None:
                raise RunError(f"{reader} needs {package}: pip install {package}")
    if options.series_uid and options.all:
        raise CallError("--series-uid is that of one series; expected: --pair or --patient")
    if form == "dicom":
        from ctpatches.dicom_export import check_texts

        check_texts(options.series_uid, options.description)
        options.unit = "hu"
    return form


def _format_of(path: str) -> str:
    """Return the format that the name of a file is of; "" for a folder."""
    found = [form for form, endings in FORMATS.items() if path.lower().endswith(endings)]
    return found[0] if found else ""


def _mapped(name: str) -> Any:
    """Return the array or the dataset of `--values`, from which only parts are read."""
    path, _, dataset = (name, "", "") if os.path.exists(name) else name.rpartition(":")
    path = path or name
    with errors_naming(path, "cannot be read"), open(path, "rb"):
        pass
    if not h5py.is_hdf5(path):
        with errors_naming(path, "cannot be read as .npy"):
            # Mapped: a shape larger than the file needs no memory.
            return np.lib.format.open_memmap(path, mode="r")
    with errors_naming(path, "cannot be read as HDF5"):
        file = h5py.File(path)
        found = file.get(dataset or "/")
        has_views = dataset in ROLES and f"views/{dataset}" in file
        known = [key for key, item in file.items() if isinstance(item, h5py.Dataset)]
    if isinstance(found, h5py.Dataset):
        return found
    expected = f"--values {printable(path)}:DATASET, {_few(known)}"
    if has_views:
        expected = f"--role {dataset} without --values, as the file contains views"
    raise RunError(f"{quoted(path)} has no dataset {quoted(dataset)}; expected: {expected}")


def _few(names: list[str]) -> str:
    """Return what can be chosen, for a message."""
    text = ", ".join(map(quoted, names[:MAX_NAMES]))
    return f"one of: {text}{', ...' if len(names) > MAX_NAMES else ''}"


def _outputs(options: argparse.Namespace, form: str, file: ValidatedFile) -> list[Series]:
    """Return what becomes an output; those that exist are refused without `--overwrite`."""
    pairs: dict[str, list[int]] = {}
    for pair, patient in enumerate(file.texts("pair/patient")):
        pairs.setdefault(patient, []).append(pair)
    if options.pair is not None:
        check_pair(file, options.pair)
        pairs = {"": [options.pair]}
    elif not options.all:
        if options.patient not in pairs:
            raise RunError(f"no patient {quoted(options.patient)}; expected: {_few(list(pairs))}")
        pairs = {options.patient: pairs[options.patient]}
    out = []
    for patient, rows in pairs.items():
        path = options.output
        if not _format_of(path):
            if patient in ("", ".", "..") or "/" in patient or "\0" in patient:
                raise Invalid(file.path, f"names the patient {patient!r}; expected: a folder")
            ending = "" if form == "dicom" else FORMATS[form][0]
            path = os.path.join(path, f"{patient}{ending}")
        if os.path.lexists(path) and not options.overwrite:
            raise CallError(f"--output {quoted(path)} exists; add --overwrite to replace it")
        out.append(Series(patient, rows, path))
    return out
