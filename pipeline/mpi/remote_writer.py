"""Writing through rank 0, for ranks that do not see the file: bytes in messages of bounded size."""

from __future__ import annotations

from collections import deque
from typing import Any

from pipeline.mpi.messages import Messages, Tag
from pipeline.output.blocks import Writer

#: Bytes of one message to rank 0, and how many of them may be on their way from one rank.
MESSAGE_BYTES = 2 << 20
MAX_PENDING_BYTES = 64 << 20


class RemoteWriter(Writer):
    """Sends bytes for one file to rank 0, and goes on while they are on their way.

    Parameters
    ----------
    messages : Messages
    file : int
        Number of the file.
    """

    def __init__(self, messages: Messages, file: int) -> None:
        self.messages, self.file = messages, file
        self.pending: deque[tuple[int, list[Any]]] = deque()

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte; it must not change until `flush`."""
        data = data.cast("B")
        comm = self.messages.comm
        for start in range(0, len(data), MESSAGE_BYTES):
            piece = data[start : start + MESSAGE_BYTES]
            head = comm.isend((self.file, offset + start, len(piece)), 0, Tag.WRITE)
            self.pending.append((len(piece), [head, comm.Isend(piece, 0, Tag.BYTES)]))
            while sum(length for length, _ in self.pending) > MAX_PENDING_BYTES:
                self._finish_oldest()

    def _finish_oldest(self) -> None:
        for request in self.pending.popleft()[1]:
            request.wait()

    def flush(self) -> None:
        """Wait until rank 0 has everything."""
        while self.pending:
            self._finish_oldest()
