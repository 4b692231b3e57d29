"""Verification: whether every byte of a file is as it was written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from ctpatches.checksums import block_digest, rest_digest
from ctpatches.files import Invalid, open_regular
from ctpatches.schema import REST, bulk_names
from ctpatches.validation import ValidatedFile, opened


def _extents(source: ValidatedFile) -> dict[str, tuple[int, int]]:
    """Return first byte and end of every bulk dataset and of the checksum of the rest."""
    out = {}
    for name in [*bulk_names(), REST]:
        dataset = source[name]
        start = dataset.id.get_offset()
        if start is None and dataset.size:
            raise source.invalid("was compressed or rewritten: its checksums are of other bytes")
        out[name] = (start or 0, (start or 0) + dataset.dtype.itemsize * dataset.size)
    return out


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Return what is wrong with a file, a line each; nothing if every byte is as it was written.

    Raises
    ------
    OSError
        The file cannot be read at all.
    """
    found: list[str] = []
    try:
        descriptor = open_regular(os.fspath(path))
        try:
            with opened(path, complete=False) as source:
                for damage in _damages(source, descriptor):
                    found.append(damage)
        finally:
            os.close(descriptor)
    except Invalid as error:
        found.append(error.reason)
    return found


def _damages(source: ValidatedFile, descriptor: int) -> Iterator[str]:
    if not source.attributes["complete"]:
        yield "is not complete: its run was ended"
    extents = _extents(source)
    expected = source.read(REST).tobytes()
    if rest_digest(descriptor, os.fstat(descriptor).st_size, list(extents.values())) != expected:
        yield "header or tables of pairs are damaged"
    first, patches = source.blocks
    wide = [source[n].dtype.itemsize * math.prod(source[n].shape[1:]) for n in bulk_names()]
    starts = [extents[name][0] for name in bulk_names()]
    for pair, checksum in enumerate(source.read("pair/checksum").tolist()):
        start, n = int(first[pair]), int(patches[pair])
        ranges = [(at + start * w, n * w) for at, w in zip(starts, wide, strict=True)]
        if block_digest(descriptor, ranges) != checksum:
            yield (
                f"the block of pair {pair} ({source.text('pair/input_file', pair)}), patches "
                f"{start} to {start + n - 1}, is damaged"
            )
