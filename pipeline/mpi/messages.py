"""Messages between rank 0 and other ranks: sent without waiting, waited for without spinning."""

from __future__ import annotations

import enum
import math
import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ctpatches.files import Offset
from pipeline import profile
from pipeline.output.writer import Writer

if TYPE_CHECKING:
    from mpi4py import MPI

Found = TypeVar("Found")

#: Longest sleep between two looks at what is waited for.
MAX_NAP_S = 0.002
#: Bytes for files that may be on their way from a rank: more only in one message, of one view.
MAX_PENDING_BYTES = 64 << 20


def wait_until(
    condition: Callable[[], Found | None], step: str, seconds: float = math.inf
) -> Found:
    """Return the first true value of a condition; raise TimeoutError where it takes too long.

    MPI itself would spin: with more ranks than cores, waiting ranks would occupy the cores of
    working ones.
    """
    nap, latest = 0.0, time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > latest:
            raise TimeoutError
        with profile.step(step):
            time.sleep(nap)
        nap = min(MAX_NAP_S, nap + MAX_NAP_S / 20)
    return found


class Tag(enum.IntEnum):
    """The kind of a message, with its content."""

    TASK = 1  # for a worker
    STOP = 2  # for a worker, which leaves the task farm: the failure of the run, or None
    RESULT = 3  # of a task, or the failure; None if a task was not begun
    WRITE = 4  # file number, offset or offsets, and bytes


class Message(NamedTuple):
    """A message that was received."""

    source: int
    tag: Tag
    content: Any


class Messages:
    """The messages of this rank."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        from mpi4py import MPI
        from mpi4py.util import pkl5

        self.comm = comm
        self._objects = pkl5.Intracomm(comm)  # does not copy the bytes of a message
        self._status = MPI.Status()
        #: What was sent and perhaps not received yet: number of bytes, and request.
        self._pending: list[tuple[int, pkl5.Request]] = []
        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.beside_root = any(host.allgather(comm.rank == 0))
        self.one_host = host.size == comm.size
        host.Free()

    def send(self, rank: int, tag: Tag, content: object = None, size: int = 0) -> None:
        """Send an object without waiting for the receiver, which may be sending to us.

        If it holds `size` bytes for a file, they must not change until `settle`, and this waits
        while too many are on their way.
        """
        self._pending = [one for one in self._pending if not one[1].test()[0]]
        self._pending.append((size, self._objects.isend(content, rank, tag)))
        while size and sum(length for length, _ in self._pending) > MAX_PENDING_BYTES:
            self._pending.pop(0)[1].wait()

    def settle(self) -> None:
        """Wait until all that was sent has been received."""
        while self._pending:
            self._pending.pop()[1].wait()

    def poll(self) -> Message | None:
        """Return the next message; None if there is none."""
        found = self._objects.improbe(status=self._status)
        if not found:
            return None
        with profile.step("receive"):
            content = found.recv()
        return Message(self._status.source, Tag(self._status.tag), content)

    def wait(self, seconds: float = math.inf) -> Message:
        """Return the next message; raise TimeoutError if there is none in time."""
        return wait_until(self.poll, "wait", seconds)

    def has(self, tag: Tag) -> bool:
        """Return whether there is a message with that tag, perhaps behind others (see `poll`)."""
        return self.comm.iprobe(tag=tag)


class RemoteWriter(Writer):
    """Sends the bytes for a file to rank 0, and continues before they have arrived."""

    def __init__(self, messages: Messages, file: int) -> None:
        self.messages, self.file = messages, file

    def write(self, offset: Offset, data: memoryview) -> None:
        """Write all of `data` there; it must not change until `flush`."""
        content = self.file, offset, pickle.PickleBuffer(data)
        self.messages.send(0, Tag.WRITE, content, data.nbytes)

    def flush(self) -> None:
        """Wait until rank 0 has received everything."""
        self.messages.settle()
