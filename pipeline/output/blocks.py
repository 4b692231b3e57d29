"""Blocks at their place in the partial file: plain writes at byte offsets, by any process."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctpatches.blocks import CHUNKS, CHUNKS_STRIDE, block_ranges
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
    #: As of `--compression`, and the first byte of the chunks of a compressed file.
    compression: str = "none"
    chunks: int = 0

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


class PackedFile(Writer):
    """A compressed partial file: the chunks of a block follow those of the block before it.

    Only rank 0 can know the place of a block. Those that are finished before an earlier one wait in
    memory; `pipeline.mpi.task_farm` bounds their number.
    """

    def __init__(self, file: PartialFile, block: int) -> None:
        self._file, self._block = file, block
        self._end = os.fstat(file.descriptor).st_size
        self._early: defaultdict[int, list[memoryview]] = defaultdict(list)
        self._finished: dict[int, Callable[[], None]] = {}

    def write(self, offset: int, data: memoryview) -> None:
        block = (offset - CHUNKS) // CHUNKS_STRIDE
        if block > self._block:
            self._early[block].append(data)
        elif block == self._block:
            self._append(data)
        else:
            self._file.write(offset, data)

    def _append(self, data: memoryview) -> None:
        self._file.write(self._end, data)
        self._end += len(data)

    def when_written(self, block: int, function: Callable[[], None]) -> None:
        self._finished[block] = function
        while self._block in self._finished:
            self._finished.pop(self._block)()
            self._block += 1
            for data in self._early.pop(self._block, ()):
                self._append(data)


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

    def when_written(self, block: int, function: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(self._file.when_written, block, function))

    def flush(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread; what waits to be written is dropped."""
        self._thread.shutdown(cancel_futures=True)


def write_block(writer: Writer, layout: Layout, block: Block, index: int, place: Place) -> int:
    """Write the block of pair `index` at its place; return its checksum."""
    with laps() as lap:
        return block.write(writer.write, layout.rows, index, place, layout.compression, lap)
