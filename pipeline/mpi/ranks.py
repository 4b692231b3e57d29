"""The ranks of a run: steps of rank 0 alone, shared values, shared work, and failing together.

`Ranks()` is a run of this process alone: the same code with nobody to talk to, without MPI.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ctpatches import streams
from ctpatches.messages import RunError
from pipeline import profile
from pipeline.errors import SharedFailure, shared
from pipeline.prefetch import prefetched

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipeline.mpi.messages import Messages
    from pipeline.mpi.remote_writer import RemoteWriter
    from pipeline.output.blocks import Writer

Task = TypeVar("Task")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

#: How long a launcher gets to pass on what was printed before it is told to end all ranks.
LAST_WORDS_S = 0.3


class Ranks:
    """The ranks of a run.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        None for a serial run.

    Attributes
    ----------
    rank, size : int
    beside_root : bool
        Whether this rank shares its host, and so its file systems, with rank 0.

    Examples
    --------
    >>> ranks = Ranks()
    >>> sorted(ranks.imap_unordered(abs, [-2, 1]))
    [1, 2]
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self.parallel = comm is not None
        self.beside_root = True
        self._messages: Messages | None = None
        self._writers: Sequence[Writer | None] = []
        self._remote: list[RemoteWriter] = []
        #: Whether the other ranks may still wait for this one, and whether they have been stopped.
        self._open, self._stopped = True, False
        if comm and self.size > 1:
            from pipeline.mpi.messages import Messages, shares_root_host

            self._messages = Messages(comm)
            self.beside_root = shares_root_host(comm)
            _unlink_shared_memory()
            atexit.register(self._check_left)

    def _check_left(self) -> None:
        """End all ranks if this one leaves in the middle: the others would wait for it for ever."""
        if self._open:
            self.fail(RunError("left before the run was over"))

    def close(self) -> None:
        """Take note that this rank has finished the run."""
        self._open = False

    # --- steps of rank 0 alone, and values ----------------------------------------------------

    def on_root(self, step: Callable[[], Result]) -> Result | None:
        """Run a step on rank 0 while the others wait; where it fails, fail on all ranks.

        Returns
        -------
        object
            What the step returned on rank 0, None on the others.

        Raises
        ------
        SharedFailure
            On every rank, where the step fails.
        """
        with profile.step("rank 0"):
            if self.rank:
                self.share(None)
                return None
            try:
                result = step()
            except Exception as error:
                failure = shared(error)
                self._send_all(failure)
                raise failure from error
            self._send_all(None)
            return result

    def share(self, value: Result | None) -> Result:
        """Return on every rank the small value that rank 0 has.

        Raises
        ------
        SharedFailure
            Rank 0 failed.
        """
        if not self.rank:
            self._send_all(value)
        elif self._messages:
            message = self._messages.wait(source=0)
            assert message
            value = message.content
            if isinstance(value, SharedFailure):
                raise value
        return value  # type: ignore[return-value]

    def gather(self, value: Result) -> list[Result]:
        """Return the small values of all ranks, in order, on rank 0."""
        from_others = []
        if self._messages:
            from pipeline.mpi.messages import Tag

            if self.rank:
                self._messages.send(0, value, Tag.VALUE)
                self._messages.settle()
            else:
                waits = (self._messages.wait(source=rank) for rank in range(1, self.size))
                from_others = [message.content for message in waits if message]
        return [] if self.rank else [value, *from_others]

    def _send_all(self, content: object) -> None:
        if self._messages:
            from pipeline.mpi.messages import Tag

            self._messages.send_all(content, Tag.VALUE)

    # --- shared work --------------------------------------------------------------------------

    def writers(
        self,
        files: Sequence[Writer | None],
        stack: contextlib.ExitStack,
        background: bool,
    ) -> Sequence[Writer | None]:
        """Return what this rank writes its blocks with, one for each file.

        Parameters
        ----------
        files : sequence of Writer or None
            The files, where this rank sees the very ones that rank 0 has created; bytes for the
            others go to rank 0. None on rank 0 for files without a block to write.
        stack : contextlib.ExitStack
            Closes them.
        background : bool
            Whether a serial run writes in a thread.
        """
        if not self.rank:
            self._writers = files
            if background and not self.parallel:
                from pipeline.output.blocks import BackgroundWriter

                later = [BackgroundWriter(file) if file else None for file in files]
                for writer in filter(None, later):
                    stack.callback(writer.close)
                self._writers = later
            return self._writers
        from pipeline.mpi.remote_writer import RemoteWriter

        assert self._messages
        self._remote = [RemoteWriter(self._messages, number) for number in range(len(files))]
        return [file or remote for file, remote in zip(files, self._remote, strict=True)]

    def imap_unordered(
        self,
        function: Callable[[Prepared], Result],
        tasks: Sequence[Task],
        prepare: Callable[[Task], Prepared] = lambda task: task,  # type: ignore[assignment,return-value]
        threads: int = 0,
    ) -> Generator[Result, None, None]:
        """Yield `function(prepare(task))` for every task, on rank 0 and in any order.

        All ranks call it and iterate over it. Rank 0's tasks count; other ranks work on some of
        them, and yield nothing. If the consumer may fail, use `contextlib.closing`, so that the
        other ranks are stopped at once.

        Parameters
        ----------
        function : callable
            Returns a small result.
        tasks : sequence
        prepare : callable
            The part of a task that may be done before its turn has come.
        threads : int
            How many tasks a serial run prepares at once, besides working. Ranks need none: each
            has a core to itself at best.

        Raises
        ------
        SharedFailure
            On every rank, where `prepare` or `function` fails on any.
        """
        if not self._messages:
            ahead = 0 if self.parallel else threads
            with contextlib.closing(prefetched(tasks, prepare, ahead)) as prepared:
                for one in prepared:
                    yield function(one)
                    del one  # before the next one is prepared: it may hold images
            return
        from pipeline.mpi import task_farm

        def whole(task: Task) -> Result:
            return function(prepare(task))

        if self.rank:
            task_farm.work(self._messages, whole, self._flush)
        else:
            try:
                yield from task_farm.coordinate(self._messages, whole, tasks, self._write)
            except GeneratorExit:  # the consumer failed, and the other ranks have been stopped
                self._stopped = True
                raise

    def _flush(self) -> None:
        for writer in self._remote:
            writer.flush()

    def _write(self, file: int, offset: int, data: memoryview) -> None:
        """Write bytes that another rank has sent."""
        writer = self._writers[file]
        assert writer
        with profile.step("write"):
            writer.write(offset, data)

    # --- failing together ---------------------------------------------------------------------

    def fail(self, error: BaseException) -> int:
        """Print an error, once for all ranks, and return this process's exit status.

        An error that the other ranks know nothing of ends them too: they may wait for this rank.
        """
        if isinstance(error.__cause__, SharedFailure):
            error = error.__cause__
        if isinstance(error, KeyboardInterrupt):
            message, status = "interrupted", 130
        elif isinstance(error, SystemExit):
            message, status = "ended by a signal", int(error.code or 1)
        else:
            failure = shared(error, f"rank {self.rank}: " if self._messages else "")
            message, status = str(failure), failure.status
        message += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        self.close()
        known = isinstance(error, SharedFailure) or self._stopped
        alone = self._messages is not None and not known
        if self.rank == 0 or alone:
            streams.print_error(message)
        if alone:
            assert self._messages
            # MPICH's mpiexec was seen to end before it had passed the message on.
            sys.stdout.flush()
            time.sleep(LAST_WORDS_S)
            self._messages.comm.Abort(status)
        # The same on every rank: MPICH's mpiexec was seen to lose the status of a single one.
        return status


def _unlink_shared_memory() -> None:
    """Remove the name of MPICH's shared memory, which all ranks of this host have open now.

    MPICH removes it at the end of a run. Killed ranks would leave it; and when SLURM starts their
    job again on this host, the new ranks choose the same name and fail on what the old ones left.
    """
    with contextlib.suppress(OSError):  # another rank was first; or this is not Linux
        with open("/proc/self/maps", encoding="utf-8") as maps:
            names = re.findall(r"/dev/shm/mpich_shm_\w+$", maps.read(), re.MULTILINE)
        for name in set(names):
            os.unlink(name)
