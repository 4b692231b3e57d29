"""The header of the h5 file: everything except the rows of patches, built in memory by HDF5.

Every dataset of `ctpatches.schema` is contiguous and has its size from the start, so the place of a
block is known before the block is created, and any process may write it with a plain write at a
byte offset. HDF5 itself never writes to the disk, where it crashes when the disk is full.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.checksums import rest_digest
from ctpatches.schema import (
    COPY,
    DIFFERENCE_COLUMNS,
    FORMAT,
    ORIENTATIONS,
    PATCH_COLUMNS,
    REST,
    REST_BYTES,
    VERSION,
)
from ctpatches.validation import opened
from pipeline.config import Config
from pipeline.model import Difference, Plan
from pipeline.output import checkpoint
from pipeline.output.blocks import write_at
from pipeline.output.checkpoint import BlockRecord
from utils import Affine

#: A multiple of a page and of a disk block: patches can be mapped, and pages are written whole.
ALIGNMENT = 4096
#: Ends of the names of the columns of `pair/` that are known only when the block has been written.
FILLED = ("checksum", "offset", "divisor", "digest", *DIFFERENCE_COLUMNS)


class RecordedFile(io.RawIOBase):
    """A file in memory that consists of what was written to it, in order, and else of zeros."""

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

    def readinto(self, buffer: Any) -> int:
        first, stop = self.position, self.position + len(buffer)
        buffer[:] = bytes(len(buffer))
        for offset, data in self.writes:
            part = data[max(first - offset, 0) : max(stop - offset, 0)]
            place = max(offset - first, 0)
            buffer[place : place + len(part)] = part
        self.position = stop
        return len(buffer)


@dataclass(frozen=True)
class Header:
    """All bytes of a file except its blocks."""

    #: Bytes of the whole file.
    size: int
    #: First byte, and bytes per row, of every dataset with a row per patch.
    rows: dict[str, tuple[int, int]]
    #: First byte and end of each of them, and of the checksum of all other bytes.
    extents: list[tuple[int, int]]
    writes: list[tuple[int, bytes]]

    def write(self, descriptor: int) -> None:
        """Write the header to a file of the full size, and nothing where its blocks are."""
        position = 0
        for start, stop in [*sorted(self.extents), (self.size, self.size)]:
            write_at(descriptor, bytes(start - position), position)
            position = stop
        for offset, data in self.writes:
            write_at(descriptor, data, offset)
        digest = rest_digest(descriptor, self.size, self.extents)
        write_at(descriptor, digest, self.extents[-1][0])


def header(plan: Plan, config: Config, records: Sequence[BlockRecord] = ()) -> Header:
    """Build the header: of a file that is not complete, unless there is a record per pair."""
    p, n = config.patch_size, plan.patches
    shape = (n, 1, p, p) if config.tensor_format == "torch" else (n, p, p, 1)
    contiguous: dict[str, tuple[tuple[int, ...], str]] = {
        "input": (shape, "<f4"),
        "target": (shape, "<f4"),
        **{f"patch/{name}": ((n,), dtype) for name, dtype in PATCH_COLUMNS.items()},
        REST: ((REST_BYTES,), "|u1"),
    }
    # Their bytes lie in one piece, at a place that is fixed from now on.
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    attributes = {
        "format": FORMAT,
        "format_version": np.uint32(VERSION),
        "complete": np.uint8(bool(records)),
        "seed": np.int64(config.seed),
        "unit": "hu" if config.in_hu else "stored",
        "configuration": config.as_json(),
        "orientations": "; ".join(f"{code}: {name}" for code, name in enumerate(ORIENTATIONS)),
    }
    memory = RecordedFile()
    rows, extents = {}, []
    interval = dict.fromkeys(("alignment_threshold", "alignment_interval"), ALIGNMENT)
    with h5py.File(memory, "w", **interval) as file:
        for name, (dataset_shape, dtype) in contiguous.items():
            dataset = file.create_dataset(name, dataset_shape, dtype, dcpl=early)
            first, size = int(dataset.id.get_offset()), dataset.dtype.itemsize * dataset.size
            rows[name] = first, size // len(dataset)
            extents.append((first, first + size))
        for name, values in tables(plan, records).items():
            file.create_dataset(name, data=values)
        for name, value in attributes.items():
            file.attrs[name] = value
            if isinstance(value, str):  # of variable length; `ctpatches.validation` has the reason
                file.attrs[name + COPY] = np.bytes_(value.encode())
    return Header(memory.size, rows, extents, memory.writes)


def tables(plan: Plan, records: Sequence[BlockRecord] = ()) -> dict[str, NDArray[Any]]:
    """Return the columns of `pair/` and `left_out/`; those `FILLED` are 0 without records."""
    nothing = BlockRecord(Affine(0, 0), Affine(0, 0), 0, (0, 0), Difference())
    records = records or [nothing] * len(plan.pairs)
    targets = [pair.target for pair in plan.pairs]
    positions = [np.nan if s.position_mm is None else s.position_mm for s in targets]
    out: dict[str, NDArray[Any]] = {
        "pair/patient": _text(names.patient for names in plan.names),
        "pair/input_file": _text(names.input_file for names in plan.names),
        "pair/target_file": _text(names.target_file for names in plan.names),
        "pair/position_mm": np.array(positions, "<f8"),
        "pair/rows": np.array([s.rows for s in targets], "<u4"),
        "pair/columns": np.array([s.columns for s in targets], "<u4"),
        "pair/first_patch": np.array(plan.starts[:-1], "<u8"),
        "pair/patches": np.diff(np.array(plan.starts, "<u8")),
        "pair/degradation": _text(one or "none" for one in plan.degradations),
        "pair/checksum": np.array([record.checksum for record in records], "<u8"),
    }
    measured = zip(*(record.difference for record in records), strict=True)
    for (name, dtype), values in zip(DIFFERENCE_COLUMNS.items(), measured, strict=True):
        out[f"pair/{name}"] = np.array(values, dtype)
    for number, role in enumerate(("input", "target")):
        slices = [getattr(pair, role) for pair in plan.pairs]
        affines = [getattr(record, f"{role}_affine") for record in records]
        out |= {
            f"pair/{role}_slope": np.array([s.slope for s in slices], "<f8"),
            f"pair/{role}_intercept": np.array([s.intercept for s in slices], "<f8"),
            f"pair/{role}_offset": np.array([affine.offset for affine in affines], "<f8"),
            f"pair/{role}_divisor": np.array([affine.divisor for affine in affines], "<f8"),
            f"pair/{role}_digest": np.array([r.digests[number] for r in records], "<u8"),
        }
    return out | {
        "left_out/patient": _text(one.patient for one in plan.left_out),
        "left_out/files": _text("\n".join(one.files) for one in plan.left_out),
        "left_out/reason": _text(one.reason for one in plan.left_out),
        "left_out/kind": _text(one.kind for one in plan.left_out),
    }


def _text(values: Iterable[str]) -> NDArray[np.bytes_]:
    """Return strings of one length, UTF-8, padded with zeros."""
    raw = [value.encode("utf-8", "surrogateescape") for value in values]
    return np.array(raw, h5py.string_dtype("utf-8", max(map(len, raw), default=1) or 1))


def difference(path: str, plan: Plan, config: Config) -> str:
    """Return how a complete file differs from what a run would write; '' if it is of the same job.

    The plan has the digests of all slices.
    """
    known = {name: column for name, column in tables(plan).items() if not name.endswith(FILLED)}
    now = {name: column.tolist() for name, column in known.items()}
    try:
        with opened(path) as file:
            if file.version != VERSION:
                return f"it has format version {file.version}, expected {VERSION}"
            then = {name: file.values(name).tolist() for name in known}
            configuration = file.attributes["configuration"].decode()
            digests = (file.values(f"pair/{role}_digest").tolist() for role in ("input", "target"))
            recorded = dict(enumerate(zip(*digests, strict=True)))
        changed = checkpoint.difference(
            {"configuration": configuration, **then}, {"configuration": config.as_json(), **now}
        )
        return changed or checkpoint.changed_pixels(plan, recorded)
    except (OSError, ValueError) as error:
        return str(error)
