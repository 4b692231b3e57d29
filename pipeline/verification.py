"""`--verify`: whether files are undamaged, and were created from the scans in a folder."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctpatches import verify_command
from ctpatches.checksums import pixel_digest
from ctpatches.dicom.header import read_slice
from ctpatches.dicom.pixels import read_hu
from ctpatches.dicom.slice_file import BadFile
from ctpatches.files import Invalid
from ctpatches.schema import ROLES
from ctpatches.validation import ValidatedFile, opened
from utils import CallError, RunError, quoted

#: One per slice of a file, shape (pairs, roles).
Digests = NDArray[np.uint64]


def verify(files: Sequence[str], input_folder: str | None) -> int:
    """Check finished files; return 1 if any is damaged, or was not created from the scans."""
    if input_folder is None:
        return verify_command.run(files, "main.py")
    if not os.path.isdir(input_folder):
        found = f"--input-folder {quoted(input_folder)} is not a folder"
        raise CallError(f"{found}; expected: that of the scans")
    check = functools.partial(check_scans, root=input_folder)
    return verify_command.run(files, "main.py", check)


def check_scans(file: str, root: str) -> str:
    """Return that an undamaged file was created from the slices in a folder.

    Raises RunError if a slice differs or is missing, or the file does not contain their digests.
    """
    try:
        with opened(file) as source:
            if source.version < 2:
                raise RunError(f"holds no digests of its scans (format version {source.version})")
            digests = np.stack([source.values(f"pair/{role}_digest") for role in ROLES], axis=1)
            compare = _missing if source.config["anonymize"] else _different
            problems = [
                f"{len(slices)} of {digests.size} slices {problem}, the first: {slices[0]}"
                for problem, slices in compare(source, digests, root).items()
                if slices
            ]
    except Invalid as error:
        raise RunError(error.reason) from error
    if problems:
        raise RunError(f"not made from the scans in {quoted(root)}: {'; '.join(problems)}")
    return f"made from the scans in {quoted(root)} ({len(digests)} pairs)"


def _different(source: ValidatedFile, digests: Digests, root: str) -> dict[str, list[str]]:
    """Return the slices that differ in a folder or cannot be read there, by problem."""
    different, unreadable = [], []
    for (pair, role), digest in np.ndenumerate(digests):
        name = source.slice_file(ROLES[role], pair)
        try:
            if _digest(root, name) != digest:
                different.append(quoted(name))
        except BadFile as error:
            unreadable.append(str(error))
    return {"have other pixels": different, "cannot be read": unreadable}


def _missing(_: ValidatedFile, digests: Digests, root: str) -> dict[str, list[str]]:
    """Return the slices that are not below a folder; pseudonyms do not name files."""
    found, visited = set(), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            with contextlib.suppress(BadFile):  # not a slice that a run would use
                found.add(_digest(folder, name))
    places = [place for place, digest in np.ndenumerate(digests) if int(digest) not in found]
    return {"are not among them": [f"the {ROLES[role]} of pair {pair}" for pair, role in places]}


def _digest(root: str, name: str) -> int:
    return pixel_digest(read_hu(root, read_slice(root, name)))
