"""Messages between rank 0 and other ranks: sent without waiting, waited for without spinning.

Each is far below 64 MB, whatever the size of the data set.
"""

from __future__ import annotations

import enum
import math
import time
from typing import Any, NamedTuple

from mpi4py import MPI

#: Longest sleep between two looks for a message. MPI itself would spin: with more ranks than cores,
#: waiting ranks would take the cores from working ones.
MAX_NAP_S = 0.002


class Tag(enum.IntEnum):
    """What a message is.

    From rank 0: `TASK`, a task of the farm; `STOP`, leave the farm, with the failure of the run or
    None; `VALUE`, a value for all, or a failure. To rank 0: `RESULT`, of a task; `FAILURE`;
    `STOPPED`, the answer to `STOP`; `VALUE`; `WRITE`, number of a file, offset and length of bytes
    for it; `BYTES`, these bytes.
    """

    TASK = 1
    STOP = 2
    VALUE = 3
    RESULT = 4
    FAILURE = 5
    STOPPED = 6
    WRITE = 7
    BYTES = 8


class Message(NamedTuple):
    """A message that has been received."""

    source: int
    tag: Tag
    content: Any


class Messages:
    """The messages of this rank."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self._sent: list[MPI.Request] = []

    def send(self, rank: int, content: object, tag: Tag) -> None:
        """Send a small object without waiting for the receiver, who may be sending to us."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self.comm.isend(content, rank, tag))

    def send_all(self, content: object, tag: Tag) -> None:
        """Send a small object to all other ranks, and wait until they have it."""
        for rank in range(1, self.comm.size):
            self.send(rank, content, tag)
        self.settle()

    def settle(self) -> None:
        """Wait until all that was sent has been received."""
        while self._sent:
            self._sent.pop().wait()

    def look(self, source: int = MPI.ANY_SOURCE) -> Message | None:
        """Return the next message; None if none is there."""
        status, probe = MPI.Status(), self.comm.improbe
        # MPICH looks at what it knows of first and only then for more: what has come since the
        # last look is found by the second one.
        found = probe(source, MPI.ANY_TAG, status) or probe(source, MPI.ANY_TAG, status)
        return Message(status.source, Tag(status.tag), found.recv()) if found else None

    def wait(self, source: int = MPI.ANY_SOURCE, seconds: float = math.inf) -> Message | None:
        """Wait for the next message; return None if none came in time."""
        nap = 0.0
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            if found := self.look(source):
                return found
            time.sleep(nap)
            nap = min(MAX_NAP_S, nap + MAX_NAP_S / 20)
        return None

    def has(self, tag: Tag, source: int) -> bool:
        """Return whether a message of that tag is there, behind others perhaps (see `look`)."""
        return bool(self.comm.iprobe(source, tag) or self.comm.iprobe(source, tag))

    def receive_bytes(self, source: int, length: int) -> memoryview:
        """Return the bytes that a `WRITE` announced."""
        data = bytearray(length)
        self.comm.Recv(data, source, Tag.BYTES)
        return memoryview(data)


def shares_root_host(comm: MPI.Intracomm) -> bool:
    """Return whether this rank shares its host, and so its file systems, with rank 0."""
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    here: bool = host.allreduce(comm.rank == 0, MPI.LOR)
    host.Free()
    return here
