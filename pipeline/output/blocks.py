"""Blocks at their place in the partial file: plain writes at byte offsets, by any process.

HDF5, which `file_header` builds the rest of the file with, is not needed for it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ctpatches.schema import PATCH_COLUMNS, bulk_names
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.profile import laps, step
from utils import PIECE_BYTES, RunError, quoted

if TYPE_CHECKING:
    from patching import Block

#: No space on the disk, over the quota, beyond the limit on the size of a file (ulimit -f).
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: One write(2) call takes no more than 2^31 - 4096 bytes on Linux.
WRITE_BYTES = 1 << 30


@dataclass(frozen=True)
class Layout:
    """Where the bytes of the partial file lie; all that a rank needs to write blocks.

    Attributes
    ----------
    path : str
        The partial file.
    device, inode : int
        Of that file, so that a rank can check whether it sees the same one.
    offsets : dict of str to int
        First byte of every dataset with a row per patch, and of the checksum of the rest.
    """

    path: str
    device: int
    inode: int
    offsets: dict[str, int]


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn an error of the system or of HDF5 into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> RunError:
    reason = error.strerror or str(error).split("\n")[0]
    if error.errno in NO_SPACE:
        return RunError(f"no space left for {quoted(path)}: {reason}")
    return RunError(f"cannot write {quoted(path)}: {reason}")


def block_ranges(plan: Plan, layout: Layout, index: int, config: Config) -> list[tuple[int, int]]:
    """Return first byte and length of every part of a pair's block."""
    start, patches = plan.starts[index], plan.starts[index + 1] - plan.starts[index]
    wide = dict.fromkeys(("input", "target"), 4 * config.patch_size**2)
    wide |= {f"patch/{name}": np.dtype(kind).itemsize for name, kind in PATCH_COLUMNS.items()}
    return [(layout.offsets[n] + start * wide[n], patches * wide[n]) for n in bulk_names()]


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at that byte, however many a call takes."""
    data = data.cast("B")
    while data:
        done = os.pwrite(descriptor, data[:WRITE_BYTES], offset)
        data, offset = data[done:], offset + done


class Writer(Protocol):
    """Something that writes bytes at an offset of the file.

    Attributes
    ----------
    piece_bytes : int
        Preferred size of a write.
    keeps : bool
        Whether it still needs them when `write` has returned.
    """

    piece_bytes: int
    keeps: bool

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte."""

    def when_written(self, function: Callable[[], None]) -> None:
        """Call a function once all that was written before is in the file."""

    def flush(self) -> None:
        """Wait until all that was written is in the file, or raise why it is not."""


class PartialFile:
    """The partial file, open for writing blocks at their place by any process of the host."""

    piece_bytes, keeps = PIECE_BYTES, False

    def __init__(self, layout: Layout) -> None:
        self.path = layout.path
        with named_errors(self.path):
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
        try:
            write_at(self.descriptor, data, offset)
        except OSError as error:
            raise _not_written(self.path, error) from error

    def when_written(self, function: Callable[[], None]) -> None:
        """Call a function: all that was written is in the file."""
        function()

    def flush(self) -> None:
        """Nothing waits to be written."""

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


class BackgroundWriter:
    """Writes to a file in a thread, in order, while the process goes on.

    An error is raised by the next call or by `flush`.
    """

    piece_bytes, keeps = 1 << 20, True
    #: How many pieces may wait to be written: 9 MB with the one in work.
    MAX_PENDING = 8

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "writer")
        self._pending: deque[Future[None]] = deque()

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte, later."""
        while len(self._pending) > self.MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, offset, data))

    def when_written(self, function: Callable[[], None]) -> None:
        """Call a function in the thread, behind all that was written before."""
        self._pending.append(self._thread.submit(function))

    def _write(self, offset: int, data: memoryview) -> None:
        with step("write"):
            self._file.write(offset, data)

    def flush(self) -> None:
        """Wait until all is written."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drop what waits to be written, and end the thread."""
        self._thread.shutdown(cancel_futures=True)


def write_block(writer: Writer, layout: Layout, block: Block, index: int, start: int) -> int:
    """Write the block of a pair at its place; return its checksum.

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

    n = len(block)
    columns = {
        "pair": np.full(n, index),
        **{c: getattr(block, c) for c in PATCH_COLUMNS if c != "pair"},
    }
    a_patch = 4 * block.size**2
    room = memoryview(b"")
    digest = xxhash.xxh3_64()
    with laps() as lap:
        for side, piece in itertools.product(("input", "target"), block.pieces(writer.piece_bytes)):
            offset = layout.offsets[side] + (start + piece.start) * a_patch
            size = (piece.stop - piece.start) * a_patch
            if writer.keeps or len(room) < size:
                room = np.empty(size, np.uint8).data
            data = room[:size]
            block.cut(side, piece, np.frombuffer(data, np.float32))
            lap("cut")
            digest.update(data)
            lap("sum")
            writer.write(offset, data)
            lap("write")
        for name, kind in PATCH_COLUMNS.items() if n else ():
            column = np.ascontiguousarray(columns[name], kind)
            digest.update(column.data)
            lap("sum")
            writer.write(layout.offsets[f"patch/{name}"] + start * column.itemsize, column.data)
            lap("write")
    return int(digest.intdigest())
