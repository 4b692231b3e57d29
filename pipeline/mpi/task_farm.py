"""The task farm: rank 0 hands out tasks, works on them too, and yields all results.

The only importer of mpi4py: `launch` imports this module where a run uses MPI.

All ranks leave it together: an error on any rank, or a consumer of the results that stops early,
ends the farm on all of them. Messages are sent without waiting, and waited for without spinning.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mpi4py import MPI

from ctpatches.files import Offset, Write
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared

Found = TypeVar("Found")

#: Sleep between two polls: after a long wait longer, a twentieth of it.
MIN_NAP_S, MAX_NAP_S = 0.001, 0.02
#: Bytes for files that may be on their way from a worker: more only in one message, of one view.
MAX_PENDING_BYTES = 64 << 20
#: Tasks that a worker may hold: one in work, and others so that it need not wait for rank 0, which
#: polls for messages between two tasks of its own.
MAX_HELD_TASKS = 3
#: How long rank 0 waits for the next message of the workers that have to leave a farm that failed.
PATIENCE_S = 5.0


def wait_until(
    condition: Callable[[], Found | None], step: str, seconds: float = math.inf
) -> Found:
    """Return the first true value of a condition; raise TimeoutError where it takes too long.

    MPI itself would spin: with more ranks than cores, waiting ranks would occupy the cores of
    working ones.
    """
    begin = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - begin
        if waited > seconds:
            raise TimeoutError
        with profile.step(step):
            time.sleep(min(max(MIN_NAP_S, waited / 20), MAX_NAP_S))
    return found


class Tag(enum.IntEnum):
    """The kind of a message, with its content."""

    TASK = 1  # for a worker
    STOP = 2  # for a worker, which leaves the farm: the failure of the run, or None
    RESULT = 3  # of a task, or the failure
    WRITE = 4  # file number, offset or offsets, and size of the bytes that follow
    BYTES = 5


class TaskFarm:
    """The task farm of a communicator: `coordinate` runs on rank 0, `work` on the others."""

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.comm = comm = MPI.COMM_WORLD if comm is None else comm
        self.library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip(" \0")
        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        #: The ranks of this host, this one among them.
        self.host_ranks = host.allgather(comm.rank)
        host.Free()
        _unlink_shared_memory()
        self._status = MPI.Status()
        #: What was sent and perhaps not received yet: number of bytes for files, and request.
        self._pending: list[tuple[int, MPI.Request]] = []

    # --- messages -----------------------------------------------------------------------------

    def gather(self, value: Any, step: str) -> list[Any]:
        """Return the value of every rank, on every rank; the time until all have one is `step`."""
        wait_until(self.comm.Ibarrier().Test, step)
        return self.comm.allgather(value)

    def send_bytes(self, file: int, offset: Offset, data: memoryview) -> None:
        """Send bytes for a file to rank 0, which must not change until `_settle`.

        It waits while too many are on their way.
        """
        self._send(0, Tag.WRITE, (file, offset, data.nbytes))
        self._pending.append((data.nbytes, self.comm.Isend(data, 0, Tag.BYTES)))
        while sum(size for size, _ in self._pending) > MAX_PENDING_BYTES:
            self._pending.pop(0)[1].wait()

    def _send(self, rank: int, tag: Tag, content: object) -> None:
        """Send an object without waiting for the receiver, which may be sending to us."""
        self._pending = [one for one in self._pending if not one[1].test()[0]]
        self._pending.append((0, self.comm.isend(content, rank, tag)))

    def _settle(self) -> None:
        """Wait until all that was sent has been received."""
        while self._pending:
            self._pending.pop()[1].wait()

    def _poll(self) -> tuple[int, Tag, Any] | None:
        """Return source, tag and content of the next message; None if there is none.

        The content of `Tag.WRITE` is that with the bytes instead of their size.
        """
        probe, status = self.comm.improbe, self._status
        # MPICH first checks the messages that it knows of, and only then for new ones, which the
        # second probe finds: rank 0 would look for them again a task later, and workers be idle for
        # 10 % of the time instead of 4 %.
        found = probe(status=status) or probe(status=status)
        if not found:
            return None
        with profile.step("receive"):
            content = found.recv()
            source, tag = status.source, Tag(status.tag)
            if tag == Tag.WRITE:
                file, offset, size = content
                data = memoryview(bytearray(size))
                self.comm.Recv(data, source, Tag.BYTES)
                content = file, offset, data
        return source, tag, content

    # --- rank 0 -------------------------------------------------------------------------------

    def coordinate(
        self,
        function: Callable[[Any], Any],
        tasks: Iterable[Any],
        writes: Sequence[Write],
        max_ahead: float,
    ) -> Iterator[Any]:
        """Yield the result of every task, and pass on to `writes` the bytes that workers send.

        A task is not begun before all but `max_ahead` of those before it are done.
        Raises SharedFailure, on every rank, where `function` or one of `writes` fails on any.
        """
        waiting = deque(enumerate(tasks))
        #: The numbers of the tasks of every worker, which it does in order.
        held: dict[int, deque[int]] = {rank: deque() for rank in range(1, self.comm.size)}

        def may_begin() -> bool:
            """Return whether there is a task, and it may be begun."""
            oldest = min((numbers[0] for numbers in held.values() if numbers), default=math.inf)
            return bool(waiting) and waiting[0][0] <= oldest + max_ahead

        def hand_out() -> None:
            """Hand a task to every worker that holds few, and less than its share of the rest."""
            for rank, numbers in held.items():
                few = len(numbers) < min(MAX_HELD_TASKS, len(waiting) / self.comm.size)
                if few and may_begin():
                    number, task = waiting.popleft()
                    numbers.append(number)
                    self._send(rank, Tag.TASK, task)

        failure: SharedFailure | None = None
        try:
            for _ in range(MAX_HELD_TASKS):
                hand_out()
            while waiting or any(held.values()):
                message = self._poll() if may_begin() else wait_until(self._poll, "wait")
                if message is None:
                    yield function(waiting.popleft()[1])
                    continue
                source, tag, content = message
                if tag == Tag.WRITE:
                    file, offset, data = content
                    with profile.step("write"):
                        writes[file](offset, data)
                else:
                    held[source].popleft()
                    if isinstance(content, SharedFailure):
                        raise content
                    hand_out()  # to others too, which may have waited for this result
                    yield content
        except Exception as error:
            failure = shared(error, "rank 0: ")
            raise failure from (None if failure is error else error)
        except BaseException as error:  # GeneratorExit, while an error of the consumer is handled
            failure = shared(error.__context__ or error)
            raise
        finally:
            self._stop(held, failure)

    def _stop(self, held: dict[int, deque[int]], failure: SharedFailure | None) -> None:
        """Stop all workers, and receive what they still send after a failure.

        MPICH's MPI_Finalize fails where a message was not received.
        """
        for rank in held:
            self._send(rank, Tag.STOP, failure)
        while busy := [rank for rank, numbers in held.items() if numbers]:
            try:
                source, tag, _ = wait_until(self._poll, "wait", PATIENCE_S)
            except TimeoutError:  # perhaps in a file system that hangs
                raise RunError(f"{failure} (rank {busy[0]} is stuck)") from None
            if tag == Tag.RESULT:
                held[source].popleft()
        self._settle()

    # --- other ranks --------------------------------------------------------------------------

    def is_stopped(self) -> bool:
        """Return whether rank 0 has stopped this worker, perhaps behind tasks (see `_poll`)."""
        return any(self.comm.iprobe(0, Tag.STOP) for _ in range(2))

    def work(self, function: Callable[[Any], Any]) -> None:
        """Do the tasks that rank 0 hands out, until it stops the farm.

        Raises SharedFailure where the farm failed, on this rank or on another.
        """
        result: Any = None
        while True:
            _, tag, content = wait_until(self._poll, "wait")
            if tag == Tag.STOP:
                break
            try:
                # Of a farm that failed rank 0 still expects an answer to every task, but no work.
                if not isinstance(result, SharedFailure) and not self.is_stopped():
                    result = function(content)
            except Exception as error:
                result = shared(error, f"rank {self.comm.rank}: ")
            self._send(0, Tag.RESULT, result)
        self._settle()
        if content:
            raise content


def _unlink_shared_memory() -> None:
    """Remove the name of MPICH's shared memory, which all ranks of this host have open now.

    MPICH removes it at the end of a run, which killed ranks do not reach. When SLURM starts their
    job again on this host, the new ranks choose the same name and would fail on it.
    """
    with contextlib.suppress(OSError):  # another rank was first; or this is not Linux
        maps = Path("/proc/self/maps").read_text(errors="replace")
        for name in set(re.findall(r"/dev/shm/mpich_shm_\w+$", maps, re.MULTILINE)):
            os.unlink(name)
