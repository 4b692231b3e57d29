"""The header of the h5 file: everything except the blocks, built in memory by HDF5.

Every dataset of `ctpatches.schema` is contiguous and has its size from the start, so the place of a
block is known before the block is created, and any process may write it with a plain write at a
byte offset. Compressed patches are an exception: their chunks follow the header, and their index
follows them. HDF5 itself never writes to the disk, where it crashes when the disk is full.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches import schema
from ctpatches.checksums import rest_digest
from ctpatches.chunks import Chunks, index_nodes, root_of
from ctpatches.compression import filter_options
from ctpatches.files import write_at
from ctpatches.permutation import Permutation

#: A multiple of a page and of a disk block: pixels can be mapped, and pages are written whole.
ALIGNMENT = 4096
#: Where the superblock has the size of the file (HDF5 File Format Specification, section II.A).
END_OF_FILE = 40


class RecordedFile(io.RawIOBase):
    """A file of which the writes are kept, in their order.

    HDF5 reads nothing back while it creates a header: that fits into its cache.
    """

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.size = self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}
        self.position = start[whence] + offset
        return self.position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; HDF5 only ever extends a file."""
        self.size = self.position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        self.writes.append((self.position, bytes(data)))
        self.position += len(data)
        self.size = max(self.size, self.position)
        return len(data)


@dataclass(frozen=True)
class Header:
    """All bytes of a file except its blocks."""

    #: Bytes of the whole file, of a compressed one those before its chunks.
    size: int
    #: First byte, and bytes per row, of every dataset that blocks are written to.
    rows: dict[str, tuple[int, int]]
    #: First byte and end of each of them, and of the checksum of all other bytes.
    extents: list[tuple[int, int]]
    writes: list[tuple[int, bytes]]
    #: Of the rows of patches, in a shuffled file.
    shuffle: Permutation | None
    #: By role, where the index of a compressed dataset begins.
    roots: dict[str, int]

    def write(self, descriptor: int, starts: Sequence[int] = ()) -> None:
        """Write the header to a file of the full size, and nothing where its blocks are.

        Once they are there, `starts` are the first patch of each, and the end of the last: a
        compressed file also needs the index of its chunks, behind them.
        """
        position = 0
        for start, stop in [*sorted(self.extents), (self.size, self.size)]:
            write_at(descriptor, bytes(start - position), position)
            position = stop
        for offset, data in self.writes:
            write_at(descriptor, data, offset)
        size, extents = self.size, self.extents
        if self.roots and starts:
            chunks = self.chunks(descriptor, starts)
            size = int(chunks.blocks[-1])
            extents = [(self.size, size), *extents]
            for role, root in self.roots.items():
                nodes = index_nodes(chunks.places[role], chunks.sizes[role], root, size)
                for offset, data in nodes:
                    write_at(descriptor, data, offset)
                    size = max(size, offset + len(data))
            write_at(descriptor, size.to_bytes(8, "little"), END_OF_FILE)
        digest = rest_digest(descriptor, size, extents)
        write_at(descriptor, digest, extents[-1][0])

    def chunks(self, descriptor: int, starts: Sequence[int]) -> Chunks:
        """Return where the chunks of a compressed file lie, by the sizes that are in it."""
        sizes = {}
        for role in schema.ROLES:
            first, width = self.rows[f"patch/{role}_bytes"]
            sizes[role] = np.frombuffer(os.pread(descriptor, width * starts[-1], first), np.uint32)
        return Chunks(sizes, starts, self.size, self.shuffle)


def build_header(
    tables: Mapping[str, NDArray[Any]], configuration: str, unit: str, complete: bool
) -> Header:
    """Build the header of a file whose blocks have been written if it is `complete`.

    `tables` are all datasets that blocks are not written to, by name; `configuration` the options
    that determine the content, as JSON; `unit` that of the pixels before normalisation.
    """
    config = json.loads(configuration)
    patches, p = int(tables["pair/patches"].sum()), config["patch_size"]
    lengths = {"patch": patches, "byte": schema.REST_BYTES}
    if config["store"] == "views":
        sizes = np.multiply(tables["views/rows"], tables["views/columns"], dtype=np.int64)
        lengths["pixel"] = int(sizes.sum())
    shape = (patches, 1, p, p) if config["tensor_format"] == "torch" else (patches, p, p, 1)
    # Their bytes lie in one piece, at a place that is fixed from now on.
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    compressed, pixel_type = config["compression"] != "none", schema.DTYPES[config["dtype"]]
    memory = RecordedFile()
    rows, extents = {}, []
    interval = dict.fromkeys(("alignment_threshold", "alignment_interval"), ALIGNMENT)
    with h5py.File(memory, "w", **interval) as file:
        first_chunks = _create_compressed(file, shape, config) if compressed else {}
        for name in [*schema.bulk_names(config["store"], compressed), schema.REST]:
            field = schema.SCHEMA[name]
            field_shape = shape if field.image else (lengths[field.row_of],)
            dtype = pixel_type if field.dtype == schema.PIXELS else field.dtype
            dataset = file.create_dataset(name, field_shape, dtype, dcpl=early)
            first, size = int(dataset.id.get_offset()), dataset.dtype.itemsize * dataset.size
            extents.append((first, first + size))
            if name != schema.REST:
                rows[name] = first, size // max(len(dataset), 1)
        for name in (name for name in schema.SCHEMA if name in tables):  # one order of the bytes
            file.create_dataset(name, data=tables[name])
        orientations = "; ".join(f"{i}: {name}" for i, name in enumerate(schema.ORIENTATIONS))
        attributes = {
            "format": schema.FORMAT,
            "format_version": np.uint32(schema.VERSION),
            "complete": np.uint8(complete),
            "seed": np.int64(config["seed"]),
            "unit": unit,
            "configuration": configuration,
            "orientations": orientations,
        }
        for name, value in attributes.items():
            file.attrs[name] = value
            if isinstance(value, str):  # of variable length; `ctpatches.structure` has the reason
                file.attrs[name + schema.COPY] = np.bytes_(value.encode())
    roots = {role: root_of(memory.writes, chunk) for role, chunk in first_chunks.items()}
    shuffle = None
    if config["shuffle_patches"]:
        shuffle = Permutation(patches, config["seed"], bytes(tables["pair/input_file"][0]))
    return Header(memory.size, rows, extents, memory.writes, shuffle, roots)


def _create_compressed(
    file: h5py.File, shape: tuple[int, ...], config: Mapping[str, Any]
) -> dict[str, int]:
    """Create the compressed datasets; return the place of the first chunk of each."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)  # the same in all versions of h5py
    options = {"chunks": (1, *shape[1:]), **filter_options(config["compression"])}
    out = {}
    for role in schema.ROLES:
        dataset = file.create_dataset(
            role, shape, schema.DTYPES[config["dtype"]], dcpl=properties.copy(), **options
        )
        dataset.id.write_direct_chunk((0, 0, 0, 0), b"\0")  # which creates the index
        out[role] = dataset.id.get_chunk_info(0).byte_offset
    return out
