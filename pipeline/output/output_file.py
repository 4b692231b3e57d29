"""One output file: its partial file, its blocks that are complete, and its final name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ctpatches.checksums import block_digest
from pipeline.model import Plan
from pipeline.output.blocks import NO_SPACE, Layout, named_errors
from pipeline.output.checkpoint import BlockRecord, being_written, is_at, try_lock
from pipeline.output.file_header import Header
from pipeline.output.paths import PARTIAL
from utils import RunError, quoted


@dataclass
class OutputFile:
    """One file of a run.

    It is `complete` once it has its final name, in this run or before; it has a `layout` while its
    partial file is open.
    """

    plan: Plan
    final: str
    #: Bytes of the whole file.
    size: int = 0
    layout: Layout | None = None
    #: The finished blocks, by number of their pair.
    done: dict[int, BlockRecord] = field(default_factory=dict)
    complete: bool = False
    _descriptor: int = -1

    @property
    def partial(self) -> str:
        """The name until it is complete."""
        return self.final + PARTIAL

    @property
    def pairs_done(self) -> int:
        """Number of pairs whose blocks are in the file."""
        return len(self.plan.pairs) if self.complete else len(self.done)

    def open(self, header: Header, flags: int = 0) -> None:
        """Open and lock the partial file."""
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)
        if not try_lock(self._descriptor):  # as a file of another --output-fname
            raise being_written(self.partial)
        status = os.fstat(self._descriptor)
        self.size = header.size
        path, identity = os.path.abspath(self.partial), (status.st_dev, status.st_ino)
        self.layout = Layout(path, identity, header.rows)

    def resume(self, header: Header, records: Mapping[int, BlockRecord]) -> None:
        """Open the partial file of an interrupted run, if it is there in its full size.

        The disk may not have what was written: a block counts only if its bytes are there.
        """
        with contextlib.suppress(FileNotFoundError):
            self.open(header)
        if not self.layout or self.problem():
            self.close()
            return
        for index, record in records.items():
            ranges = self.layout.ranges(*self.plan.starts[index : index + 2])
            if block_digest(self._descriptor, ranges) == record.checksum:
                self.done[index] = record

    def create(self, header: Header) -> None:
        """Create the partial file in its full size."""
        self.open(header, os.O_CREAT | os.O_EXCL)
        os.ftruncate(self._descriptor, self.size)

    def reserve(self) -> None:
        """Reserve the disk space of the whole file, where the file system can."""
        try:
            os.posix_fallocate(self._descriptor, 0, self.size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise

    def write_header(self, header: Header) -> None:
        """Write everything but the blocks."""
        header.write(self._descriptor)

    def sync(self) -> None:
        """Write all bytes to the disk."""
        os.fsync(self._descriptor)

    def problem(self) -> str:
        """Return what another process has done to the partial file; '' if nothing."""
        if not is_at(self.partial, self._descriptor):
            return "was removed or replaced by another process"
        size = os.fstat(self._descriptor).st_size
        if size != self.size:
            return f"has {size} bytes, expected {self.size}: another process changed it"
        return ""

    def check(self) -> None:
        """Raise RunError if another process has removed, replaced or truncated the partial file."""
        if problem := self.problem():
            raise RunError(f"{quoted(self.partial)} {problem}; run again")

    def commit(self) -> None:
        """Give the complete file its final name."""
        with named_errors(self.final):
            os.replace(self.partial, self.final)
        self.complete = True

    def close(self, remove: bool = False) -> None:
        """Close the partial file, and remove it unless another file has its name now."""
        if remove and self.layout and is_at(self.partial, self._descriptor):
            os.unlink(self.partial)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self.layout = -1, None


def reserve(files: Sequence[OutputFile]) -> None:
    """Reserve the disk space of all files, so that a full disk is found before the work."""
    size = sum(file.size for file in files)
    disk = os.statvfs(files[0].partial)
    free = disk.f_bavail * disk.f_frsize
    if size > free:
        names = ", ".join(quoted(file.final) for file in files)
        raise RunError(
            f"no space left for {names}: needed {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB"
        )
    for file in files:
        file.reserve()
