"""The task farm: rank 0 hands out tasks, works on them too, and yields all results.

`coordinate` runs on rank 0, `work` on the others. All leave together: an error on any rank, or a
consumer of the results that stops early, ends the farm on all of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ctpatches.files import Write
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi.messages import Messages, Tag

#: Tasks that a worker may hold: one in work, and others so that it need not wait for rank 0, which
#: polls for messages between two tasks of its own.
MAX_HELD_TASKS = 3
#: How long rank 0 waits for the workers to leave a farm that failed.
PATIENCE_S = 5.0


def coordinate(
    messages: Messages,
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    writes: Sequence[Write],
    max_ahead: float = math.inf,
) -> Iterator[Any]:
    """Yield the result of every task, and pass on to `writes` the bytes that workers send.

    A task is not begun before all but `max_ahead` of those before it are done.

    Raises SharedFailure, on every rank, where `function` or one of `writes` fails on any.
    """
    waiting = deque(enumerate(tasks))
    #: The numbers of the tasks of every rank, which it does in order.
    held: dict[int, deque[int]] = {rank: deque() for rank in range(1, messages.comm.size)}

    def may_begin() -> bool:
        """Return whether there is a task, and it may be begun."""
        oldest = min((numbers[0] for numbers in held.values() if numbers), default=math.inf)
        return bool(waiting) and waiting[0][0] <= oldest + max_ahead

    def hand_out(rank: int) -> None:
        """Hand out a task, unless the rank holds enough, or its share of those that are left."""
        enough = len(held[rank]) >= MAX_HELD_TASKS
        if not enough and len(waiting) > len(held[rank]) * messages.comm.size and may_begin():
            number, task = waiting.popleft()
            held[rank].append(number)
            messages.send(rank, Tag.TASK, task)

    failure: SharedFailure | None = SharedFailure("rank 0 stopped", 1)  # the consumer stops early
    try:
        for _ in range(MAX_HELD_TASKS):
            for rank in held:
                hand_out(rank)
        while waiting or any(held.values()):
            message = messages.poll() if may_begin() else messages.wait()
            if message is None:
                yield function(waiting.popleft()[1])
            elif message.tag == Tag.WRITE:
                with profile.step("write"):
                    file, offset, data = message.content
                    writes[file](offset, data)
            else:
                held[message.source].popleft()
                if isinstance(message.content, SharedFailure):
                    raise message.content
                for rank in held:  # others may have waited for this result
                    hand_out(rank)
                yield message.content
        failure = None
    except Exception as error:
        failure = shared(error, "rank 0: ")
        raise failure from error
    finally:
        _stop(messages, failure)


def _stop(messages: Messages, failure: SharedFailure | None) -> None:
    """Stop all workers, and receive all that they have sent, but nothing that follows the farm."""
    workers = range(1, messages.comm.size)
    for rank in workers:
        messages.send(rank, Tag.STOP, failure)
    for rank in workers:
        try:
            while messages.wait(rank, PATIENCE_S if failure else math.inf).tag != Tag.STOPPED:
                pass
        except TimeoutError:  # perhaps in a file system that hangs
            raise RunError(f"{failure} (rank {rank} is stuck)") from None
    messages.settle()


def work(messages: Messages, function: Callable[[Any], Any]) -> None:
    """Do the tasks that rank 0 hands out, until it stops the farm.

    Raises SharedFailure where the farm failed, on this rank or on another.
    """
    failed = False
    while (message := messages.wait(source=0)).tag == Tag.TASK:
        # A task with STOP behind it is of no use, but must be received: MPICH's MPI_Finalize
        # fails where a message was not, this rank leaves first, and mpiexec kills the others.
        if failed or messages.has(Tag.STOP, source=0):
            continue
        try:
            messages.send(0, Tag.RESULT, function(message.content))
        except Exception as error:
            failed = True
            messages.send(0, Tag.RESULT, shared(error, f"rank {messages.comm.rank}: "))
    messages.send(0, Tag.STOPPED)
    messages.settle()
    if message.content:
        raise message.content
