"""Messages between rank 0 and other ranks: sent without waiting, waited for without spinning.

Each is far below 64 MB, whatever the size of the data set.
"""

from __future__ import annotations

import enum
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ctpatches.files import Offset
from pipeline import profile

if TYPE_CHECKING:
    from mpi4py import MPI

#: Longest sleep between two polls. MPI itself would spin: with more ranks than cores, waiting
#: ranks would occupy the cores of working ones.
MAX_NAP_S = 0.002
#: Bytes for a file in one message, and how many of them may be on their way from a rank.
MESSAGE_BYTES = 2 << 20
MAX_PENDING_BYTES = 64 << 20


class Tag(enum.IntEnum):
    """The kind of a message, with its content."""

    TASK = 1  # for a worker
    STOP = 2  # for a worker, which leaves the task farm: the failure of the run, or None
    VALUE = 3  # shared or gathered
    RESULT = 4  # of a task, or the failure
    STOPPED = 5  # the last message of a worker, None
    WRITE = 6  # file number, offset or offsets, and length of the bytes, which follow as `BYTES`
    BYTES = 7


class Message(NamedTuple):
    """A message that was received; with `WRITE`, the bytes are in place of their length."""

    source: int
    tag: Tag
    content: Any


class Messages:
    """The messages of this rank."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        from mpi4py import MPI

        self.comm = comm
        self._any_source, self._status = MPI.ANY_SOURCE, MPI.Status()
        #: What was sent and perhaps not received yet: number of bytes, and request.
        self._pending: list[tuple[int, MPI.Request]] = []
        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.beside_root = any(host.allgather(comm.rank == 0))
        self.one_host = host.size == comm.size
        host.Free()

    def send(self, rank: int, tag: Tag, content: object = None) -> None:
        """Send a small object without waiting for the receiver, which may be sending to us."""
        self._pending = [one for one in self._pending if not one[1].Test()]
        self._pending.append((0, self.comm.isend(content, rank, tag)))

    def send_bytes(self, rank: int, data: memoryview) -> None:
        """Send bytes, which must not change until `settle`."""
        self._pending.append((len(data), self.comm.Isend(data, rank, Tag.BYTES)))
        while sum(length for length, _ in self._pending) > MAX_PENDING_BYTES:
            self._pending.pop(0)[1].wait()

    def write(self, file: int, offset: Offset, data: memoryview) -> None:
        """Let rank 0 write all of `data` there; it must not change until `settle`."""
        data = data.cast("B")
        if len(data) <= MESSAGE_BYTES:
            self.send(0, Tag.WRITE, (file, offset, len(data)))
            self.send_bytes(0, data)
        elif isinstance(offset, int):
            for start in range(0, len(data), MESSAGE_BYTES):
                self.write(file, offset + start, data[start : start + MESSAGE_BYTES])
        elif len(offset) == 1:
            self.write(file, offset[0], data)
        else:
            half = len(offset) // 2
            middle = half * (len(data) // len(offset))
            self.write(file, offset[:half], data[:middle])
            self.write(file, offset[half:], data[middle:])

    def settle(self) -> None:
        """Wait until all that was sent has been received."""
        while self._pending:
            self._pending.pop()[1].wait()

    def poll(self, source: int | None = None) -> Message | None:
        """Return the next message, from any rank by default; None if there is none."""
        source = self._any_source if source is None else source
        probe, status = self.comm.improbe, self._status
        # MPICH first checks the messages that it knows of, and only then for new ones, which the
        # second probe finds.
        found = probe(source, status=status) or probe(source, status=status)
        if not found:
            return None
        source, tag, content = status.source, Tag(status.tag), found.recv()
        if tag == Tag.WRITE:
            file, offset, length = content
            data = bytearray(length)
            with profile.step("receive"):
                self.comm.Recv(data, source, Tag.BYTES)
            content = file, offset, memoryview(data)
        return Message(source, tag, content)

    def wait(
        self, source: int | None = None, seconds: float = math.inf, step: str = "wait"
    ) -> Message:
        """Return the next message; raise TimeoutError if there is none in time."""
        nap, latest = 0.0, time.monotonic() + seconds
        while not (message := self.poll(source)):
            if time.monotonic() > latest:
                raise TimeoutError
            with profile.step(step):
                time.sleep(nap)
            nap = min(MAX_NAP_S, nap + MAX_NAP_S / 20)
        return message

    def has(self, tag: Tag, source: int) -> bool:
        """Return whether there is a message with that tag, perhaps behind others (see `poll`)."""
        return self.comm.iprobe(source, tag) or self.comm.iprobe(source, tag)
