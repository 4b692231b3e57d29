"""Patients: finding their folders, reading the headers of their slices in parts, pairing."""

from __future__ import annotations

import fnmatch
import itertools
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
from utils import CallError, did_you_mean, join_lines, printable, quoted

#: Kind of what `--incomplete` is about.
INCOMPLETE = "incomplete"

#: For each role: the dose, and patterns of folder names where no option names the folder.
SERIES = {
    "input": ("low-dose", ("quarter*", "low*")),
    "target": ("full-dose", ("full*", "high*")),
}
#: How deep below a patient its two folders may lie: TCIA has a folder for the date between.
MAX_DEPTH = 4
#: Folders that a message names, and those that are compared with the one that was not found.
MAX_NAMED, MAX_COMPARED = 6, 1000
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

    A series folder is '' if it was not found and may be in a folder that cannot be listed; both are
    '' if the patient is left out as incomplete.
    """

    patient: str
    input: str
    target: str
    problems: tuple[LeftOut, ...] = ()


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

    Raises `CallError` without a patient, or if one has several folders of a role, or none without
    `--incomplete skip`.
    """
    root = Path(config.input_folder)
    option = f"--input-folder {quoted(root)}"
    try:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            expected = "expected: a folder with one sub-folder per patient"
            raise CallError(f"{option} {what}; {expected}{_similar_path(root)}")
        patients, _ = _list(root)
    except OSError as error:
        raise CallError(f"cannot list {option}: {error.strerror}") from None
    if not patients:
        raise CallError(f"{option} holds no folders; expected: one sub-folder per patient")
    problems: dict[str, list[str]] = {}
    found = [_find_series(root, patient, config, problems) for patient in patients]
    if problems:
        if all(_matching(patients, _patterns(config, role)) for role in SERIES):
            raise CallError(
                f"{option} holds {_some(patients)}, as the folder of a patient does; expected: the "
                "folder above it, with one sub-folder per patient"
            )
        if any(problem.kind == INCOMPLETE for one in found for problem in one.problems):
            option += " (to leave incomplete patients out: --incomplete skip)"
        lines = (f"{_who(names)}: {problem}" for problem, names in problems.items())
        raise CallError(join_lines(option, lines))
    return found


def _who(patients: Sequence[str]) -> str:
    """Name the patients of one problem: a wrong pattern may be that of thousands."""
    if len(patients) == 1:
        return f"patient {quoted(patients[0])}"
    return f"{len(patients)} patients ({_some(patients)})"


def _patterns(config: Config, role: str) -> tuple[str, ...]:
    """Return the patterns of the names of a role's folders."""
    pattern = getattr(config, f"{role}_gen_folder")
    return (pattern,) if pattern else SERIES[role][1]


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, except hidden ones, and those of the files."""

    def fail(error: OSError) -> NoReturn:
        raise error

    _, folders, files = next(os.walk(folder, onerror=fail))
    return sorted(name for name in folders if not name.startswith((".", "__"))), sorted(files)


def _similar_path(path: Path) -> str:
    """Suggest folders beside one that does not exist."""
    try:
        with os.scandir(path.parent) as entries:
            some = itertools.islice(entries, MAX_COMPARED)
            names = sorted(entry.name for entry in some if entry.is_dir())
    except (OSError, ValueError):
        return ""
    return did_you_mean(path.name, names)


def _some(names: Sequence[str]) -> str:
    """Name a few folders and count the others."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(printable, names[:MAX_NAMED])) + more


def _find_series(
    root: Path, patient: str, config: Config, problems: dict[str, list[str]]
) -> PatientFolders:
    """Find the two folders of a patient; add it to its `problems`, patients by problem."""

    def fail(problem: str) -> None:
        problems.setdefault(problem, []).append(patient)

    def named(some: Sequence[str]) -> str:
        return _some([folder.removeprefix(f"{patient}/") for folder in some])

    unlisted: list[LeftOut] = []
    folders = _folders_below(root, patient, MAX_DEPTH, unlisted)
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for role, (dose, defaults) in SERIES.items():
        option, patterns = f"--{role}-gen-folder", _patterns(config, role)
        expected = " or ".join(map(repr, patterns))
        fits = _matching(folders, patterns)
        found[role] = fits[0] if fits else ""
        if len(fits) > 1:
            fail(
                f"several {role} ({dose}) folders fit {expected}: {named(fits)}; name one with "
                f"{option}, or keep only one of them there"
            )
        elif not fits and not unlisted:
            similar = sorted({os.path.basename(folder) for folder in folders[:MAX_COMPARED]})
            hint = "" if patterns == defaults else did_you_mean(patterns[0], similar)
            missing[f"{role} ({dose}) folder"] = f"{expected} (see {option}){hint}"
    if found["input"] == found["target"] != "":
        fail(
            f"{named([found['input']])} fits both --input-gen-folder and --target-gen-folder; name "
            "two different folders"
        )
    if not missing:
        return PatientFolders(patient, **found, problems=tuple(unlisted))
    both = itertools.pairwise([*folders, ""])
    leaves = [folder for folder, following in both if not following.startswith(f"{folder}/")]
    reason = (
        f"no {' and no '.join(missing)}; found: {named(leaves) or 'no folder'}; expected: a folder "
        f"named {' and '.join(missing.values())}"
    )
    if config.incomplete == "error":
        fail(reason)
    return PatientFolders(patient, "", "", (LeftOut(patient, (patient,), reason, INCOMPLETE),))


def _folders_below(root: Path, folder: str, depth: int, unlisted: list[LeftOut]) -> list[str]:
    """Return the folders below `folder`, each directly before those in it.

    Those that cannot be listed are added to `unlisted`.
    """
    try:
        names, _ = _list(root / folder)
    except OSError as error:
        unlisted.append(_not_listed(folder.split("/", 1)[0], folder, error))
        return []
    out = []
    for name in names:
        out.append(f"{folder}/{name}")
        if depth > 1:
            out += _folders_below(root, out[-1], depth - 1, unlisted)
    return out


def _matching(folders: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the folders that match, except those in another one that does.

    A name matches with or without TCIA's series number before it, in upper or lower case.
    """
    out: list[str] = []
    for folder in folders:
        name = os.path.basename(folder)
        bare = re.sub(r"^\d+(\.\d+)?-", "", name)
        folded = [(n.casefold(), p.casefold()) for n in (name, bare) for p in patterns]
        inside = out and folder.startswith(f"{out[-1]}/")
        if not inside and any(fnmatch.fnmatchcase(n, p) for n, p in folded):
            out.append(folder)
    return out


def _not_listed(patient: str, folder: str, error: OSError) -> LeftOut:
    return LeftOut(patient, (folder,), f"cannot be listed: {error.strerror}", BAD)


def list_series(root: str, folders: PatientFolders) -> Listing:
    """List a patient's two series folders; never raises for what is in them."""
    out = Listing(folders, bad=list(folders.problems))
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
            reason = "holds no CT slice; expected: one DICOM file per slice"
            bad.append(LeftOut(patient, (folder,), reason, INCOMPLETE))
    if all(one.kind != INCOMPLETE for one in bad):
        pair_slices(patient, series["input"], series["target"], out)
    return out
