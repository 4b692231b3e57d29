"""The places of the chunks of a compressed file.

The chunks of a block, first those of the inputs, follow those of the block before it. Their bytes
are columns of `patch/`, so that their places are known without the index of HDF5.
"""

from __future__ import annotations

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
    ) -> Chunks | None:
        """Return the places of the chunks of a file, as `packed`; None if it was rewritten.

        Raises Invalid for chunks beyond the file, or larger than any can be.
        """

        def place(role: str, row: int) -> int:
            return int(datasets[role].id.get_chunk_info_by_coord((row, 0, 0, 0)).byte_offset or 0)

        if any(dataset.chunks != (1, *dataset.shape[1:]) for dataset in datasets.values()):
            return None
        rows = np.array([0, starts[-1] - 1])
        first, last = (shuffle.forward(rows) if shuffle else rows).tolist()
        chunks = cls.packed(sizes, starts, place("input", first), shuffle)
        ends = [(role, row) for role in ROLES for row in (first, last)]
        if any(place(*end) != chunks.places[end[0]][end[1]] for end in ends):
            return None
        one, file = datasets["input"], datasets["input"].file
        limit = (
            2 * one.dtype.itemsize * one.shape[-1] * one.shape[-2] * one.shape[1]
            + MAX_OVERHEAD_BYTES
        )
        largest = max(int(column.max()) for column in sizes.values())
        if largest > limit or chunks.blocks[-1] > file.id.get_filesize():
            reason = f"is damaged: a compressed patch of {largest} bytes; expected: at most {limit}"
            raise Invalid(file.filename, reason)
        return chunks

    def read(self, descriptor: int, role: str, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the chunks of some patches."""
        places, sizes = self.places[role][rows].tolist(), self.sizes[role][rows].tolist()
        return (os.pread(descriptor, *one) for one in zip(sizes, places, strict=True))

    def block(self, index: int) -> tuple[int, int]:
        """Return first byte and length of all chunks of a block."""
        start, stop = self.blocks[index : index + 2].tolist()
        return start, stop - start
