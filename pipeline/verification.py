"""Whether a file was created from the scans in a folder, by the digests of the slices in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ctpatches.checksums import pixel_digest
from ctpatches.files import Invalid
from ctpatches.validation import ValidatedFile, opened
from pipeline.dicom.header import read_slice
from pipeline.dicom.pixels import Reader
from pipeline.dicom.slice_file import BadFile
from utils import RunError, quoted

ROLES = ("input", "target")


def check_scans(file: str, root: str) -> str:
    """Compare the slices that a file was created from with those in a folder.

    Parameters
    ----------
    file : str
        A file whose bytes are as they were written (see `ctpatches.checksums.verify`).
    root : str
        The input folder.

    Returns
    -------
    str
        The result, without the name of the file.

    Raises
    ------
    RunError
        A slice differs or is missing, or the file does not know its scans.
    """
    try:
        with opened(file) as source:
            if source.version < 2:
                version = source.version
                raise RunError(f"holds no digests of its scans (format version {version})")
            if source.config["anonymize"]:
                _check_anonymous(source, root)
            else:
                _check_named(source, root)
            return f"made from the scans in {quoted(root)} ({source.pairs} pairs)"
    except Invalid as error:
        raise RunError(error.reason) from error


def _slices(source: ValidatedFile) -> Iterator[tuple[int, str, int]]:
    """Yield pair, role and digest of every slice of a file."""
    digests = [source.values(f"pair/{role}_digest").tolist() for role in ROLES]
    for pair, both in enumerate(zip(*digests, strict=True)):
        for role, digest in zip(ROLES, both, strict=True):
            yield pair, role, digest


def _check_named(source: ValidatedFile, root: str) -> None:
    different, unreadable = [], []
    for pair, role, digest in _slices(source):
        name = source.slice_file(role, pair)
        try:
            if _digest(root, name) != digest:
                different.append(quoted(name))
        except BadFile as error:
            unreadable.append(str(error))
    problems = [
        f"{len(some)} of {2 * source.pairs} slices {what}, the first: {some[0]}"
        for some, what in ((different, "have other pixels"), (unreadable, "cannot be read"))
        if some
    ]
    if problems:
        raise RunError(f"not made from the scans in {quoted(root)}: {'; '.join(problems)}")


def _check_anonymous(source: ValidatedFile, root: str) -> None:
    """Look for every slice among all slices below the folder: pseudonyms do not name files."""
    there = _digests_below(root)
    missing = [(pair, role) for pair, role, digest in _slices(source) if digest not in there]
    if missing:
        pair, role = missing[0]
        raise RunError(
            f"not made from the scans in {quoted(root)}: {len(missing)} of {2 * source.pairs} "
            f"slices are not among them, the first: the {role} of pair {pair}"
        )


def _digest(root: str, name: str) -> int:
    return pixel_digest(Reader(root).hu(read_slice(root, name)))


def _digests_below(root: str) -> set[int]:
    """Return the digests of all CT slices below a folder."""
    out = set()
    for path in _files_below(root):
        try:
            out.add(_digest(*os.path.split(path)))
        except BadFile:
            continue  # no slice that a run would use
    return out


def _files_below(root: str) -> Iterator[str]:
    """Yield the path of every file below a folder; links are followed, into each folder once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (os.path.join(folder, name) for name in names)
