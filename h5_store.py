"""The h5 file: creating it and completing it. `blocks` fills it, and `h5_read` reads it.

    input      (N, 1, p, p) torch or (N, p, p, 1) tf   float32, contiguous
    target     the same
    patch/     pair, scale, row, col, orientation       (N,): where every patch comes from
    left_out/  patient, files, reason, kind             what gives no patches, and why
    pair/      a row a pair: names, position, patches, what undoes the normalisation, checksum
    checksum   (16,) of all bytes that are in none of the datasets above that have a row a patch
    attrs      format, format_version, complete, seed, unit, configuration (JSON), orientations

Every dataset is contiguous and has its size from the start, so a block's place is known before it
is made, and any process may write it with a plain write at a byte offset: the HDF5 library is
needed to create the file and to finish it only. All strings have a fixed length: HDF5 would keep
others in a heap whose bytes are not always the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import large_pages
from blocks import Layout
from h5_read import FORMAT, ORIENTATIONS, PATCH_COLUMNS, REST, bulk_names, rest_digest
from journal import Written
from utils import Config, LeftOut, Plan, RunError, quoted

FORMAT_VERSION = 1
#: A multiple of a page and of a disk block: patches can be mapped, and pages are written whole.
ALIGNMENT = 4096


def make(path: str) -> h5py.File:
    """Make an empty file.

    Raises
    ------
    FileExistsError
        There is one: mode 'w' would empty a file that another process is writing.
    """
    # Without HDF5's locks, which some network file systems lack: `outputs` keeps its own.
    return h5py.File(
        path, "x", locking=False, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT
    )


def configuration(path: str) -> str:
    """Return the configuration that a file was made with, as JSON."""
    with h5py.File(path, "r", locking=False) as file:
        return bytes(file.attrs["configuration"]).decode()


def layout_of(path: str) -> Layout:
    """Return where the bytes of a file lie."""
    status = os.stat(path)
    with h5py.File(path, "r", locking=False) as file:
        offsets = {name: int(file[name].id.get_offset()) for name in [*bulk_names(), REST]}
    small_pages = large_pages.has_small_pages(status)
    return Layout(os.path.abspath(path), status.st_dev, status.st_ino, offsets, small_pages)


def create_contents(file: h5py.File, plan: Plan, config: Config) -> None:
    """Make all datasets in their final size, and write what is known before any patch is made."""
    p, n = config.patch_size, plan.patches
    shape = (n, 1, p, p) if config.tensor_format == "torch" else (n, p, p, 1)
    for name in ("input", "target"):
        _contiguous(file, name, shape, "<f4")
    table = file.create_group("patch")
    for name, kind in PATCH_COLUMNS.items():
        _contiguous(table, name, (n,), kind)
    _contiguous(file, REST, (16,), "|u1")
    _write_pairs(file.create_group("pair"), plan)
    _write_left_out(file.create_group("left_out"), plan.left_out)
    for name, value in {
        "format": FORMAT,
        "format_version": np.uint32(FORMAT_VERSION),
        "complete": np.uint8(0),
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


def _write_pairs(group: h5py.Group, plan: Plan) -> None:
    def side(get: str) -> list[Any]:
        return [getattr(pair, get) for pair in plan.pairs]

    inputs, targets = side("input"), side("target")
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
        "checksum": np.zeros(len(plan.pairs), "<u8"),
    }
    for name, slices in (("input", inputs), ("target", targets)):
        columns[f"{name}_slope"] = [s.slope for s in slices]
        columns[f"{name}_intercept"] = [s.intercept for s in slices]
        # Known only when the pair has been read: written by `finish`.
        columns[f"{name}_offset"] = np.zeros(len(slices))
        columns[f"{name}_divisor"] = np.zeros(len(slices))
    for name, values in columns.items():
        group.create_dataset(name, data=np.asarray(values))


def reserve(path: str) -> None:
    """Take the disk space of the whole file now, so that a full disk is met before the work."""
    with open(path, "r+b") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        full = size > free
        try:
            # In memory that would fill all pages with zeros, as much work as writing them.
            if not full and large_pages.file_system(status)[0] not in ("tmpfs", "ramfs"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            full = error.errno == errno.ENOSPC  # else a file system that cannot reserve
        if full:
            raise RunError(
                f"no space for {quoted(path)}: needed {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB"
            )


def complete(layout: Layout, records: list[Written]) -> None:
    """Write what was learned on the way, mark the file complete, and sum up its other bytes.

    Parameters
    ----------
    layout : Layout
    records : list of Written
        One for each pair.
    """
    with h5py.File(layout.path, "r+", locking=False) as file:
        table = file["pair"]
        for name in ("input", "target"):
            affines = [getattr(record, f"{name}_affine") for record in records]
            table[f"{name}_offset"][...] = [a.offset for a in affines]
            table[f"{name}_divisor"][...] = [a.divisor for a in affines]
        table["checksum"][...] = np.array([r.checksum for r in records], "<u8")
        file.attrs.modify("complete", np.uint8(1))
        starts = {name: (layout.offsets[name], file[name]) for name in [*bulk_names(), REST]}
        apart = [(at, at + d.dtype.itemsize * d.size) for at, d in starts.values()]
    descriptor = os.open(layout.path, os.O_RDWR)
    try:
        size = os.fstat(descriptor).st_size
        os.pwrite(descriptor, rest_digest(descriptor, size, apart), layout.offsets[REST])
    finally:
        os.close(descriptor)
