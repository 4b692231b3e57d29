"""The task farm: rank 0 hands out tasks, works on them too, and yields all results.

`coordinate` runs on rank 0, `work` on the others. All leave together: an error on any rank, or a
consumer of the results that stops early, ends the farm on all of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi.messages import Messages, Tag

if TYPE_CHECKING:
    from pipeline.output.writer import Writer

#: Tasks that a worker may hold: one in work, and others so that it need not wait for rank 0, which
#: polls for messages between two tasks of its own.
MAX_HELD_TASKS = 3
#: How long rank 0 waits for the workers to leave a farm that failed.
PATIENCE_S = 5.0


def coordinate(
    messages: Messages,
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    writers: Sequence[Writer | None],
    max_ahead: float = math.inf,
) -> Iterator[Any]:
    """Yield the result of every task, and write the bytes that workers send.

    A task is not begun before all but `max_ahead` of those before it are done.

    Raises SharedFailure, on every rank, where `function` or a writer fails on any.
    """
    waiting = deque(enumerate(tasks))
    #: The numbers of the tasks of every worker, which it does in order.
    held: dict[int, deque[int]] = {rank: deque() for rank in range(1, messages.comm.size)}

    def may_begin() -> bool:
        """Return whether there is a task, and it may be begun."""
        oldest = min((numbers[0] for numbers in held.values() if numbers), default=math.inf)
        return bool(waiting) and waiting[0][0] <= oldest + max_ahead

    def hand_out() -> None:
        """Hand a task to every worker that holds too few, and less than its share of the rest."""
        for rank, numbers in held.items():
            few = len(numbers) < MAX_HELD_TASKS
            if few and len(waiting) > len(numbers) * messages.comm.size and may_begin():
                number, task = waiting.popleft()
                numbers.append(number)
                messages.send(rank, Tag.TASK, task)

    failure: SharedFailure | None = SharedFailure("rank 0 stopped", 1)  # the consumer stops early
    try:
        for _ in range(MAX_HELD_TASKS):
            hand_out()
        while waiting or any(held.values()):
            message = messages.poll() if may_begin() else messages.wait()
            if message is None:
                yield function(waiting.popleft()[1])
            elif message.tag == Tag.WRITE:
                file, offset, data = message.content
                writer = writers[file]
                assert writer
                with profile.step("write"):
                    writer.write(offset, memoryview(data))
            else:
                held[message.source].popleft()
                if isinstance(message.content, SharedFailure):
                    raise message.content
                hand_out()  # to others too, which may have waited for this result
                yield message.content
        failure = None
    except Exception as error:
        failure = shared(error, "rank 0: ")
        raise failure from error
    finally:
        _stop(messages, held, failure)


def _stop(messages: Messages, held: dict[int, deque[int]], failure: SharedFailure | None) -> None:
    """Stop all workers, and receive what they still send after a failure.

    MPICH's MPI_Finalize fails where a message was not received.
    """
    for rank in held:
        messages.send(rank, Tag.STOP, failure)
    while stuck := [rank for rank, numbers in held.items() if numbers]:
        try:
            message = messages.wait(PATIENCE_S)
        except TimeoutError:  # perhaps in a file system that hangs
            raise RunError(f"{failure} (rank {stuck[0]} is stuck)") from None
        if message.tag == Tag.RESULT:
            held[message.source].popleft()
    messages.settle()


def work(messages: Messages, function: Callable[[Any], Any]) -> None:
    """Do the tasks that rank 0 hands out, until it stops the farm.

    Raises SharedFailure where the farm failed, on this rank or on another.
    """
    failed = False
    while (message := messages.wait()).tag == Tag.TASK:
        result = None
        # A task with STOP behind it is of no use, but rank 0 waits for the result of each.
        if not failed and not messages.has(Tag.STOP):
            try:
                result = function(message.content)
            except Exception as error:
                failed = True
                result = shared(error, f"rank {messages.comm.rank}: ")
        messages.send(0, Tag.RESULT, result)
    messages.settle()
    if message.content:
        raise message.content
