"""The header of the h5 file: everything but the rows of patches, built in memory by HDF5.

    input      (N, 1, p, p) torch or (N, p, p, 1) tf   float32, contiguous
    target     the same
    patch/     pair, scale, row, col, orientation       (N,): where every patch comes from
    left_out/  patient, files, reason, kind             what gives no patches, and why
    pair/      a row a pair: names, position, patches, what undoes the normalisation, checksum of
               the block, digests of the two slices
    checksum   (16,) of all bytes that are in none of the datasets above that have a row per patch
    attrs      format, format_version, complete, seed, unit, configuration (JSON), orientations

Every dataset is contiguous and has its size from the start, so a block's place is known before it
is made, and any process may write it with a plain write at a byte offset. HDF5 itself never writes
to the disk, where it crashes when the disk is full: it writes into a `SparseFile`, whose pages are
then written like blocks. All strings have a fixed length: HDF5 would keep others in a heap whose
bytes are not always the same.
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
from ctpatches.schema import FORMAT, ORIENTATIONS, PATCH_COLUMNS, REST, VERSION, bulk_names
from ctpatches.validation import ValidatedFile, opened
from pipeline.config import Config
from pipeline.model import LeftOut, Plan
from pipeline.output.blocks import write_at
from pipeline.output.checkpoint import BlockRecord, configuration_difference
from utils import Affine, printable

#: A multiple of a page and of a disk block: patches can be mapped, and pages are written whole.
ALIGNMENT = 4096


class SparseFile(io.RawIOBase):
    """A file in memory that keeps only the pages that have been written."""

    PAGE_BYTES = 64 << 10

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}
        self.position = start[whence] + offset
        return self.position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; HDF5 only ever extends a file."""
        self.size = self.position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Write at the current position, and return the number of bytes."""
        data = memoryview(data).cast("B")
        for page, within, piece in self._pieces(data):
            here = self.pages.setdefault(page, bytearray(self.PAGE_BYTES))
            here[within : within + len(piece)] = piece
        self.size = max(self.size, self.position)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position: with zeros where nothing was written."""
        for page, within, piece in self._pieces(memoryview(buffer).cast("B")):
            here = self.pages.get(page)
            piece[:] = here[within : within + len(piece)] if here else bytes(len(piece))
        return len(buffer)

    def _pieces(self, data: memoryview) -> Iterable[tuple[int, int, memoryview]]:
        """Yield page, offset in it, and the part of `data` there; move the position behind it."""
        while data:
            page, within = divmod(self.position, self.PAGE_BYTES)
            piece = data[: self.PAGE_BYTES - within]
            yield page, within, piece
            data, self.position = data[len(piece) :], self.position + len(piece)


@dataclass(frozen=True)
class Header:
    """All bytes of a file but its blocks.

    Attributes
    ----------
    size : int
        Bytes of the whole file.
    offsets : dict of str to int
        First byte of every dataset with a row per patch, and of the checksum of the rest.
    extents : list of tuple of int
        First byte and end of each of them.
    bytes : SparseFile
    """

    size: int
    offsets: dict[str, int]
    extents: list[tuple[int, int]]
    bytes: SparseFile

    def write(self, descriptor: int) -> None:
        """Write the header to a file of the full size, leaving all blocks alone."""
        at = 0
        for start, stop in [*sorted(self.extents), (self.size, self.size)]:
            for first in range(at, start, SparseFile.PAGE_BYTES):
                self.bytes.seek(first)
                data = self.bytes.read(min(SparseFile.PAGE_BYTES, start - first))
                write_at(descriptor, memoryview(data), first)
            at = stop
        digest = rest_digest(descriptor, self.size, self.extents)
        write_at(descriptor, memoryview(digest), self.offsets[REST])


def header(plan: Plan, config: Config, records: Sequence[BlockRecord] | None = None) -> Header:
    """Build the header of a file.

    Parameters
    ----------
    plan : Plan
    config : Config
    records : sequence of BlockRecord, optional
        One per pair; without them the header is that of a file that is not complete.
    """
    memory = SparseFile()
    interval = dict.fromkeys(("alignment_threshold", "alignment_interval"), ALIGNMENT)
    with h5py.File(memory, "w", **interval) as file:
        _create_contents(file, plan, config, records)
        datasets = {name: file[name] for name in [*bulk_names(), REST]}
        offsets = {name: int(one.id.get_offset()) for name, one in datasets.items()}
        sizes = {name: one.dtype.itemsize * one.size for name, one in datasets.items()}
    extents = [(start, start + sizes[name]) for name, start in offsets.items()]
    return Header(memory.size, offsets, extents, memory)


def _create_contents(
    file: h5py.File, plan: Plan, config: Config, records: Sequence[BlockRecord] | None
) -> None:
    """Create all datasets in their final size, and write all but the blocks."""
    p, n = config.patch_size, plan.patches
    shape = (n, 1, p, p) if config.tensor_format == "torch" else (n, p, p, 1)
    for name in ("input", "target"):
        _contiguous(file, name, shape, "<f4")
    table = file.create_group("patch")
    for name, kind in PATCH_COLUMNS.items():
        _contiguous(table, name, (n,), kind)
    _contiguous(file, REST, (16,), "|u1")
    _write_pairs(file.create_group("pair"), plan, records)
    _write_left_out(file.create_group("left_out"), plan.left_out)
    for name, value in {
        "format": FORMAT,
        "format_version": np.uint32(VERSION),
        "complete": np.uint8(records is not None),
        "seed": np.int64(config.seed),
        "unit": "hu" if config.in_hu else "stored",
        "configuration": config.as_json(),
        "orientations": "; ".join(f"{code}: {name}" for code, name in enumerate(ORIENTATIONS)),
    }.items():
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def _contiguous(group: h5py.Group, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Make a dataset whose bytes lie in one piece, at a place that is fixed from now on."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)  # the same job gives the same bytes at any time
    space = h5py.h5s.create_simple(shape)
    of_type = h5py.h5t.py_create(np.dtype(kind))
    h5py.h5d.create(group.id, name.encode(), of_type, space, how)


def _text(values: Iterable[str]) -> NDArray[np.bytes_]:
    """Return strings of one length, UTF-8, padded with zeros."""
    raw = [value.encode("utf-8", "surrogateescape") for value in values]
    return np.array(raw, h5py.string_dtype("utf-8", max(map(len, raw), default=1) or 1))


def _write_left_out(group: h5py.Group, left_out: Sequence[LeftOut]) -> None:
    group.create_dataset("patient", data=_text(one.patient for one in left_out))
    group.create_dataset("files", data=_text("\n".join(one.files) for one in left_out))
    group.create_dataset("reason", data=_text(one.reason for one in left_out))
    group.create_dataset("kind", data=_text(one.kind for one in left_out))


def _write_pairs(group: h5py.Group, plan: Plan, records: Sequence[BlockRecord] | None) -> None:
    def side(get: str) -> list[Any]:
        return [getattr(pair, get) for pair in plan.pairs]

    inputs, targets = side("input"), side("target")
    if records is None:
        nothing = Affine(0.0, 0.0)
        records = [BlockRecord(nothing, nothing, 0, (0, 0))] * len(plan.pairs)
    columns: dict[str, Any] = {
        "patient": _text([n.patient for n in plan.names]),
        "input_file": _text([n.input_file for n in plan.names]),
        "target_file": _text([n.target_file for n in plan.names]),
        "position_mm": [np.nan if s.position_mm is None else s.position_mm for s in targets],
        "rows": np.array([s.rows for s in targets], "<u4"),
        "columns": np.array([s.columns for s in targets], "<u4"),
        "first_patch": np.array(plan.starts[:-1], "<u8"),
        "patches": np.diff(np.array(plan.starts, "<u8")),
        "degradation": _text([d or "none" for d in plan.degradations]),
        "checksum": np.array([r.checksum for r in records], "<u8"),
    }
    for number, (name, slices) in enumerate((("input", inputs), ("target", targets))):
        columns[f"{name}_slope"] = [s.slope for s in slices]
        columns[f"{name}_intercept"] = [s.intercept for s in slices]
        affines = [getattr(record, f"{name}_affine") for record in records]
        columns[f"{name}_offset"] = [a.offset for a in affines]
        columns[f"{name}_divisor"] = [a.divisor for a in affines]
        columns[f"{name}_digest"] = np.array([r.digests[number] for r in records], "<u8")
    for name, values in columns.items():
        group.create_dataset(name, data=np.asarray(values))


#: Columns of `pair/` that are known only when the block has been written.
_FILLED = ("checksum", "offset", "divisor", "digest")


def difference(path: str, plan: Plan, config: Config) -> str:
    """Return how a file differs from what a run would write; '' if it is of exactly this job.

    Parameters
    ----------
    path : str
    plan : Plan
        With the digests of all slices.
    config : Config
    """
    expected = header(plan, config).bytes
    try:
        with opened(path) as file, h5py.File(expected, "r") as same:
            return _difference(file, same, plan)
    except (OSError, ValueError) as error:
        return str(error)


def _difference(file: ValidatedFile, expected: h5py.File, plan: Plan) -> str:
    if file.version != VERSION:
        return f"it has format version {file.version}, which does not identify its scans"
    then, now = (bytes(one["configuration"]).decode() for one in (file.attributes, expected.attrs))
    if changed := configuration_difference(then, now):
        return changed
    names = [f"{group}/{column}" for group in ("pair", "left_out") for column in expected[group]]
    for name in names:
        old, new = file.values(name), expected[name][()]
        same = (old.dtype, old.tobytes()) == (new.dtype, new.tobytes())
        if not same and not name.endswith(_FILLED):
            return f"the input changed: other values of {name}"
    for number, side in enumerate(("input", "target")):
        digests = np.array([both[number] for both in plan.digests], "<u8")
        for pair in np.flatnonzero(file.values(f"pair/{side}_digest") != digests):
            name = printable(plan.names[pair][1 + number])
            return f"the input changed: other pixel values in {name}"
    return ""
