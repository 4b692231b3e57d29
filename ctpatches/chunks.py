"""The places of the chunks of a compressed file.

The chunks of a block, first those of the inputs, follow those of the block before it. Their bytes
are columns of `patch/`, so that their places are known without the index of HDF5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.files import Invalid
from ctpatches.permutation import Permutation
from ctpatches.schema import ROLES

#: No chunk has more than this beyond twice the bytes of its patch.
MAX_OVERHEAD_BYTES = 1024


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a compressed file lie."""

    #: By role, in the order of the patches: bytes, and first byte of every chunk.
    sizes: Mapping[str, NDArray[np.uint32]]
    places: Mapping[str, NDArray[np.int64]]
    #: First byte of every block, and the end of the last.
    blocks: NDArray[np.int64]

    @classmethod
    def packed(
        cls,
        sizes: Mapping[str, NDArray[np.uint32]],
        starts: Sequence[int],
        first: int,
        shuffle: Permutation | None = None,
    ) -> Chunks:
        """Return the places of chunks by their sizes, from the byte `first` on.

        `starts` are the first patch of every block, and the end of the last, `shuffle` that of the
        rows of patches.
        """
        rows = shuffle.forward(np.arange(starts[-1])) if shuffle else slice(None)
        low, full = (np.append(0, np.cumsum(sizes[role][rows], dtype=np.int64)) for role in ROLES)
        counts = np.diff(starts)
        # Before a chunk lie those of its own role, and of the other role those of earlier blocks;
        # before a target also those of its own block.
        others = np.repeat(full[starts[:-1]], counts), np.repeat(low[starts[1:]], counts)
        places = {}
        for role, own, other in zip(ROLES, (low, full), others, strict=True):
            places[role] = np.empty_like(other)
            places[role][rows] = first + own[:-1] + other
        return cls(sizes, places, first + low[starts] + full[starts])

    @classmethod
    def recorded(
        cls,
        descriptor: int,
        rows: Mapping[str, tuple[int, int]],
        starts: Sequence[int],
        first: int,
        shuffle: Permutation | None,
    ) -> Chunks:
        """Return the places of the chunks of a file from its columns, as `packed`.

        `rows` has the first byte of every column, and the bytes of a row.
        """
        sizes = {}
        for role in ROLES:
            start, width = rows[f"patch/{role}_bytes"]
            column = os.pread(descriptor, width * starts[-1], start)
            sizes[role] = np.frombuffer(column, np.uint32)
        return cls.packed(sizes, starts, first, shuffle)

    @classmethod
    def found(
        cls,
        datasets: Mapping[str, h5py.Dataset],
        sizes: Mapping[str, NDArray[np.uint32]],
        starts: Sequence[int],
        shuffle: Permutation | None,
    ) -> Chunks:
        """Return the places of the chunks of a file, as `packed`.

        Raises Invalid where they are not there, or larger than any can be.
        """
        rows = np.array([0, starts[-1] - 1])
        ends = (shuffle.forward(rows) if shuffle else rows).tolist()
        one = datasets["input"]
        path, file_bytes = one.file.filename, one.file.id.get_filesize()
        limit = 2 * one.dtype.itemsize * math.prod(one.shape[1:]) + MAX_OVERHEAD_BYTES
        largest = max(int(column.max()) for column in sizes.values())
        if largest > limit:
            reason = f"a compressed patch of {largest} bytes; expected: at most {limit}"
            raise Invalid(path, f"is damaged: {reason}")
        try:
            places = {
                role: [dataset.id.get_chunk_info_by_coord((row, 0, 0, 0))[2] for row in ends]
                for role, dataset in datasets.items()
            }
            chunks = cls.packed(sizes, starts, places["input"][0] or 0, shuffle)
            valid = chunks.blocks[-1] <= file_bytes
            valid &= places == {role: chunks.places[role][[*ends]].tolist() for role in ROLES}
        except (OSError, RuntimeError, ValueError, TypeError):  # not chunked, or a damaged index
            valid = False
        if not valid:
            raise Invalid(path, "is damaged or was rewritten: its patches are not at their places")
        return chunks

    def read(self, descriptor: int, role: str, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the chunks of some patches."""
        places, sizes = self.places[role][rows].tolist(), self.sizes[role][rows].tolist()
        return (os.pread(descriptor, *one) for one in zip(sizes, places, strict=True))

    def block(self, index: int) -> tuple[int, int]:
        """Return first byte and length of all chunks of a block."""
        start, stop = self.blocks[index : index + 2].tolist()
        return start, stop - start
