"""One output file: its partial file, its blocks that are complete, and its final name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ctpatches.checksums import block_digest
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.output import checkpoint
from pipeline.output.blocks import NO_SPACE, Layout, block_ranges, named_errors
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.file_header import Header
from pipeline.output.paths import partial_path
from utils import RunError, quoted


@dataclass
class OutputFile:
    """One file of a run.

    Attributes
    ----------
    plan : Plan
    final : str
        The name that it gets when it is complete.
    size : int
        Bytes of the whole file.
    layout : Layout or None
        None before the partial file is open, and for a file that was complete before this run.
    done : dict of int to BlockRecord
        The finished blocks, by number of their pair.
    complete : bool
        Whether the file has its final name.
    """

    plan: Plan
    final: str
    size: int = 0
    layout: Layout | None = None
    done: dict[int, BlockRecord] = field(default_factory=dict)
    complete: bool = False
    _descriptor: int = -1

    @property
    def partial(self) -> str:
        """The name until it is complete."""
        return partial_path(self.final)

    @property
    def pairs_done(self) -> int:
        """Number of pairs whose blocks are in the file."""
        return len(self.plan.pairs) if self.complete else len(self.done)

    def open(self, header: Header, flags: int = 0) -> None:
        """Open the partial file, and record where its bytes lie."""
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)
        if not checkpoint.try_lock(self._descriptor):  # as a file of another --output-fname
            self.close()
            raise RunError(f"{quoted(self.partial)}: another run is writing it")
        status = os.fstat(self._descriptor)
        self.size = header.size
        path = os.path.abspath(self.partial)
        self.layout = Layout(path, status.st_dev, status.st_ino, header.offsets)

    def resume(self, header: Header, records: Mapping[int, BlockRecord], config: Config) -> None:
        """Open the partial file of an interrupted run, if it is there in its full size."""
        with contextlib.suppress(FileNotFoundError):
            self.open(header)
            if self.problem():
                self.close()
                return
            assert self.layout is not None
            for index, record in records.items():
                # The disk may have lied: a block counts only if its bytes are there.
                ranges = block_ranges(self.plan, self.layout, index, config)
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
        if not checkpoint.is_at(self.partial, self._descriptor):
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

    def remove(self) -> None:
        """Remove the partial file, unless another one has taken its name."""
        if self.layout and checkpoint.is_at(self.partial, self._descriptor):
            os.unlink(self.partial)

    def close(self) -> None:
        """Close the partial file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self.layout = -1, None

    def is_resumable(self) -> bool:
        """Return whether the open partial file has finished blocks and is intact."""
        return self.layout is not None and bool(self.done) and not self.problem()


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
