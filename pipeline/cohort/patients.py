"""Patients: finding their folders, reading the headers of their slices in parts, pairing."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cohort.pairing import PatientPairs, pair_slices
from pipeline.config import Config
from pipeline.dicom.header import read_slice
from pipeline.dicom.slice_file import BAD, BadFile
from pipeline.model import LeftOut, Slice
from pipeline.profile import step
from utils import CallError, join_lines, printable, quoted

#: Folder names that are taken when no option names them, by how they begin.
INPUT_NAMES = ("quarter*", "low*")
TARGET_NAMES = ("full*", "high*")
#: How deep below a patient its two folders may lie: TCIA has a folder for the date between.
SEARCH_DEPTH = 4

#: A file with one of these endings is no slice, and one that names no slice is no damage.
STRAY_ENDINGS = frozenset(
    [
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".xml",
        ".yml",
        ".yaml",
        ".md",
        ".html",
        ".pdf",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".db",
        ".ini",
        ".log",
        ".zip",
        ".gz",
        ".tar",
        ".7z",
        ".mat",
        ".npy",
        ".npz",
        ".h5",
        ".nii",
        ".mhd",
        ".py",
        ".sh",
    ]
)
STRAY_NAMES = frozenset(("dicomdir", "thumbs.db", "version", "license", "readme"))
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
    side: int  # 0 for the input, 1 for the target
    files: tuple[str, ...]


@dataclass
class Listing:
    """What the names in a patient's two folders tell, in parts, and what could not be listed."""

    folders: PatientFolders
    parts: list[SeriesPart] = field(default_factory=list)
    strays: int = 0
    bad: tuple[list[LeftOut], list[LeftOut]] = field(default_factory=lambda: ([], []))


@dataclass
class Headers:
    """What the headers of a part say."""

    slices: list[Slice] = field(default_factory=list)
    bad: list[LeftOut] = field(default_factory=list)


# --- folders ---------------------------------------------------------------------------------


def _names(folder: Path, accept: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if accept(e))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to what may not be accessed
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return _is_directory(entry) and not entry.name.startswith((".", "__"))


def _unlisted(patient: str, folder: str, error: OSError) -> LeftOut:
    return LeftOut(patient, (folder,), f"cannot be listed: {error.strerror}", BAD)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Return whether the name of a folder fits, with or without TCIA's series number before it."""
    bare = re.sub(r"^\d+(\.\d+)?-", "", name)
    return any(
        fnmatch.fnmatchcase(n.casefold(), p.casefold()) for n in (name, bare) for p in patterns
    )


def _series_folders(
    root: Path, folder: str, patterns: Sequence[str], depth: int, unlisted: list[LeftOut]
) -> Iterator[str]:
    """Yield the folders below `folder` that fit; add those that cannot be listed to `unlisted`."""
    try:
        names = _names(root / folder, _is_folder)
    except OSError as error:
        unlisted.append(_unlisted(folder.split("/", 1)[0], folder, error))
        return
    for name in names:
        path = f"{folder}/{name}"
        if _fits(name, patterns):
            yield path
        elif depth > 1:
            yield from _series_folders(root, path, patterns, depth - 1, unlisted)


def find_patients(config: Config) -> list[PatientFolders]:
    """List the patients below the input folder, each with its input and its target folder.

    Raises
    ------
    CallError
        No such folder; no patient in it; a patient without one of its folders, or with several.
    """
    root = Path(config.input_folder)
    try:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise CallError(
                f"--input-folder {quoted(root)} {what}; wanted: a folder with one sub-folder a "
                "patient"
            )
        patients = _names(root, _is_folder)
    except OSError as error:
        raise CallError(f"cannot list --input-folder {quoted(root)}: {error.strerror}") from None
    found, problems = _series_of(root, patients, config)
    if not patients:
        raise CallError(
            f"--input-folder {quoted(root)} holds no folders; wanted: one sub-folder a patient"
        )
    if problems:
        raise CallError(join_lines(f"--input-folder {quoted(root)}", problems))
    return found


def _series_of(
    root: Path, patients: Sequence[str], config: Config
) -> tuple[list[PatientFolders], list[str]]:
    sides = (
        ("input (low-dose)", "--input-gen-folder", config.input_gen_folder, INPUT_NAMES),
        ("target (full-dose)", "--target-gen-folder", config.target_gen_folder, TARGET_NAMES),
    )
    found, problems = [], []
    for patient in patients:
        chosen: list[str] = []
        unlisted: list[LeftOut] = []
        for side, option, pattern, defaults in sides:
            patterns = (pattern,) if pattern else defaults
            fits = list(_series_folders(root, patient, patterns, SEARCH_DEPTH, unlisted))
            chosen += fits or ([""] if unlisted else [])
            names_expected = " or ".join(repr(p) for p in patterns)
            if not fits and not unlisted:
                problems.append(
                    f"patient {quoted(patient)} has no {side} folder; wanted: a folder named "
                    f"{names_expected} (see {option})"
                )
            elif len(fits) > 1:
                names = ", ".join(printable(f) for f in fits)
                problems.append(
                    f"patient {quoted(patient)} has several {side} folders that fit "
                    f"{names_expected}: "
                    f"{names}; name one with {option}"
                )
        if len(chosen) == 2 and chosen[0] == chosen[1] != "":
            problems.append(
                f"patient {quoted(patient)}: {printable(chosen[0])} fits both --input-gen-folder "
                "and --target-gen-folder; name two different folders"
            )
        elif len(chosen) == 2:
            once = tuple(dict.fromkeys(unlisted))
            found.append(PatientFolders(patient, chosen[0], chosen[1], once))
    return found, problems


# --- slices --------------------------------------------------------------------------------------


def _stray(name: str) -> bool:
    stem, ending = os.path.splitext(name.casefold())
    return (
        name.startswith(".")
        or ending in STRAY_ENDINGS
        or {name.casefold(), stem} & STRAY_NAMES != set()
    )


def list_series(root: str, folders: PatientFolders) -> Listing:
    """List a patient's two series folders; never raises for what is in them."""
    out = Listing(folders)
    for side, folder in enumerate((folders.input, folders.target)):
        if not folder:
            continue
        try:
            names = _names(Path(root, folder), lambda e: not _is_directory(e))
        except OSError as error:
            out.bad[side].append(_unlisted(folders.patient, folder, error))
            continue
        files = [f"{folder}/{name}" for name in names if not _stray(name)]
        out.strays += len(names) - len(files)
        for start in range(0, len(files), PART_FILES):
            some = tuple(files[start : start + PART_FILES])
            out.parts.append(SeriesPart(folders.patient, side, some))
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
    """Pair the slices of a patient.

    Parameters
    ----------
    listing : Listing
    headers : sequence of Headers
        One for each of its parts.
    """
    folders = listing.folders
    out = PatientPairs(strays=listing.strays, bad=list(folders.unlisted))
    sides: list[list[Slice]] = []
    for side, folder in enumerate((folders.input, folders.target)):
        here = [h for h, part in zip(headers, listing.parts, strict=True) if part.side == side]
        slices = [one for part in here for one in part.slices]
        unlisted = [problem for problem in listing.bad[side] if problem not in out.bad]
        out.bad += [*unlisted, *(problem for part in here for problem in part.bad)]
        if not slices and not out.bad:
            out.bad.append(LeftOut(folders.patient, (folder,), "holds no CT slice", BAD))
        out.persons.update(*(s.persons for s in slices))
        sides.append(slices)
    pair_slices(folders.patient, sides[0], sides[1], out)
    return out
