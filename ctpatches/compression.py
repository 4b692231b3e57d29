"""Compression of patches: a chunk per patch, compressed by HDF5's own filters.

The chunks of a block, first those of the inputs, follow those of the block before it. Their sizes
are columns of `patch/`, so that their places are known without the index of HDF5.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import ROLES


def filters(compression: str) -> dict[str, Any]:
    """Return the filters of a compression as arguments of `h5py.Group.create_dataset`."""
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname=compression))


def compress(patches: NDArray[Any], compression: str) -> list[bytes]:
    """Return the chunk of each of some patches, shape (n, p, p), as HDF5 writes it.

    A chunk depends on its patch alone.
    """
    # HDF5 has no other interface to its filters.
    with h5py.File(
        "chunks", "w", driver="core", backing_store=False, block_size=1 << 20, rdcc_nbytes=0
    ) as file:
        dataset = file.create_dataset(
            "x", patches.shape, patches.dtype, chunks=(1, *patches.shape[1:]), **filters(compression)
        )
        dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, patches)
        read = dataset.id.read_direct_chunk
        return [read((row, 0, 0))[1] for row in range(len(patches))]


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a compressed file lie."""

    #: By role, in the order of the patches: bytes, and first byte of every chunk.
    sizes: Mapping[str, NDArray[np.uint32]]
    places: Mapping[str, NDArray[np.uint64]]
    #: First byte of every block, and the end of the last.
    blocks: NDArray[np.uint64]

    @classmethod
    def packed(
        cls, sizes: Mapping[str, NDArray[np.uint32]], starts: Sequence[int], first: int
    ) -> Chunks:
        """Return the places of chunks by their sizes, from the byte `first` on.

        `starts` are the first patch of every block, and the end of the last.
        """
        low, full = (np.append(0, np.cumsum(sizes[role], dtype=np.uint64)) for role in ROLES)
        counts = np.diff(starts)
        # Before a chunk lie those of its own role, and of the other role those of earlier blocks;
        # before a target also those of its own block.
        others = np.repeat(full[starts[:-1]], counts), np.repeat(low[starts[1:]], counts)
        places = (first + own[:-1] + other for own, other in zip((low, full), others, strict=True))
        blocks = first + low[starts] + full[starts]
        return cls(sizes, dict(zip(ROLES, places, strict=True)), blocks)

    @classmethod
    def read(
        cls,
        descriptor: int,
        rows: Mapping[str, tuple[int, int]],
        starts: Sequence[int],
        first: int,
    ) -> Chunks:
        """Return the places of the chunks of a file from its columns, as `packed`.

        `rows` has the first byte of every column, and the bytes of a row.
        """
        sizes = {}
        for role in ROLES:
            start, width = rows[f"patch/{role}_bytes"]
            column = os.pread(descriptor, width * starts[-1], start)
            sizes[role] = np.frombuffer(column, np.uint32)
        return cls.packed(sizes, starts, first)

    def block(self, index: int) -> tuple[int, int]:
        """Return first byte and length of all chunks of a block."""
        start, stop = self.blocks[index : index + 2].tolist()
        return start, stop - start
