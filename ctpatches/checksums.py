"""Checksums of the h5 file, verifying them, and digests of the slices that it was created from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ctpatches.blocks import block_ranges
from ctpatches.files import Invalid
from ctpatches.schema import REST, bulk_names
from ctpatches.structure import PathLike
from ctpatches.validation import ValidatedFile

CHUNK_BYTES = 8 << 20


def pixel_digest(hu: NDArray[np.float32]) -> int:
    """Return the digest that identifies a slice: XXH3-64 of its HU, little-endian float32."""
    return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(hu, "<f4").data))


def block_digest(descriptor: int, ranges: Iterable[tuple[int, int]]) -> int:
    """Return the checksum of a block from the (start, length) ranges of its bytes, in order."""
    digest = xxhash.xxh3_64()
    for start, length in ranges:
        _update(digest, descriptor, start, start + length)
    return int(digest.intdigest())


def rest_digest(descriptor: int, size: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the checksum of all bytes of a file except those in the (start, stop) extents."""
    digest = xxhash.xxh3_128()
    at = 0
    for start, stop in [*sorted(extents), (size, size)]:
        _update(digest, descriptor, at, start)
        at = max(at, stop)
    return digest.digest()


def _update(digest: Any, descriptor: int, start: int, stop: int) -> None:
    """Add a range of bytes of a file to a digest."""
    while start < stop and (data := os.pread(descriptor, min(CHUNK_BYTES, stop - start), start)):
        digest.update(data)
        start += len(data)


def damages(source: ValidatedFile) -> Iterator[str]:
    """Yield for the header, and then for the block of every pair, its damage or ''."""
    rows, extents = {}, []
    for name in [*bulk_names(source.store, source.compressed), REST]:
        dataset = source[name]
        start = dataset.id.get_offset()
        if start is None:
            reason = "was compressed or rewritten: its checksums are of other bytes"
            raise Invalid(source.path, reason)
        rows[name] = start, dataset.dtype.itemsize * math.prod(dataset.shape[1:])
        extents.append((start, start + dataset.nbytes))
    chunks = source.chunks
    if chunks:
        extents.append((int(chunks.blocks[0]), int(chunks.blocks[-1])))
    size = os.fstat(source.descriptor).st_size
    intact = rest_digest(source.descriptor, size, extents) == source.values(REST).tobytes()
    yield "" if intact else "header or tables of pairs are damaged"
    del rows[REST]
    checksums = source.values("pair/checksum").tolist()
    named = zip(source.texts("pair/input_file"), checksums, strict=True)
    for pair, (name, checksum) in enumerate(named):
        place = source.place(pair)
        ranges = block_ranges(rows, place, source.shuffle, chunks, pair)
        intact = block_digest(source.descriptor, ranges) == checksum
        start, stop = place["patch"]
        patches = f"{stop - start} patches" if source.shuffle else f"patches {start} to {stop - 1}"
        yield "" if intact else f"the block of pair {pair} ({name}), {patches}, is damaged"


def verify(path: PathLike) -> list[str]:
    """Return what is wrong with a file, one line each; nothing if it is undamaged.

    `OSError` is raised if the file cannot be read at all.
    """
    found = []
    try:
        with ValidatedFile(path, complete=False) as source:
            if not source.attributes["complete"]:
                found.append("is not complete: its run was interrupted")
            found += filter(None, damages(source))
    except Invalid as error:
        found.append(error.reason)
    return found
