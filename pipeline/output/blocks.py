"""Blocks at their place in the partial file: plain writes at byte offsets, by any process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ctpatches.files import write_at
from ctpatches.schema import PATCH_COLUMNS, ROLES, SCHEMA
from ctpatches.views import strips
from pipeline.model import Place
from pipeline.output.writer import Writer
from pipeline.profile import laps, step
from utils import RunError, quoted

if TYPE_CHECKING:
    from patching import Block

#: No space on the disk, over the quota, beyond the limit on the size of a file (ulimit -f).
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a partial file lie; all that a rank needs to write blocks."""

    path: str
    #: Device and inode: whether a rank sees the file that rank 0 has created.
    identity: tuple[int, int]
    #: First byte, and bytes per row, of every dataset that blocks are written to, in their order.
    rows: dict[str, tuple[int, int]]

    def ranges(self, place: Place) -> list[tuple[int, int]]:
        """Return first byte and length of every part of a block."""
        out = []
        for name, (first, size) in self.rows.items():
            start, stop = place[SCHEMA[name].row_of]
            out.append((first + start * size, (stop - start) * size))
        return out


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn an error of the system or of HDF5 into one line that names the file."""
    try:
        yield
    except OSError as error:
        problem = "no space left for" if error.errno in NO_SPACE else "cannot write"
        reason = error.strerror or str(error).split("\n")[0]
        raise RunError(f"{problem} {quoted(path)}: {reason}") from error


class PartialFile(Writer):
    """A partial file, open for writing by a process of the host that has created it."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.path
        with named_errors(self.path):
            self.descriptor = os.open(layout.path, os.O_WRONLY)

    @classmethod
    def seen(cls, layout: Layout) -> PartialFile | None:
        """Open the file if this process sees the one that rank 0 has created."""
        try:
            status = os.stat(layout.path)
            return cls(layout) if (status.st_dev, status.st_ino) == layout.identity else None
        except (OSError, RunError):
            return None

    def write(self, offset: int, data: memoryview) -> None:
        with named_errors(self.path):
            write_at(self.descriptor, data, offset)

    def close(self) -> None:
        os.close(self.descriptor)


class BackgroundWriter(Writer):
    """Writes in a thread, in order. An error is raised by a later `write` or by `flush`."""

    #: Pieces that may wait to be written.
    MAX_PENDING = 16

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "writer")
        self._pending: deque[Future[None]] = deque()

    def write(self, offset: int, data: memoryview) -> None:
        while len(self._pending) > self.MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, offset, data))

    def _write(self, offset: int, data: memoryview) -> None:
        with step("write"):
            self._file.write(offset, data)

    def when_written(self, function: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(function))

    def flush(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread; what waits to be written is dropped."""
        self._thread.shutdown(cancel_futures=True)


def write_block(writer: Writer, layout: Layout, block: Block, index: int, place: Place) -> int:
    """Write the block of pair `index` at its place; return its checksum."""
    digest = xxhash.xxh3_64()
    with laps() as lap:

        def write(name: str, row: int, data: memoryview) -> None:
            digest.update(data)
            lap("sum")
            first, size = layout.rows[name]
            writer.write(first + (place[SCHEMA[name].row_of][0] + row) * size, data)
            lap("write")

        for role in ROLES:
            if role in layout.rows:
                for piece in block.pieces():
                    patches = block.cut(role, piece)
                    lap("cut")
                    write(role, piece.start, patches.data)
                    del patches  # the next piece gets its memory, which is in the cache
            else:
                pixel = 0
                for view in block.views[role]:
                    write(f"views/{role}", pixel, strips(view).data)
                    pixel += view.size
        for name, dtype in PATCH_COLUMNS.items() if len(block) else ():
            values = np.full(len(block), index) if name == "pair" else getattr(block, name)
            write(f"patch/{name}", 0, np.ascontiguousarray(values, dtype).data)
    return int(digest.intdigest())
