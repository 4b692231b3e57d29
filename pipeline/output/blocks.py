"""Blocks at their place in the partial file: plain writes at byte offsets, by any process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctpatches.blocks import block_ranges
from ctpatches.files import named_errors, write_at
from pipeline.model import Place
from pipeline.output.writer import Writer
from pipeline.profile import laps, step
from utils import RunError

if TYPE_CHECKING:
    from patching import Block


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
        return block_ranges(self.rows, place)


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
    with laps() as lap:
        return block.write(writer.write, layout.rows, index, place, lap)
