"""The ranks of a run: steps of rank 0 alone, shared values, shared work, and failing together."""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ctpatches import streams
from ctpatches.files import Offset, Write
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.mpi.terminal import LAST_WORDS_S, Interruption
from pipeline.prefetch import prefetched

if TYPE_CHECKING:
    from pipeline.mpi.task_farm import TaskFarm

Result = TypeVar("Result")


class Ranks:
    """The ranks of a run; by default this process alone, without MPI.

    Attributes are `rank` and `size`; `beside_root`, whether this rank shares its host, and so its
    file systems, with rank 0; and `one_host`, whether all ranks do.
    """

    def __init__(self, farm: TaskFarm | None = None) -> None:
        self.rank, self.size = (farm.comm.rank, farm.comm.size) if farm else (0, 1)
        host_ranks = farm.host_ranks if farm else [0]
        self.beside_root, self.one_host = 0 in host_ranks, len(host_ranks) == self.size
        #: What Ctrl-C does; of `main`, which starts it.
        self.interruption = Interruption()
        #: Whether other ranks may wait for this one, and would do so forever if it left.
        self._awaited = self.size > 1
        self._farm = farm if self.size > 1 else None
        self._launched = farm is not None
        if self._farm:
            atexit.register(self._check_left)

    def _check_left(self) -> None:
        """End all ranks if this one leaves before the run is over."""
        if self._awaited:
            self.fail(RunError("left before the run was over"))

    def close(self) -> None:
        """Record that no other rank waits for this one any more."""
        self._awaited = False

    # --- steps, and small values --------------------------------------------------------------

    def on_all(self, step: Callable[[], Result], root_only: bool = False) -> list[Result]:
        """Return the small results of a step of every rank, in order, on every rank.

        With `root_only` the other ranks have no step, but None. Raises SharedFailure, the same on
        every rank, where the step fails on any.
        """
        outcome: Any = None
        if self.rank == 0 or not root_only:
            try:
                outcome = step()
            except Exception as error:
                outcome = shared(error)
        outcomes = [outcome]
        if self._farm:
            outcomes = self._farm.gather(outcome, "rank 0" if root_only else "wait")
        failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, SharedFailure)]
        if failed:
            first = outcomes[failed[0]]
            where = "" if root_only or len(failed) == self.size else f"rank {failed[0]}: "
            self.close()
            raise SharedFailure(f"{where}{first}", first.status, first.trace)
        return outcomes

    def share(self, step: Callable[[], Result]) -> Result:
        """Return the small result of a step of rank 0 on every rank; see `on_all` for failures."""
        return self.on_all(profile.step("rank 0")(step), root_only=True)[0]

    def on_root(self, step: Callable[[], Result]) -> Result | None:
        """Return the result of a step of rank 0 there, and None on others; see `on_all`."""
        results: list[Result] = []
        self.share(lambda: results.append(step()))
        return results[0] if results else None

    # --- shared work --------------------------------------------------------------------------

    def send(self, file: int, offset: Offset, data: memoryview) -> None:
        """Pass bytes to the function of that number in `imap_unordered`'s `writes` of rank 0.

        They must not change afterwards.
        """
        assert self._farm
        self._farm.send_bytes(file, offset, data)

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
        it in so many `threads`. Ranks use none: a launcher starts one for each core. A task is not
        begun before all but `max_ahead` of those before it are done. What other ranks `send` for a
        file is passed to that of `writes` before the result of their task is yielded.
        """
        if not self._farm:
            threads = 0 if self._launched else threads
            with contextlib.closing(prefetched(tasks, prepare, threads)) as prepared:
                yield from map(function, prepared)
            return

        def whole(task: Any) -> Result:
            return function(prepare(task))

        try:
            if self.rank:
                self._farm.work(whole)
            else:
                yield from self._farm.coordinate(whole, tasks, writes, max_ahead)
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
        if alone and self._farm:
            # MPICH's mpiexec was seen to end before it had forwarded the message.
            sys.stdout.flush()
            time.sleep(LAST_WORDS_S)
            self._farm.comm.Abort(failure.status)
        # The same on every rank: MPICH's mpiexec was seen to lose the status of a single one.
        return failure.status
