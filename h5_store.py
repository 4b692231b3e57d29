"""The h5 file: creating it, writing blocks at their place, finishing. `h5_read` reads it.

    input      (N, 1, p, p) torch or (N, p, p, 1) tf   float32, contiguous
    target     the same
    patch/     pair, scale, row, col, orientation       (N,): where every patch comes from
    pair/      a row a pair: names, position, patches, what undoes the normalisation, checksum
    checksum   (16,) of all bytes that are in none of the datasets above that have a row a patch
    attrs      format, format_version, complete, seed, unit, configuration (JSON), orientations

Every dataset is contiguous and has its size from the start, so a block's place is known before it
is made, and any process may write it with a plain write at a byte offset: the HDF5 library is
needed to create the file and to finish it only. All strings have a fixed length: HDF5 would keep
others in a heap whose bytes are not always the same.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from h5_read import FORMAT, ORIENTATIONS, PATCH_COLUMNS, REST, bulk_names, rest_digest
from utils import SIDES, Affine, Block, CallError, Config, Plan, RunError, quoted

if TYPE_CHECKING:
    from parallel import Writer

FORMAT_VERSION = 1
PARTIAL = ".partial"
#: A multiple of a page and of a disk block: patches can be mapped, and pages are written whole.
ALIGNMENT = 4096
#: One write(2) call takes no more than 2^31 - 4096 bytes on Linux.
WRITE_BYTES = 1 << 30


@dataclass(frozen=True)
class Layout:
    """Where the bytes of the partial file lie; all that a rank needs to write blocks.

    Attributes
    ----------
    path : str
        The partial file.
    final : str
        The name that it gets when it is complete.
    device, inode : int
        Of that file, so that a rank can tell whether it sees the same one.
    offsets : dict of str to int
        First byte of every dataset with a row a patch, and of the checksum of the rest.
    """

    path: str
    final: str
    device: int
    inode: int
    offsets: dict[str, int]


@dataclass(frozen=True)
class Written:
    """What is known of a pair only when its block has been written."""

    input_affine: Affine
    target_affine: Affine
    checksum: int


def outputs(config: Config) -> dict[str, str]:
    """Return the files that a run makes, by side: '' without a split."""
    if config.split is None and config.split_file is None:
        return {"": config.output_fname}
    stem, ending = os.path.splitext(config.output_fname)
    parts = config.split or (1,) * len(SIDES)
    return {side: f"{stem}_{side}{ending}" for side, part in zip(SIDES, parts, strict=True) if part}


def check_outputs(config: Config) -> None:
    """Refuse outputs that cannot or may not be written, before any work is done.

    Raises
    ------
    CallError
        See `check_output`.
    """
    for path in outputs(config).values():
        check_output(path, config)
    if config.anonymize and os.path.lexists(key_path(config)) and not config.overwrite:
        raise CallError(
            f"{quoted(key_path(config))}, the key of the pseudonyms, exists; add --overwrite to "
            "replace it, or name another --output-fname"
        )


def check_output(fname: str, config: Config) -> None:
    """Refuse an output that cannot or may not be written.

    Raises
    ------
    CallError
        It exists and `--overwrite` is not given, is a folder, lies in a folder that is none or that
        may not be written, or another run is at it.
    """
    path = Path(fname)
    if path.is_dir():
        raise CallError(f"--output-fname {quoted(path)} is a folder; wanted: the name of a file")
    if os.path.lexists(path) and not config.overwrite:
        raise CallError(
            f"--output-fname {quoted(path)} exists; add --overwrite to replace it, or name another"
        )
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise CallError(f"--output-fname {quoted(path)}: {quoted(parent)} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CallError(
            f"--output-fname {quoted(path)}: the folder {quoted(parent)} is not writable"
        )
    partial = partial_path(fname)
    if os.path.lexists(partial):
        raise CallError(
            f"{quoted(partial)} exists: another run is writing it, or one was ended by force; if "
            "none is running, remove that file"
        )


def partial_path(fname: str) -> str:
    """Return the name that a file has until it is complete, beside its final one."""
    return fname + PARTIAL


def key_path(config: Config) -> str:
    """Return where `--anonymize` keeps what the pseudonyms stand for."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Turn an error of the system or of HDF5 into one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"no space left for {quoted(path)}") from error
        reason = error.strerror or str(error).split("\n")[0]
        raise RunError(f"cannot write {quoted(path)}: {reason}") from error


def create(plan: Plan, final: str, config: Config) -> Layout:
    """Make the partial file with all datasets in their final size, and with the tables of pairs.

    Raises
    ------
    RunError
        The file cannot be made, or the disk has no space for it; nothing is left then.
    """
    path = partial_path(final)
    with _named_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # 'x', not 'w': 'w' empties a file that another process is writing.
        file = h5py.File(path, "x", alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT)
    try:
        with _named_errors(path):
            with file:
                offsets = _create_contents(file, plan, config)
            _reserve(path)
            status = os.stat(path)
    except BaseException:
        os.unlink(path)
        raise
    where = os.path.abspath(path), os.path.abspath(final)
    return Layout(*where, status.st_dev, status.st_ino, offsets)


def _create_contents(file: h5py.File, plan: Plan, config: Config) -> dict[str, int]:
    p, n = config.patch_size, plan.patches
    shape = (n, 1, p, p) if config.tensor_format == "torch" else (n, p, p, 1)
    offsets = {name: _contiguous(file, name, shape, "<f4") for name in ("input", "target")}
    table = file.create_group("patch")
    for name, kind in PATCH_COLUMNS.items():
        offsets[f"patch/{name}"] = _contiguous(table, name, (n,), kind)
    offsets[REST] = _contiguous(file, REST, (16,), "|u1")
    _write_pairs(file.create_group("pair"), plan)
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
    return offsets


def _contiguous(group: h5py.Group, name: str, shape: tuple[int, ...], kind: str) -> int:
    """Make a dataset whose bytes lie in one piece from now on; return where they begin."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)  # the same job gives the same bytes at any time
    space = h5py.h5s.create_simple(shape)
    of_type = h5py.h5t.py_create(np.dtype(kind))
    made = h5py.h5d.create(group.id, name.encode(), of_type, space, how)
    return int(made.get_offset())


def _write_pairs(group: h5py.Group, plan: Plan) -> None:
    def side(get: str) -> list[Any]:
        return [getattr(pair, get) for pair in plan.pairs]

    def text(values: list[str]) -> NDArray[np.bytes_]:
        raw = [v.encode("utf-8", "surrogateescape") for v in values]
        return np.array(raw, h5py.string_dtype("utf-8", max(map(len, raw))))

    inputs, targets = side("input"), side("target")
    columns: dict[str, Any] = {
        "patient": text([n.patient for n in plan.names]),
        "input_file": text([n.input_file for n in plan.names]),
        "target_file": text([n.target_file for n in plan.names]),
        "position_mm": [np.nan if s.position_mm is None else s.position_mm for s in targets],
        "rows": np.array([s.rows for s in targets], "<u4"),
        "columns": np.array([s.columns for s in targets], "<u4"),
        "first_patch": np.array(plan.starts[:-1], "<u8"),
        "patches": np.diff(np.array(plan.starts, "<u8")),
        "degradation": text([d or "none" for d in plan.degradations]),
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


def _reserve(path: str) -> None:
    """Take the disk space of the whole file now, so that a full disk is met before the work."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                return  # a file system that cannot reserve
            disk = os.statvfs(path)
            free = disk.f_bavail * disk.f_frsize
            raise RunError(
                f"no space for {quoted(path)}: needed {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB"
            ) from error


class PartialFile:
    """The partial file, open for writing blocks at their place by any process of the host."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.path
        with _named_errors(self.path):
            self.descriptor = os.open(layout.path, os.O_WRONLY)

    @classmethod
    def seen(cls, layout: Layout) -> PartialFile | None:
        """Open it if this process sees the very file that rank 0 has made, else return None."""
        try:
            status = os.stat(layout.path)
            if (status.st_dev, status.st_ino) != (layout.device, layout.inode):
                return None
            return cls(layout)
        except (OSError, RunError):
            return None

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte.

        Raises
        ------
        RunError
            The disk is full or broken.
        """
        data = data.cast("B")
        with _named_errors(self.path):
            while data:
                done = os.pwrite(self.descriptor, data[:WRITE_BYTES], offset)
                data, offset = data[done:], offset + done

    def close(self) -> None:
        """Close it; what was written may still be on its way to the disk."""
        os.close(self.descriptor)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_block(writer: Writer, layout: Layout, block: Block, index: int, start: int) -> Written:
    """Write the block of a pair at its place; return what `finish` is to write of it.

    Parameters
    ----------
    writer : Writer
    layout : Layout
    block : Block
    index : int
        Of the pair, for `patch/pair`.
    start : int
        Index of the block's first patch in the file.
    """
    import xxhash

    n = len(block.scale)
    columns = {
        "pair": np.full(n, index),
        **{c: getattr(block, c) for c in PATCH_COLUMNS if c != "pair"},
    }
    arrays = [block.input, block.target]
    arrays += [np.ascontiguousarray(columns[c], kind) for c, kind in PATCH_COLUMNS.items()]
    digest = xxhash.xxh3_64()
    for name, data in zip(bulk_names(), arrays, strict=True):
        if n:
            digest.update(data.data)
            writer.write(layout.offsets[name] + start * data[0].nbytes, data.reshape(-1).data)
    return Written(block.input_affine, block.target_affine, digest.intdigest())


def finish(layouts: list[Layout], written: list[list[Written]], config: Config) -> None:
    """Write what was learned on the way, mark the files complete, and give them their final names.

    The order makes a killed run leave the final names alone: data, checksums and marks are on the
    disk before the first rename, and the renames are before the return.

    Parameters
    ----------
    layouts : list of Layout
    written : list of list of Written
        For each of the files a record of each of its pairs.
    config : Config
    """
    for layout, records in zip(layouts, written, strict=True):
        with _named_errors(layout.path):
            _complete(layout, records)
            _sync(layout.path)
            if os.path.lexists(layout.final) and not config.overwrite:
                raise RunError(f"{quoted(layout.final)} was made by another run meanwhile")
    for layout in layouts:
        with _named_errors(layout.final):
            os.replace(layout.path, layout.final)
    for folder in {os.path.dirname(layout.path) for layout in layouts}:
        _sync(folder)


def _complete(layout: Layout, records: list[Written]) -> None:
    with h5py.File(layout.path, "r+") as file:
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


def write_key(names: dict[str, str], config: Config) -> None:
    """Write what the pseudonyms stand for, readable by nobody but the owner.

    Parameters
    ----------
    names : dict of str to str
        Real names by pseudonym.
    config : Config
    """
    path = key_path(config)
    with _named_errors(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + PARTIAL)
        # The mode at creation, not afterwards: nobody may read it in between.
        descriptor = os.open(path + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("pseudonym", "name"))
            rows.writerows(names.items())
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + PARTIAL, path)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(layouts: Iterable[Layout]) -> None:
    """Remove the partial files of a run that failed."""
    for layout in layouts:
        with contextlib.suppress(OSError):
            os.unlink(layout.path)
