"""Whether a file was created from the scans in a folder, by the digests of their pixels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ctpatches.checksums import pixel_digest
from ctpatches.files import Invalid
from ctpatches.stitching import ROLES
from ctpatches.validation import ValidatedFile, opened
from pipeline.dicom.header import read_slice
from pipeline.dicom.pixels import Reader
from pipeline.dicom.slice_file import BadFile
from utils import RunError, quoted


def check_scans(file: str, root: str) -> str:
    """Return that an undamaged file was created from the slices in a folder.

    Raises RunError if a slice differs or is missing, or the file does not contain their digests.
    """
    try:
        with opened(file) as source:
            if source.version < 2:
                found = f"format version {source.version}"
                raise RunError(f"holds no digests of its scans ({found})")
            compare = _missing if source.configuration["anonymize"] else _different
            problems = [
                f"{len(slices)} of {2 * source.pairs} slices {problem}, the first: {slices[0]}"
                for problem, slices in compare(source, root).items()
                if slices
            ]
            if problems:
                raise RunError(f"not made from the scans in {quoted(root)}: {'; '.join(problems)}")
            return f"made from the scans in {quoted(root)} ({source.pairs} pairs)"
    except Invalid as error:
        raise RunError(error.reason) from error


def _different(source: ValidatedFile, root: str) -> dict[str, list[str]]:
    """Return the slices of a file that differ in a folder or cannot be read there, by problem."""
    different, unreadable = [], []
    for pair, role, digest in _slices(source):
        name = source.slice_file(role, pair)
        try:
            if _digest(root, name) != digest:
                different.append(quoted(name))
        except BadFile as error:
            unreadable.append(str(error))
    return {"have other pixels": different, "cannot be read": unreadable}


def _missing(source: ValidatedFile, root: str) -> dict[str, list[str]]:
    """Return the slices of a file that are not below a folder; pseudonyms do not name files."""
    digests, visited = set(), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            with contextlib.suppress(BadFile):  # not a slice that a run would use
                digests.add(_digest(folder, name))
    missing = [
        f"the {role} of pair {pair}"
        for pair, role, digest in _slices(source)
        if digest not in digests
    ]
    return {"are not among them": missing}


def _slices(source: ValidatedFile) -> Iterator[tuple[int, str, int]]:
    """Yield pair, role and digest of every slice of a file."""
    columns = [source.read(f"pair/{role}_digest").tolist() for role in ROLES]
    for pair, digests in enumerate(zip(*columns, strict=True)):
        for role, digest in zip(ROLES, digests, strict=True):
            yield pair, role, digest


def _digest(root: str, name: str) -> int:
    return pixel_digest(Reader(root).hu(read_slice(root, name)))
