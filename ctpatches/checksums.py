"""Checksums of the h5 file, verifying them, and digests of the slices that it was created from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ctpatches.files import Invalid
from ctpatches.schema import REST, SCHEMA, bulk_names
from ctpatches.validation import PathLike, ValidatedFile

CHUNK_BYTES = 8 << 20


def pixel_digest(hu: NDArray[np.float32]) -> int:
    """Return the digest that identifies a slice: XXH3-64 of its HU, little-endian float32."""
    return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(hu, "<f4").data))


def block_digest(descriptor: int, ranges: Sequence[tuple[int, int]]) -> int:
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


def verify(path: PathLike) -> list[str]:
    """Return what is wrong with a file, one line each; nothing if every byte is as it was written.

    `OSError` is raised if the file cannot be read at all.
    """
    found = []
    try:
        with ValidatedFile(path, complete=False) as source:
            if not source.attributes["complete"]:
                found.append("is not complete: its run was interrupted")
            places = {}  # first byte of a dataset, and bytes of a row
            for name in [*bulk_names(source.store, source.compressed), REST]:
                dataset = source[name]
                start = dataset.id.get_offset()
                if start is None and dataset.size:
                    reason = "was compressed or rewritten: its checksums are of other bytes"
                    raise Invalid(source.path, reason)
                places[name] = start or 0, dataset.dtype.itemsize * math.prod(dataset.shape[1:])
            extents = [(at, at + width * len(source[name])) for name, (at, width) in places.items()]
            chunks = source.chunks
            if chunks:
                extents.append((int(chunks.blocks[0]), int(chunks.blocks[-1])))
            size = os.fstat(source.descriptor).st_size
            if rest_digest(source.descriptor, size, extents) != source.values(REST).tobytes():
                found.append("header or tables of pairs are damaged")
            del places[REST]
            checksums = source.values("pair/checksum").tolist()
            named = zip(source.texts("pair/input_file"), checksums, strict=True)
            for pair, (name, checksum) in enumerate(named):
                place = source.place(pair)
                ranges = [chunks.block(pair)] if chunks else []
                for dataset_name, (at, width) in places.items():
                    start, stop = place[SCHEMA[dataset_name].row_of]
                    ranges.append((at + start * width, (stop - start) * width))
                if block_digest(source.descriptor, ranges) != checksum:
                    start, stop = place["patch"]
                    patches = f"patches {start} to {stop - 1}"
                    found.append(f"the block of pair {pair} ({name}), {patches}, is damaged")
    except Invalid as error:
        found.append(error.reason)
    return found
