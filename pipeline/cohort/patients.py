"""Patients: finding their folders and files, reading the headers of their slices."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctpatches.dicom.header import read_slice
from ctpatches.dicom.slice_file import BadFile, Slice
from pipeline.config import Config
from pipeline.model import BAD, INCOMPLETE, LeftOut, Pair
from pipeline.profile import step
from utils import CallError, did_you_mean, join_lines, printable, quoted

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


@dataclass
class Patient:
    """A patient, from its folders to its pairs; on rank 0. Paths are below the input folder."""

    name: str
    #: For each role its series folder; '' if it was not found, as the patient is incomplete or it
    #: may be in a folder that cannot be listed.
    folders: dict[str, str] = field(default_factory=dict)
    #: For each role the files that may be slices.
    files: dict[str, list[str]] = field(default_factory=dict)
    #: Files that are not slices.
    strays: int = 0
    problems: list[LeftOut] = field(default_factory=list)
    #: Digests of what identifies the person scanned, each after the name of its tag.
    persons: set[str] = field(default_factory=set)
    #: Ordered by position.
    pairs: list[Pair] = field(default_factory=list)
    #: Whether the slices paired by Instance Number, as they have no positions.
    by_instance: bool = False

    @property
    def is_incomplete(self) -> bool:
        """Whether a series is missing or has no slice."""
        return any(problem.kind == INCOMPLETE for problem in self.problems)


def find_patients(config: Config) -> list[Patient]:
    """List the patients below the input folder by name, each with the files of its two series.

    Raises `CallError` without a patient, or if one has several folders of a role, or none without
    `--incomplete skip`.
    """
    root = Path(config.input_folder)
    option = f"--input-folder {quoted(root)}"
    try:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            similar = ""
            with contextlib.suppress(OSError, ValueError):
                similar = did_you_mean(root.name, _list(root.parent)[:MAX_COMPARED])
            expected = "expected: a folder with one sub-folder per patient"
            raise CallError(f"{option} {what}; {expected}{similar}")
        patients = _list(root)
    except OSError as error:
        raise CallError(f"cannot list {option}: {error.strerror}") from None
    if not patients:
        raise CallError(f"{option} holds no folders; expected: one sub-folder per patient")
    errors: dict[str, list[str]] = {}
    found = [_find_series(root, patient, config, errors) for patient in patients]
    if errors:
        if all(_matching(patients, _patterns(config, role)) for role in SERIES):
            raise CallError(
                f"{option} holds {_some(patients)}, as the folder of a patient does; expected: the "
                "folder above it, with one sub-folder per patient"
            )
        if any(patient.is_incomplete for patient in found):
            option += " (to leave incomplete patients out: --incomplete skip)"
        lines = []
        for message, names in errors.items():
            who = f"patient {quoted(names[0])}"
            if len(names) > 1:  # a wrong pattern may be that of thousands
                who = f"{len(names)} patients ({_some(names)})"
            lines.append(f"{who}: {message}")
        raise CallError(join_lines(option, lines))
    return found


def _patterns(config: Config, role: str) -> tuple[str, ...]:
    """Return the patterns of the names of a role's folders."""
    pattern = getattr(config, f"{role}_gen_folder")
    return (pattern,) if pattern else SERIES[role][1]


def _list(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, except hidden ones."""
    with os.scandir(folder) as entries:  # without search permission no entry has a status
        return _visible(
            e.name for e in entries if e.is_dir(follow_symlinks=False) or os.path.isdir(e)
        )


def _visible(folders: Iterable[str]) -> list[str]:
    return sorted(name for name in folders if not name.startswith((".", "__")))


def _some(names: Sequence[str]) -> str:
    """Name a few folders and count the others."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(printable, names[:MAX_NAMED])) + more


def _find_series(root: Path, name: str, config: Config, errors: dict[str, list[str]]) -> Patient:
    """Find the two series of a patient; add it to its `errors`, patients by message."""

    def fail(message: str) -> None:
        errors.setdefault(message, []).append(name)

    def named(some: Sequence[str]) -> str:
        return _some([folder.removeprefix(f"{name}/") for folder in some])

    out = Patient(name)
    files = _files_by_folder(root, out, config)
    folders = list(files)[1:]
    missing: dict[str, str] = {}
    for role, (dose, defaults) in SERIES.items():
        option, patterns = f"--{role}-gen-folder", _patterns(config, role)
        expected = " or ".join(map(repr, patterns))
        fits = _matching(folders, patterns)
        out.folders[role] = fits[0] if fits else ""
        if len(fits) > 1:
            fail(
                f"several {role} ({dose}) folders fit {expected}: {named(fits)}; name one with "
                f"{option}, or keep only one of them there"
            )
        elif not fits and not out.problems:
            similar = sorted({os.path.basename(folder) for folder in folders[:MAX_COMPARED]})
            hint = "" if patterns == defaults else did_you_mean(patterns[0], similar)
            missing[f"{role} ({dose}) folder"] = f"{expected} (see {option}){hint}"
    if out.folders["input"] == out.folders["target"] != "":
        fail(
            f"{named([out.folders['input']])} fits both --input-gen-folder and "
            "--target-gen-folder; name two different folders"
        )
    if missing:
        both = itertools.pairwise([*folders, ""])
        leaves = [folder for folder, following in both if not following.startswith(f"{folder}/")]
        reason = (
            f"no {' and no '.join(missing)}; found: {named(leaves) or 'no folder'}; expected: a "
            f"folder named {' and '.join(missing.values())}"
        )
        if config.incomplete == "error":
            fail(reason)
        out.folders = dict.fromkeys(SERIES, "")
        out.problems.append(LeftOut(name, (name,), reason, INCOMPLETE))
    for role, folder in out.folders.items():
        names = files[folder] if folder else []
        out.files[role] = [f"{folder}/{file}" for file in names if not STRAY.fullmatch(file)]
        out.strays += len(names) - len(out.files[role])
    return out


def _files_by_folder(root: Path, patient: Patient, config: Config) -> dict[str, list[str]]:
    """Return the files of a patient by folder, each folder directly before those in it.

    A folder that cannot be listed is recorded as a problem.
    """
    out: dict[str, list[str]] = {}
    patterns = [pattern for role in SERIES for pattern in _patterns(config, role)]

    def record(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        out[folder] = []
        # One at the largest depth matters only if it is a series itself.
        if folder.count("/") < MAX_DEPTH or _matching([folder], patterns):
            reason = f"cannot be listed: {error.strerror}"
            patient.problems.append(LeftOut(patient.name, (folder,), reason, BAD))

    for path, folders, files in os.walk(root / patient.name, onerror=record, followlinks=True):
        folder = Path(path).relative_to(root).as_posix()
        folders[:] = _visible(folders) if folder.count("/") < MAX_DEPTH else []
        out[folder] = sorted(files)
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


def read_headers(root: str, files: Sequence[str]) -> dict[str, Slice | str]:
    """Return the header of each file, or the reason why it cannot be used."""
    out: dict[str, Slice | str] = {}
    with step("headers"):
        for file in files:
            try:
                out[file] = read_slice(root, file)
            except BadFile as error:
                out[file] = error.reason
    return out
