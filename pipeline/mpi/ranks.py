"""The ranks of a run: steps of rank 0 alone, shared values, shared work, and failing together."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ctpatches import streams
from ctpatches.files import Offset, Write
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi import task_farm
from pipeline.mpi.messages import Messages, Tag
from pipeline.mpi.terminal import LAST_WORDS_S, Interruption
from pipeline.prefetch import prefetched

if TYPE_CHECKING:
    from mpi4py import MPI

Result = TypeVar("Result")


class Ranks:
    """The ranks of a run; by default this process alone, without MPI.

    Attributes are `rank` and `size`; `parallel`, whether MPI is used, even by a single rank;
    `beside_root`, whether this rank shares its host, and so its file systems, with rank 0; and
    `one_host`, whether all ranks do.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self.parallel = comm is not None
        self.beside_root = self.one_host = True
        #: What Ctrl-C does; of `main`, which starts it.
        self.interruption = Interruption()
        self._messages: Messages | None = None
        #: Whether other ranks may wait for this one, and would do so forever if it left.
        self._awaited = self.size > 1
        if comm and self.size > 1:
            self._messages = Messages(comm)
            self.beside_root = self._messages.beside_root
            self.one_host = self._messages.one_host
            _unlink_shared_memory()
            atexit.register(self._check_left)

    def _check_left(self) -> None:
        """End all ranks if this one leaves before the run is over."""
        if self._awaited:
            self.fail(RunError("left before the run was over"))

    def close(self) -> None:
        """Record that no other rank waits for this one any more."""
        self._awaited = False

    # --- steps of rank 0 alone, or of all, and values -----------------------------------------

    def on_root(self, step: Callable[[], Result]) -> Result | None:
        """Return the result of a step on rank 0, and None on the others, which wait for it.

        Raises SharedFailure on every rank where the step fails.
        """
        result = None
        try:
            if self.rank == 0:
                with profile.step("rank 0"):
                    result = step()
        except Exception as error:
            self.share(shared(error))  # which raises it
        else:
            self.share(None)
        return result

    def on_all(self, step: Callable[[], Result]) -> Result:
        """Return the result of a step of this rank, once it has succeeded on every rank.

        Raises SharedFailure, the same on every rank, where the step fails on any.
        """
        result: Result | None = None
        failure: SharedFailure | None = None
        try:
            result = step()
        except Exception as error:
            failure = shared(error)
        failures = self.gather(failure)

        def raise_first() -> None:
            failed = [(rank, one) for rank, one in enumerate(failures) if one]
            if failed:
                rank, one = failed[0]
                where = "" if len(failed) == self.size else f"rank {rank}: "
                raise SharedFailure(f"{where}{one}", one.status, one.trace)

        self.on_root(raise_first)
        return result  # type: ignore[return-value]

    def share(self, value: Result | None) -> Result:
        """Return the small value of rank 0 on every rank; if it is a SharedFailure, raise it."""
        if self._messages and self.rank:
            value = self._messages.wait(source=0, step="rank 0").content
        elif self._messages:
            for rank in range(1, self.size):
                self._messages.send(rank, Tag.VALUE, value)
            self._messages.settle()
        if isinstance(value, SharedFailure):
            self.close()
            raise value
        return value  # type: ignore[return-value]

    def gather(self, value: Result) -> list[Result]:
        """Return the small values of all ranks, in order, on rank 0; on others an empty list."""
        if not self._messages:
            return [value]
        if self.rank:
            self._messages.send(0, Tag.VALUE, value)
            self._messages.settle()
            return []
        others = [self._messages.wait(source=rank) for rank in range(1, self.size)]
        return [value, *(message.content for message in others)]

    # --- shared work --------------------------------------------------------------------------

    def send(self, file: int, offset: Offset, data: memoryview) -> None:
        """Pass bytes to the function of that number in `imap_unordered`'s `writes` of rank 0."""
        assert self._messages
        self._messages.write(file, offset, data)

    def imap_unordered(
        self,
        function: Callable[[Any], Result],
        tasks: Sequence[Any],
        prepare: Callable[[Any], Any] = lambda task: task,
        threads: int = 0,
        max_ahead: float = math.inf,
        writes: Sequence[Write] = (),
    ) -> Generator[Result, None, None]:
        """Yield `function(prepare(task))` for every task, on rank 0 and in any order.

        All ranks call it and iterate over it; other ranks work on some of the tasks of rank 0, and
        yield nothing. If the consumer may fail, use `contextlib.closing`, so that the other ranks
        are stopped at once. Raises SharedFailure on every rank, where a function fails on any.

        `prepare` is the part of a task that may be done before its turn has come: a serial run does
        it in so many `threads`. Ranks under MPI use none: each has one core at best. A task is not
        begun before all but `max_ahead` of those before it are done. What other ranks
        `send` for a file is passed to that of `writes` before the result of their task is yielded.
        """
        if not self._messages:
            ahead = 0 if self.parallel else threads
            with contextlib.closing(prefetched(tasks, prepare, ahead)) as prepared:
                yield from map(function, prepared)
            return

        def whole(task: Any) -> Result:
            return function(prepare(task))

        try:
            if self.rank:
                task_farm.work(self._messages, whole)
            else:
                yield from task_farm.coordinate(self._messages, whole, tasks, writes, max_ahead)
        except (SharedFailure, GeneratorExit):  # the latter where the consumer fails
            self.close()  # the other ranks have been stopped
            raise

    # --- failing together ---------------------------------------------------------------------

    def fail(self, error: BaseException, verbose: bool = False) -> int:
        """Print an error, once for all ranks, and return this process's exit status.

        If the other ranks may wait for this one, the error ends them too. With `verbose` the
        traceback of an unforeseen error is printed before.
        """
        alone, self._awaited = self._awaited, False
        failure = shared(error, f"rank {self.rank}: " if alone else "")
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        self.interruption.last_message.acquire()
        if self.rank == 0 or alone:
            if verbose:
                print(streams.escaped(failure.trace), end="", file=sys.stderr)
            streams.print_error(f"{failure}{notes}")
        if alone and self._messages:
            # MPICH's mpiexec was seen to end before it had forwarded the message.
            sys.stdout.flush()
            time.sleep(LAST_WORDS_S)
            self._messages.comm.Abort(failure.status)
        # The same on every rank: MPICH's mpiexec was seen to lose the status of a single one.
        return failure.status


def _unlink_shared_memory() -> None:
    """Remove the name of MPICH's shared memory, which all ranks of this host have open now.

    MPICH removes it at the end of a run, which killed ranks do not reach. When SLURM starts their
    job again on this host, the new ranks choose the same name and would fail on it.
    """
    with contextlib.suppress(OSError):  # another rank was first; or this is not Linux
        with open("/proc/self/maps", encoding="utf-8") as maps:
            names = re.findall(r"/dev/shm/mpich_shm_\w+$", maps.read(), re.MULTILINE)
        for name in set(names):
            os.unlink(name)
