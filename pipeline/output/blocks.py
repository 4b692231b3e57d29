"""Blocks at their place in the partial file: plain writes at byte offsets, by any process."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctpatches.blocks import CHUNKS, CHUNKS_STRIDE, Place
from ctpatches.files import Offset, named_errors, write_at
from ctpatches.permutation import Permutation
from ctpatches.schema import REST_BYTES
from pipeline.output.writer import Writer
from pipeline.profile import laps, step
from utils import RunError, quoted

if TYPE_CHECKING:
    from patching import Block

#: File systems whose clients cache a file without regard to what other hosts write to it: see "Data
#: and metadata coherence" in nfs(5), "Cache coherency" in mount.cifs(8).
INCOHERENT = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs")


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a partial file lie; all that a rank needs to write blocks."""

    path: str
    #: First byte, and bytes per row, of every dataset that blocks are written to, in their order.
    rows: dict[str, tuple[int, int]]
    #: First byte of the checksum of the header.
    checksum: int
    #: Of the rows of patches, in a shuffled file.
    shuffle: Permutation | None = None
    #: As of `--compression`, and the first byte of the chunks of a compressed file.
    compression: str = "none"
    chunks: int = 0
    #: Random bytes that the file has in place of its checksum until it is complete: a rank that
    #: reads them sees the file of rank 0. Device numbers differ between hosts.
    token: bytes = field(default_factory=functools.partial(secrets.token_bytes, REST_BYTES))

    def write_token(self, descriptor: int) -> None:
        """Write the token to the file."""
        write_at(descriptor, self.token, self.checksum)

    def has_token(self, descriptor: int) -> bool:
        """Return whether an open file has the token."""
        return os.pread(descriptor, REST_BYTES, self.checksum) == self.token


def file_system(path: str) -> str:
    """Return the type of the file system of a file, as mount(8) names it; '' if unknown."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}".encode()
        for fields in map(bytes.split, mounts):
            if fields[2] == number:
                return fields[fields.index(b"-") + 1].decode()
    return ""


class PartialFile(Writer):
    """A partial file, open for writing by a process that sees the one of rank 0."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.path
        #: Whether its bytes are in a cache that rank 0 cannot write to the disk.
        self.sync = False
        with named_errors(self.path):
            self.descriptor = os.open(layout.path, os.O_RDWR)

    @classmethod
    def seen(cls, layout: Layout) -> PartialFile | None:
        """Open the file if this process sees the one that rank 0 has created."""
        with contextlib.suppress(OSError, RunError):
            file = cls(layout)
            if layout.has_token(file.descriptor):
                return file
            file.close()
        return None

    @classmethod
    def direct(cls, layout: Layout, one_host: bool) -> PartialFile:
        """Open the file; raise RunError unless all ranks may write to it at the same time."""
        kind = "" if one_host else file_system(layout.path)
        if kind in INCOHERENT:
            raise RunError(
                f"{quoted(layout.path)} is on {kind}, which may lose what several hosts write to "
                "one file; use --hand-over auto, or a parallel file system"
            )
        if not (file := cls.seen(layout)):
            raise RunError(
                f"{quoted(layout.path)} cannot be opened, or is not the file that rank 0 has "
                "created; --hand-over direct expects a file system that all hosts share: without "
                "one, use --hand-over auto"
            )
        file.sync = not one_host
        return file

    def write(self, offset: Offset, data: memoryview) -> None:
        with named_errors(self.path):
            write_at(self.descriptor, data, offset)

    def flush(self) -> None:
        if self.sync:
            with named_errors(self.path):
                os.fsync(self.descriptor)

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

    def write(self, offset: Offset, data: memoryview) -> None:
        if isinstance(offset, list) or offset < CHUNKS:
            self._file.write(offset, data)
            return
        block = (offset - CHUNKS) // CHUNKS_STRIDE
        if block > self._block:
            self._early[block].append(data)
        else:
            self._append(data)

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

    def write(self, offset: Offset, data: memoryview) -> None:
        while len(self._pending) > self.MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, offset, data))

    def _write(self, offset: Offset, data: memoryview) -> None:
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
    return block.write(
        writer.write, layout.rows, index, place, layout.compression, layout.shuffle, laps()
    )
