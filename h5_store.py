"""The h5 file: creating it, writing blocks at their place, finishing, reading. Alone imports h5py.

    input     (N, 1, p, p) torch or (N, p, p, 1) tf   float32, contiguous
    target    the same
    patch/    pair, scale, row, col, orientation       (N,): where every patch comes from
    pair/     one row a pair: names, position, its patches, and what undoes the normalisation
    attrs     format, format_version, complete, seed, configuration (JSON), orientations

Every dataset is contiguous and has its size from the start, so a block's place is known before it
is made, and any process may write it with a plain write at a byte offset: the HDF5 library is
needed to create the file and to finish it only. All strings have a fixed length: HDF5 would keep others in a
heap whose bytes are not always the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from augment import ORIENTATIONS
from utils import Affine, Block, CallError, Config, Pair, Plan, RunError, quoted

if TYPE_CHECKING:
    from parallel import Writer

FORMAT = "paired CT patches"
FORMAT_VERSION = 1
PARTIAL = ".partial"
#: A multiple of a page and of a disk block: patches can be mapped, and pages are written whole.
ALIGNMENT = 4096
#: One write(2) call takes no more than 2^31 - 4096 bytes on Linux.
WRITE_BYTES = 1 << 30

PATCH_COLUMNS = {
    "pair": "<u4",
    "scale": "<f4",
    "row": "<i4",
    "col": "<i4",
    "orientation": "|u1",
}


@dataclass(frozen=True)
class Layout:
    """Where the bytes of the partial file lie; all that a rank needs to write blocks.

    Attributes
    ----------
    path : str
        The partial file.
    device, inode : int
        Of that file, so that a rank can tell whether it sees the same one.
    offsets : dict of str to int
        First byte of `input`, `target` and of each column of `patch/`.
    """

    path: str
    device: int
    inode: int
    offsets: dict[str, int]


def check_output(config: Config) -> None:
    """Refuse an output that cannot or may not be written, before any work is done.

    Raises
    ------
    CallError
        It exists and `--overwrite` is not given, is a folder, lies in a folder that is none or that
        may not be written, or another run is at it.
    """
    path = Path(config.output_fname)
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
    partial = partial_path(config)
    if os.path.lexists(partial):
        raise CallError(
            f"{quoted(partial)} exists: another run is writing it, or one was ended by force; if "
            "none is running, remove that file"
        )


def partial_path(config: Config) -> str:
    """Return the name that the file has until it is complete, beside its final one."""
    return config.output_fname + PARTIAL


def bytes_needed(plan: Plan, config: Config) -> int:
    """Return how many bytes the datasets of patches take."""
    columns = sum(np.dtype(t).itemsize for t in PATCH_COLUMNS.values())
    return plan.patches * (2 * 4 * config.patch_size**2 + columns)


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


def create(plan: Plan, config: Config) -> Layout:
    """Make the partial file with all datasets in their final size, and with the tables of pairs.

    Raises
    ------
    RunError
        The file cannot be made, or the disk has no space for it; nothing is left then.
    """
    path = partial_path(config)
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
    return Layout(os.path.abspath(path), status.st_dev, status.st_ino, offsets)


def _create_contents(file: h5py.File, plan: Plan, config: Config) -> dict[str, int]:
    p, n = config.patch_size, plan.patches
    shape = (n, 1, p, p) if config.tensor_format == "torch" else (n, p, p, 1)
    offsets = {name: _contiguous(file, name, shape, "<f4") for name in ("input", "target")}
    table = file.create_group("patch")
    offsets |= {name: _contiguous(table, name, (n,), kind) for name, kind in PATCH_COLUMNS.items()}
    _write_pairs(file.create_group("pair"), plan)
    for name, value in {
        "format": FORMAT,
        "format_version": np.uint32(FORMAT_VERSION),
        "complete": np.uint8(0),
        "seed": np.int64(config.seed),
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
        "patient": text([p.patient for p in plan.pairs]),
        "input_file": text([s.file for s in inputs]),
        "target_file": text([s.file for s in targets]),
        "position_mm": [np.nan if s.position_mm is None else s.position_mm for s in targets],
        "rows": np.array([s.rows for s in targets], "<u4"),
        "columns": np.array([s.columns for s in targets], "<u4"),
        "first_patch": np.array(plan.starts[:-1], "<u8"),
        "patches": np.diff(np.array(plan.starts, "<u8")),
        "degradation": text([d or "none" for d in plan.degradations]),
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


def write_block(writer: Writer, layout: Layout, block: Block, index: int, start: int) -> None:
    """Write the block of a pair at its place.

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
    n = len(block.scale)
    if not n:
        return
    arrays = {
        "input": block.input,
        "target": block.target,
        "pair": np.full(n, index),
        "scale": block.scale,
        "row": block.row,
        "col": block.col,
        "orientation": block.orientation,
    }
    for name, values in arrays.items():
        data = np.ascontiguousarray(values, PATCH_COLUMNS.get(name, "<f4"))
        writer.write(layout.offsets[name] + start * data[0].nbytes, data.reshape(-1).data)


def finish(layout: Layout, affines: list[tuple[Affine, Affine]], config: Config) -> None:
    """Write what was learned on the way, mark the file complete, and give it its final name.

    The order makes a killed run leave the final name alone: data and the mark are on the disk
    before the rename, and the rename is before the return.
    """
    with _named_errors(layout.path):
        with h5py.File(layout.path, "r+") as file:
            for side, name in enumerate(("input", "target")):
                file[f"pair/{name}_offset"][...] = [a[side].offset for a in affines]
                file[f"pair/{name}_divisor"][...] = [a[side].divisor for a in affines]
            file.attrs.modify("complete", np.uint8(1))
        _sync(layout.path)
        if os.path.lexists(config.output_fname) and not config.overwrite:
            raise RunError(f"{quoted(config.output_fname)} was made by another run meanwhile")
        os.replace(layout.path, config.output_fname)
        _sync(os.path.dirname(layout.path))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(layout: Layout) -> None:
    """Remove the partial file of a run that failed."""
    with contextlib.suppress(OSError):
        os.unlink(layout.path)


def read_patches(path: str, start: int, stop: int) -> tuple[NDArray[np.float32], ...]:
    """Return input and target patches `start` to `stop` of a file, each of shape (n, p, p)."""
    with h5py.File(path, "r") as file:
        return tuple(
            file[name][start:stop].squeeze(1 if file[name].shape[1] == 1 else -1)
            for name in ("input", "target")
        )


def pair_of(plan: Plan, index: int) -> Pair:
    """Return a pair of the plan by its number in the file."""
    return plan.pairs[index]
