"""Patients: finding their folders, reading the headers of their slices in parts, pairing."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pipeline.cohort.pairing import PatientPairs, pair_slices
from pipeline.config import Config
from pipeline.dicom.header import read_slice
from pipeline.dicom.slice_file import BAD, BadFile
from pipeline.model import LeftOut, Slice
from pipeline.profile import step
from utils import CallError, join_lines, printable, quoted

#: For each role: the dose, and patterns of folder names where no option names the folder.
SERIES = {
    "input": ("low-dose", ("quarter*", "low*")),
    "target": ("full-dose", ("full*", "high*")),
}
#: How deep below a patient its two folders may lie: TCIA has a folder for the date between.
MAX_DEPTH = 4
#: Names of files that are not slices: to name such a file is not to report damage.
STRAY = re.compile(
    r"\..*|(dicomdir|version|license|readme)(\.[^.]*)?"
    r"|.*\.(txt|csv|tsv|json|xml|ya?ml|md|html|pdf|png|jpe?g|gif|bmp|tiff?|db|ini|log)"
    r"|.*\.(zip|gz|tar|7z|mat|np[yz]|h5|nii|mhd|py|sh)",
    re.IGNORECASE | re.DOTALL,
)
#: Files whose headers are read in one go: a patient with many slices is shared by several ranks.
PART_FILES = 32


@dataclass(frozen=True)
class PatientFolders:
    """A patient and its two series folders, as paths below the input folder.

    A series folder is '' if it was not found and may be in a folder that cannot be listed.
    """

    patient: str
    input: str
    target: str
    unlisted: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class SeriesPart:
    """Some files of a series, that are read together."""

    patient: str
    role: str
    files: tuple[str, ...]


@dataclass
class Listing:
    """The files in a patient's two folders, in parts, and what could not be listed."""

    folders: PatientFolders
    parts: list[SeriesPart] = field(default_factory=list)
    strays: int = 0
    bad: list[LeftOut] = field(default_factory=list)


@dataclass
class Headers:
    """The slices of a part, and its files that cannot be used."""

    slices: list[Slice] = field(default_factory=list)
    bad: list[LeftOut] = field(default_factory=list)


def find_patients(config: Config) -> list[PatientFolders]:
    """List the patients below the input folder, each with its input and its target folder.

    Raises `CallError` without a patient, or if one lacks one of its folders or has several.
    """
    root = Path(config.input_folder)
    option = f"--input-folder {quoted(root)}"
    try:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise CallError(f"{option} {what}; expected: a folder with one sub-folder per patient")
        patients, _ = _list(root)
    except OSError as error:
        raise CallError(f"cannot list {option}: {error.strerror}") from None
    if not patients:
        raise CallError(f"{option} holds no folders; expected: one sub-folder per patient")
    problems: list[str] = []
    found = [_find_series(root, patient, config, problems) for patient in patients]
    if problems:
        raise CallError(join_lines(option, problems))
    return found


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, except hidden ones, and those of the files."""

    def fail(error: OSError) -> NoReturn:
        raise error

    _, folders, files = next(os.walk(folder, onerror=fail))
    return sorted(name for name in folders if not name.startswith((".", "__"))), sorted(files)


def _find_series(root: Path, patient: str, config: Config, problems: list[str]) -> PatientFolders:
    found: dict[str, str] = {}
    unlisted: list[LeftOut] = []
    for role, (dose, defaults) in SERIES.items():
        option = f"--{role}-gen-folder"
        pattern = getattr(config, f"{role}_gen_folder")
        patterns = (pattern,) if pattern else defaults
        expected = " or ".join(map(repr, patterns))
        fits = _matching_folders(root, patient, patterns, MAX_DEPTH, unlisted)
        found[role] = fits[0] if fits else ""
        if len(fits) > 1:
            names = ", ".join(map(printable, fits))
            problems.append(
                f"patient {quoted(patient)} has several {role} ({dose}) folders that fit "
                f"{expected}: {names}; name one with {option}"
            )
        elif not fits and not unlisted:
            problems.append(
                f"patient {quoted(patient)} has no {role} ({dose}) folder; expected: a folder "
                f"named {expected} (see {option})"
            )
    if found["input"] == found["target"] != "":
        problems.append(
            f"patient {quoted(patient)}: {printable(found['input'])} fits both --input-gen-folder "
            "and --target-gen-folder; name two different folders"
        )
    return PatientFolders(patient, **found, unlisted=tuple(dict.fromkeys(unlisted)))


def _matching_folders(
    root: Path, folder: str, patterns: Sequence[str], depth: int, unlisted: list[LeftOut]
) -> list[str]:
    """Return the folders below `folder` that match; add those that cannot be listed to `unlisted`.

    A name matches with or without TCIA's series number before it, in upper or lower case.
    """
    try:
        names, _ = _list(root / folder)
    except OSError as error:
        unlisted.append(_not_listed(folder.split("/", 1)[0], folder, error))
        return []
    out = []
    for name in names:
        bare = re.sub(r"^\d+(\.\d+)?-", "", name)
        folded = [(n.casefold(), p.casefold()) for n in (name, bare) for p in patterns]
        if any(fnmatch.fnmatchcase(n, p) for n, p in folded):
            out.append(f"{folder}/{name}")
        elif depth > 1:
            out += _matching_folders(root, f"{folder}/{name}", patterns, depth - 1, unlisted)
    return out


def _not_listed(patient: str, folder: str, error: OSError) -> LeftOut:
    return LeftOut(patient, (folder,), f"cannot be listed: {error.strerror}", BAD)


def list_series(root: str, folders: PatientFolders) -> Listing:
    """List a patient's two series folders; never raises for what is in them."""
    out = Listing(folders, bad=list(folders.unlisted))
    for role in SERIES:
        folder = getattr(folders, role)
        if not folder:
            continue
        try:
            _, names = _list(Path(root, folder))
        except OSError as error:
            problem = _not_listed(folders.patient, folder, error)
            out.bad += [problem] if problem not in out.bad else []
            continue
        files = [f"{folder}/{name}" for name in names if not STRAY.fullmatch(name)]
        out.strays += len(names) - len(files)
        for start in range(0, len(files), PART_FILES):
            some = tuple(files[start : start + PART_FILES])
            out.parts.append(SeriesPart(folders.patient, role, some))
    return out


def read_headers(root: str, part: SeriesPart) -> tuple[SeriesPart, Headers]:
    """Read the headers of some slices; never raises for what it finds in the files."""
    out = Headers()
    with step("headers"):
        for file in part.files:
            try:
                out.slices.append(read_slice(root, file))
            except BadFile as error:
                out.bad.append(LeftOut(part.patient, (error.file,), error.reason, BAD))
    return part, out


def pair_up(listing: Listing, headers: Sequence[Headers]) -> PatientPairs:
    """Pair the slices of a patient, given the headers of each part of its listing."""
    patient = listing.folders.patient
    bad = listing.bad + [problem for part in headers for problem in part.bad]
    out = PatientPairs(strays=listing.strays, bad=bad)
    series: dict[str, list[Slice]] = {role: [] for role in SERIES}
    for part, read in zip(listing.parts, headers, strict=True):
        series[part.role] += read.slices
        out.persons.update(*(one.persons for one in read.slices))
    for role, slices in series.items():
        folder = getattr(listing.folders, role)
        if not slices and not any(one.files[0].startswith(folder) for one in bad):
            bad.append(LeftOut(patient, (folder,), "holds no CT slice", BAD))
    pair_slices(patient, series["input"], series["target"], out)
    return out
