"""The task farm: rank 0 hands out tasks, works on them too, and yields all results.

`coordinate` is rank 0's side, `work` that of the others. Every rank leaves both together: an error
on any rank, or a consumer of the results that stops early, ends all of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi.messages import Message, Messages, Tag
from utils import RunError

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Tasks that a rank may hold: one in work, and others waiting, so that it need not wait for rank 0,
#: which looks for messages between two tasks of its own.
MAX_HELD_TASKS = 3
#: How long a failed run waits for its other ranks to leave in good order.
PATIENCE_S = 5.0


def coordinate(
    messages: Messages,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    receive: Callable[[int, int, memoryview], None],
) -> Iterator[Result]:
    """Yield the result of every task, in any order.

    Parameters
    ----------
    messages : Messages
    function : callable
        Does a task, and returns a small result.
    tasks : iterable
    receive : callable
        Called with the number of a file, an offset, and the bytes to write there.

    Raises
    ------
    SharedFailure
        On every rank, where `function` or `receive` fails on any.
    """
    farm = _Coordinator(messages, tasks, receive)
    failure: SharedFailure | None = SharedFailure("rank 0 stopped", 1)  # the consumer stops early
    try:
        yield from farm.results(function)
        failure = None
    except SharedFailure as error:
        failure = error
        raise
    except Exception as error:
        failure = shared(error, "rank 0: ")
        raise failure from error
    finally:
        farm.stop(failure)


class _Coordinator:
    def __init__(
        self,
        messages: Messages,
        tasks: Iterable[Any],
        receive: Callable[[int, int, memoryview], None],
    ) -> None:
        self.messages, self.receive = messages, receive
        self.tasks = deque(tasks)
        #: Number of tasks that each rank holds.
        self.held = dict.fromkeys(range(1, messages.comm.size), 0)

    def results(self, function: Callable[[Any], Any]) -> Iterator[Any]:
        for _ in range(MAX_HELD_TASKS):
            for rank in self.held:
                self.hand_out(rank)
        while self.tasks or any(self.held.values()):
            while message := self.messages.look():
                yield from self.answer(message)
            if self.tasks:
                yield function(self.tasks.popleft())
            elif any(self.held.values()):
                with profile.step("wait"):
                    message = self.messages.wait()
                assert message
                yield from self.answer(message)

    def hand_out(self, rank: int) -> None:
        """Hand out a task, unless the rank holds enough, or its share of those that are left."""
        held = self.held[rank]
        if held < MAX_HELD_TASKS and len(self.tasks) > held * (len(self.held) + 1):
            self.held[rank] += 1
            self.messages.send(rank, self.tasks.popleft(), Tag.TASK)

    def answer(self, message: Message) -> Iterator[Any]:
        """Deal with one message, and yield the result in it."""
        if message.tag == Tag.WRITE:
            file, offset, length = message.content
            with profile.step("receive"):
                data = self.messages.receive_bytes(message.source, length)
            self.receive(file, offset, data)
            return
        self.held[message.source] -= 1
        if message.tag == Tag.FAILURE:
            raise message.content
        self.hand_out(message.source)
        yield message.content

    def stop(self, failure: SharedFailure | None) -> None:
        """Tell every rank to stop, and receive all that it has sent until then."""
        for rank in self.held:
            self.messages.send(rank, failure, Tag.STOP)
        while self.held:
            message = self.messages.wait(seconds=PATIENCE_S if failure else math.inf)
            if not message:  # some rank is stuck, perhaps in a file system that hangs
                raise RunError(f"{failure} (rank {min(self.held)} is stuck)")
            if message.tag == Tag.STOPPED:
                del self.held[message.source]
            elif message.tag == Tag.WRITE:
                file, offset, length = message.content
                data = self.messages.receive_bytes(message.source, length)
                if not failure:
                    self.receive(file, offset, data)
        self.messages.settle()


def work(
    messages: Messages, function: Callable[[Task], Result], settle: Callable[[], None]
) -> None:
    """Do the tasks that rank 0 hands out, until it stops the farm.

    Parameters
    ----------
    messages : Messages
    function : callable
    settle : callable
        Waits until rank 0 has received all bytes that `function` has sent.

    Raises
    ------
    SharedFailure
        The farm failed, on this rank or on another.
    """
    failed = False
    while True:
        with profile.step("wait"):
            message = messages.wait(source=0)
        assert message
        if message.tag == Tag.STOP:
            settle()
            messages.send(0, None, Tag.STOPPED)
            messages.settle()
            if message.content:
                raise message.content
            return
        # A task with STOP behind it is of no use, but must be received: MPICH's MPI_Finalize
        # fails where a message was not, this rank leaves first, and mpiexec kills the others.
        if failed or messages.has(Tag.STOP, source=0):
            continue
        try:
            messages.send(0, function(message.content), Tag.RESULT)
        except Exception as error:
            failed = True
            messages.send(0, shared(error, f"rank {messages.comm.rank}: "), Tag.FAILURE)
