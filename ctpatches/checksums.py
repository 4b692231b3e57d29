"""Checksums of the h5 file and digests of the slices that it was created from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

CHUNK_BYTES = 8 << 20


def pixel_digest(hu: NDArray[np.float32]) -> int:
    """Return the digest of an image by which a file knows the slices that it was made from.

    Parameters
    ----------
    hu : ndarray of float32, shape (rows, columns)
        Pixels in HU.

    Returns
    -------
    int
        XXH3-64 of the pixels, row by row, as little-endian float32.
    """
    return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(hu, "<f4").data))


def block_digest(descriptor: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the checksum of a block from the (start, length) ranges of its bytes, in order."""
    digest = xxhash.xxh3_64()
    for start, length in ranges:
        for data in _chunks(descriptor, start, start + length):
            digest.update(data)
    return int(digest.intdigest())


def _chunks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        data = os.pread(descriptor, min(CHUNK_BYTES, stop - start), start)
        if not data:
            return
        start += len(data)
        yield data


def rest_digest(descriptor: int, size: int, apart: Sequence[tuple[int, int]]) -> bytes:
    """Return the checksum of all bytes of a file but those of the given (start, stop) ranges."""
    digest = xxhash.xxh3_128()
    at = 0
    for start, stop in [*sorted(apart), (size, size)]:
        for data in _chunks(descriptor, at, start):
            digest.update(data)
        at = max(at, stop)
    return digest.digest()
