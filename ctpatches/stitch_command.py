"""The command `stitch`: slices from patches, as DICOM files, a NumPy array or a NIfTI file."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import sys
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from ctpatches.checksums import pixel_digest
from ctpatches.dicom.header import read_slice
from ctpatches.dicom.pixels import read_hu
from ctpatches.dicom.slice_file import check_position, parsing
from ctpatches.file import abbreviated
from ctpatches.files import Invalid, atomic_folder, atomic_write, named_errors, open_regular
from ctpatches.messages import CallError, RunError, printable, quoted
from ctpatches.schema import ROLES
from ctpatches.stitching import UNITS, Image, check_pair, stitch
from ctpatches.structure import open_hdf5
from ctpatches.validation import ValidatedFile, opened

#: Endings of the names of files, by format.
FORMATS = {"dicom": (".dcm", ".ima"), "npy": (".npy",), "nifti": (".nii.gz", ".nii")}
#: A valid UID (PS3.5 9.1).
UID = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*"
#: Beyond it no number can be a value to fill with, float32.
MAX_FILL = 1e30


@dataclass
class StitchedOutput:
    """An output: all slices of a patient, or the slice of `--pair`."""

    options: argparse.Namespace
    file: ValidatedFile
    values: Any  # of `--values`; None for the patches in the file
    patient: str
    pairs: list[int]
    path: str
    pixels: int = 0  # of the slices assembled so far
    empty: int = 0  # those without a patch

    def image(self, pair: int) -> Image:
        """Return a slice, its pixels without a patch filled and counted."""
        chosen = self.options
        image = stitch(self.values, self.file, pair, chosen.role, chosen.scale, chosen.unit)
        empty = np.isnan(image)
        self.pixels += image.size
        self.empty += int(empty.sum())
        if chosen.fill is not None and empty.any():
            fill = self._input_hu(pair, image.shape) if chosen.fill == "input" else chosen.fill
            np.copyto(image, fill, where=empty)
        return image

    def source(self, pair: int, role: str = "") -> tuple[str, float]:
        """Return the path of a source slice, by default of the output's, and its position."""
        role = role or ("input" if self.options.values else self.options.role)
        path = self.options.source
        if os.path.isdir(path):
            path = os.path.join(path, self.file.slice_file(role, pair))
        if not os.path.isfile(path):
            raise RunError(
                f"no slice {quoted(path)}; name the slice itself with --source if it was moved, or "
                "if its name is a pseudonym"
            )
        return path, float(self.file.values("pair/position_mm", pair))

    def _input_hu(self, pair: int, shape: tuple[int, ...]) -> Image:
        """Return the input slice, whose pixels must be those that the patches were cut from."""
        path, position_mm = self.source(pair, "input")
        one = read_slice("", path)
        check_position(one, position_mm)
        if (one.rows, one.columns) != shape:
            found = f"{one.rows} x {one.columns} pixels"
            raise RunError(f"{quoted(path)} has {found}; expected: {' x '.join(map(str, shape))}")
        hu = read_hu("", one)
        digest = "pair/input_digest"  # since format version 2
        if self.file.version > 1 and pixel_digest(hu) != int(self.file.values(digest, pair)):
            raise RunError(f"{quoted(path)} has other pixels than the patches were cut from")
        return hu


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
    words = {None: "air, -1024 HU" if form == "dicom" else "NaN", "input": "the input slice"}
    fill = words.get(options.fill) or f"{options.fill:g}"
    values = _mapped(options.values) if options.values else None
    with opened(options.file) as file:
        outputs = _outputs(options, form, file, values)
        chosen = [pair for one in outputs for pair in one.pairs]
        _check_values(options, values, file, chosen)
        if file.config.get("nsplit", 1) != 1 and {0, file.pairs - 1} & {*chosen}:
            found = f"{quoted(options.file)} is one of several files of a run with --nsplit"
            hint = "patches and slices at its beginning and end may be in the files next to it"
            print(f"{program}: warning: {found}: {hint}", file=sys.stderr)
        for one in outputs:
            if options.pair is None:
                print(f"patient    {printable(one.patient)}, {len(one.pairs)} slices")
            if form == "dicom":
                _write_dicom_slices(one)
            else:
                _write_volume(one, form)
            if one.empty:
                share = one.empty / one.pixels
                print(f"no patch   {one.empty} of {one.pixels} pixels ({share:.2%}): {fill}")
            print(f"output     {printable(one.path)}", flush=True)
    empty = sum(one.empty for one in outputs)
    if empty and options.fill is None:
        warning = f"{empty} of {sum(one.pixels for one in outputs)} pixels have no patch"
        hint = "--fill input takes them from the input slices"
        print(f"{program}: warning: {warning} and are {fill}; {hint}", file=sys.stderr)


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
        check_texts(options.series_uid, options.description)
        options.unit = "hu"
    return form


def check_texts(series_uid: str | None, description: str) -> None:
    """Refuse a series UID or a description that is not valid in the header of every slice.

    A slice may have any character set, and a backslash separates two values (PS3.5 6.2).
    """
    for name, text, pattern, expected in (
        ("series UID", series_uid, UID, "digits and dots, as in 2.25.1234"),
        ("description", description, r"[ -\[\]-~]*", "plain ASCII without backslash"),
    ):
        if text is not None and (len(text) > 64 or not re.fullmatch(pattern, text)):
            raise CallError(f"{name} {quoted(text)}; expected: up to 64 characters, {expected}")


def _format_of(path: str) -> str:
    """Return the format that the name of a file is of; "" for a folder."""
    forms = (form for form, endings in FORMATS.items() if path.lower().endswith(endings))
    return next(forms, "")


def _mapped(name: str) -> Any:
    """Return the array or the dataset of `--values`, from which only parts are read."""
    path, _, dataset = (name, "", "") if os.path.exists(name) else name.rpartition(":")
    path = path or name
    os.close(open_regular(path))  # an error of the system says more than that of a library
    if not h5py.is_hdf5(path):
        with parsing(path, "cannot be read as .npy"):
            # Mapped: a shape larger than the file needs no memory.
            return np.lib.format.open_memmap(path, mode="r")
    file = open_hdf5(path)
    with parsing(path, "cannot be read as HDF5"):
        found = file.get(dataset or "/")
        has_views = dataset in ROLES and f"views/{dataset}" in file
        known = [quoted(key) for key, item in file.items() if isinstance(item, h5py.Dataset)]
    if isinstance(found, h5py.Dataset) and found.shape is not None:
        return found
    expected = f"--values {printable(path)}:DATASET, one of: {abbreviated(known)}"
    if has_views:
        expected = f"--role {dataset} without --values, as the file contains views"
    raise RunError(f"{quoted(path)} has no dataset {quoted(dataset)}; expected: {expected}")


def _outputs(
    options: argparse.Namespace, form: str, file: ValidatedFile, values: Any
) -> list[StitchedOutput]:
    """Return what becomes an output; those that exist are refused without `--overwrite`."""
    if options.pair is not None:
        check_pair(file, options.pair)
    elif options.patient not in (None, *file.patients):
        known = abbreviated(list(map(quoted, file.patients)))
        raise RunError(f"no patient {quoted(options.patient)}; expected: one of: {known}")
    pairs: dict[str, list[int]] = {}
    for pair, patient in enumerate(file.texts("pair/patient")):
        if options.pair in (None, pair) and options.patient in (None, patient):
            pairs.setdefault(patient, []).append(pair)
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
        out.append(StitchedOutput(options, file, values, patient, rows, path))
    return out


def _check_values(
    options: argparse.Namespace, values: Any, file: ValidatedFile, pairs: list[int]
) -> None:
    """Refuse values of a series that are neither for the whole file nor for its pairs."""
    found, chosen = (*np.shape(values), 0)[0], int(file.blocks[1][pairs].sum())
    if values is None or options.pair is not None or found in (chosen, file.patches):
        return
    expected = f"{file.patches}, all of the file"
    if options.patient:
        expected += f", or {chosen}, those of {quoted(options.patient)}"
    problem = f"has values for {found} patches; expected: {expected}"
    raise RunError(f"{quoted(options.values)} {problem}")


def _write_dicom_slices(one: StitchedOutput) -> None:
    """Write DICOM files, one at a time, as a series of its own; print its UID."""
    from ctpatches.dicom_export import write_dicom  # here: needs pydicom

    options, single = one.options, one.options.pair is not None
    series_uid = options.series_uid or f"2.25.{uuid.uuid4().int}"  # PS3.5 B.2
    place = os.path.dirname(one.path) if single else one.path
    sources = [one.source(pair) for pair in one.pairs]
    names = [os.path.basename(one.path if single else path) for path, _ in sources]
    for name, (path, _) in zip(names, sources, strict=True):
        if os.path.realpath(path) == os.path.realpath(os.path.join(place, name)):
            raise CallError(f"--output {quoted(options.output)} is the source slice; name another")
    if not single and os.path.isdir(place) and (others := set(os.listdir(place)) - set(names)):
        found = quoted(os.path.join(place, min(others)))
        raise RunError(f"{found} is not of this series; remove it, or name another --output")
    clipped: Counter[tuple[float, float]] = Counter()
    with contextlib.nullcontext(place) if single else atomic_folder(place) as folder:
        for pair, name, source in zip(one.pairs, names, sources, strict=True):
            path = os.path.join(folder, name)
            clipped += write_dicom(one.image(pair), *source, path, series_uid, options.description)
    if single:
        print(f"slice      {printable(sources[0][0])}")
    print(f"series     {series_uid}")
    for (low, high), pixels in clipped.items():
        print(f"clipped    {pixels} of {one.pixels} pixels to {low:g} ... {high:g} HU")


def _write_volume(one: StitchedOutput, form: str) -> None:
    """Write slices in the order of their positions as one .npy or NIfTI file."""
    shapes = one.file.view_shape(np.array(one.pairs), one.options.scale)
    if (shapes != shapes[:, :1]).any():
        raise RunError(f"slices of {quoted(one.patient)} differ in size; write DICOM")
    if form == "nifti":
        from ctpatches.nifti_export import affine, write_nifti  # here: needs pydicom, nibabel

        to_mm = affine([one.source(pair) for pair in one.pairs], one.path)
    volume = np.empty((len(one.pairs), *shapes[:, 0]), np.float32)
    for at, pair in enumerate(one.pairs):
        volume[at] = one.image(pair)
    if form == "nifti":
        write_nifti(volume, to_mm, one.path)
        return
    with named_errors(one.path), atomic_write(one.path) as partial, open(partial, "wb") as file:
        np.save(file, volume if one.options.pair is None else volume[0])
