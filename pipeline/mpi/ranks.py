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
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi import task_farm
from pipeline.mpi.messages import Messages, RemoteWriter, wait_until
from pipeline.mpi.terminal import LAST_WORDS_S, Interruption
from pipeline.prefetch import prefetched

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipeline.output.writer import Writer

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
        self._writers: Sequence[Writer | None] = []
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

    def share(self, step: Callable[[], Result]) -> Result:
        """Return the small result of a step of rank 0 on every rank.

        Raises SharedFailure on every rank where the step fails.
        """
        outcome: Result | SharedFailure | None = None
        if self.rank == 0:
            try:
                with profile.step("rank 0"):
                    outcome = step()
            except Exception as error:
                outcome = shared(error)
        if self._messages:
            wait_until(self._messages.comm.Ibarrier().Test, "rank 0")
            outcome = self._messages.comm.bcast(outcome)
        if isinstance(outcome, SharedFailure):
            self.close()
            raise outcome
        return outcome  # type: ignore[return-value]

    def on_root(self, step: Callable[[], Result]) -> Result | None:
        """Return the result of a step on rank 0, and None on the others, which wait for it.

        Raises SharedFailure on every rank where the step fails.
        """
        results: list[Result] = []
        self.share(lambda: results.append(step()))
        return results[0] if results else None

    def on_all(self, step: Callable[[], Result]) -> Result:
        """Return the result of a step of this rank, once it has succeeded on every rank.

        Raises SharedFailure, the same on every rank, where the step fails on any.
        """
        outcome: Result | SharedFailure
        try:
            outcome = step()
        except Exception as error:
            outcome = shared(error)
        failures = self.gather(outcome if isinstance(outcome, SharedFailure) else None)
        failed = [(rank, failure) for rank, failure in enumerate(failures) if failure]
        if failed:
            rank, first = failed[0]
            where = "" if len(failed) == self.size else f"rank {rank}: "
            self.close()
            raise SharedFailure(f"{where}{first}", first.status, first.trace)
        return outcome  # type: ignore[return-value]

    def gather(self, value: Result) -> list[Result]:
        """Return the small values of all ranks, in order, on every rank."""
        if not self._messages:
            return [value]
        wait_until(self._messages.comm.Ibarrier().Test, "wait")
        return self._messages.comm.allgather(value)

    # --- shared work --------------------------------------------------------------------------

    def writers(self, files: Sequence[Writer | None]) -> Sequence[Writer | None]:
        """Return what this rank writes to each file with.

        A file is None on rank 0 if there is nothing to write to it, and on another rank if that
        does not see the file that rank 0 has created: its bytes then go to rank 0.
        """
        self._writers = files
        if self._messages and self.rank:
            return [file or RemoteWriter(self._messages, i) for i, file in enumerate(files)]
        return files

    def imap_unordered(
        self,
        function: Callable[[Any], Result],
        tasks: Sequence[Any],
        prepare: Callable[[Any], Any] = lambda task: task,
        threads: int = 0,
        max_ahead: float = math.inf,
    ) -> Generator[Result, None, None]:
        """Yield `function(prepare(task))` for every task, on rank 0 and in any order.

        All ranks call it and iterate over it; other ranks work on some of the tasks of rank 0, and
        yield nothing. If the consumer may fail, use `contextlib.closing`, so that the other ranks
        are stopped at once. Raises SharedFailure on every rank, where a function fails on any.

        `prepare` is the part of a task that may be done before its turn has come: a serial run does
        it in so many `threads`. Ranks under MPI use none: each has one core at best. A task is not
        begun before all but `max_ahead` of those before it are done.
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
                yield from task_farm.coordinate(
                    self._messages, whole, tasks, self._writers, max_ahead
                )
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
