"""Sharing work over ranks, handing bytes to rank 0, and failing together. Alone imports mpi4py.

A `World` of one rank needs no MPI and is the serial run: the same code with nobody to talk to.

Messages, all between rank 0 and one other rank, each far below 64 MB:

    rank 0 -> r    TASK    a task for `World.run`
                   STOP    leave `World.run`, with the failure of the run or None
                   ROOT    what came of `World.on_root`: None or a failure
    r -> rank 0    REPORT  the result of a task, a failure, or the answer to STOP
                   WRITE   number of a file, offset and length of bytes for it
                   BYTES   these bytes
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from pipeline import profile, streams
from pipeline.prefetch import Behind, made_ahead
from utils import CallError, RunError, ToolError

if TYPE_CHECKING:
    from mpi4py import MPI

Task = TypeVar("Task")
Result = TypeVar("Result")

TASK, STOP, ROOT, REPORT, WRITE, BYTES = range(1, 7)
#: Bytes of one message to rank 0, and how many of them may be on their way from one rank.
MESSAGE_BYTES = 2 << 20
PENDING_BYTES = 64 << 20
#: Bytes of one write behind the back of a serial run, and how many of them may wait for it.
BEHIND_BYTES, BEHIND_MOST = 1 << 20, 8
#: Tasks that a rank may hold: one in work, and others waiting, so that it need not wait for rank 0,
#: who looks up between two tasks of its own; and how many while rank 0 does something else first.
TASKS_AHEAD, HEAD_START = 3, 24
#: Longest sleep between two looks for a message, seconds. MPI itself would spin: with more ranks
#: than cores, waiting ranks would take the cores from working ones.
NAP = 0.002
#: How long a failed run waits for its other ranks to leave in good order, seconds.
PATIENCE = 5.0
#: How long a launcher gets to pass on what was printed before it is told to end all, seconds.
LAST_WORDS = 0.3


class Writer(Protocol):
    """Something that puts bytes at their place in the file.

    Attributes
    ----------
    piece_bytes : int
        How many it takes best at once.
    keeps : bool
        Whether it still needs them when `write` has returned.
    """

    piece_bytes: int
    keeps: bool

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte."""


class SharedFailure(ToolError):
    """A failure that every rank knows of: rank 0 prints it, and all leave with its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)  # both, so that it survives pickling
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


def launcher_ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and number of ranks that a launcher's variables tell; (0, 1) without a launcher.

    Known are MPICH's and Intel's mpiexec, Open MPI's, and srun. SLURM_NTASKS alone is no launcher:
    it stands in every batch script. Values that no launcher would set are ignored.
    """
    for names in (
        ("PMI_RANK", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ):
        rank, size = (_count(environ, name) for name in names)
        if 0 <= rank < size:
            return rank, size
    return 0, 1


def _count(environ: Mapping[str, str], name: str) -> int:
    """Return the number that a variable holds, -1 where it holds none."""
    value = environ.get(name, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else -1


def launcher_name(environ: Mapping[str, str]) -> str:
    """Return which command started the ranks, for messages: mpiexec or srun."""
    slurm = {name: value for name, value in environ.items() if name.startswith("SLURM_")}
    # SLURM starts mpiexec's own processes too, but then in another number.
    return "srun" if launcher_ranks(slurm) == launcher_ranks(environ) else "mpiexec"


def connect(mpi_run: bool, environ: Mapping[str, str]) -> World:
    """Return the world of all ranks: with `mpi_run`, or where a launcher started several processes.

    Without either it is the world of this process alone, and MPI is not even imported.

    Raises
    ------
    CallError
        The launcher started several processes, but MPI does not connect them.
    RunError
        There is no MPI here.
    """
    _, launched = launcher_ranks(environ)
    if not mpi_run and launched == 1:
        return World(None)
    # UCX, which MPICH and Open MPI may send by, would rewrite the C library's memory calls to keep
    # memory registered between messages. Ours are few, and that takes half of MPI's start.
    os.environ.setdefault("UCX_MEM_EVENTS", "n")
    if environ.get("MPI_LOCALNRANKS", "") == environ.get("PMI_SIZE"):
        # MPICH's mpiexec put all ranks on this host: no need to look for networks between them.
        os.environ.setdefault("UCX_TLS", "self,sysv,posix")
    try:
        with warnings.catch_warnings():  # of a launcher of another MPI: reported below
            warnings.simplefilter("ignore", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        raise RunError(f"cannot load MPI (mpi4py and an MPI library): {_reason(error)}") from None
    library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip(" \0")
    _check_size(MPI.COMM_WORLD.size, library, environ)
    return World(MPI.COMM_WORLD)


def _check_size(size: int, library: str, environ: Mapping[str, str]) -> None:
    """Raise CallError where MPI connects fewer processes than were started or reserved."""
    _, launched = launcher_ranks(environ)
    plugin = "pmix" if library.startswith("Open MPI") else "pmi2"
    srun = f"srun --mpi={plugin}"
    if launched > size:
        launcher = launcher_name(environ)
        advice = f"start them with the mpiexec of the MPI that mpi4py uses ({library})"
        if launcher == "srun":
            advice = f"use {srun} for {library} (srun --mpi=list prints what there is)"
        raise CallError(
            f"{launcher} started {launched} processes, but MPI finds {size}: each would do the "
            f"whole job; {advice}, or start one process without --mpi_run for a serial run"
        )
    reserved = _count(environ, "SLURM_NTASKS")
    launchers = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    if size == 1 < reserved and not any(name in environ for name in launchers):
        raise CallError(
            f"SLURM reserved {reserved} tasks, but this is one process: put srun in front "
            f"({srun} python main.py ...), or leave out --mpi_run for a serial run"
        )


def agree(world: World, request: Any) -> Any:
    """Return rank 0's request on every rank, once each rank has a valid one.

    Parameters
    ----------
    world : World
    request : object or ToolError
        What the command line of this rank asks for, or why it is invalid.

    Raises
    ------
    SharedFailure
        The request of a rank is invalid: on every rank, with the same message.
    """
    valid, error = (None, request) if isinstance(request, ToolError) else (request, None)
    errors = world.gather(error)
    world.on_root(lambda: _check_requests(errors))
    return world.share(valid)


def _check_requests(errors: Sequence[ToolError | None]) -> None:
    invalid = [(rank, error) for rank, error in enumerate(errors) if error]
    if invalid:
        rank, error = invalid[0]
        where = "" if len(invalid) == len(errors) else f"rank {rank}: "
        raise SharedFailure(f"{where}{error}", error.status)


def leave(status: int) -> NoReturn:
    """End this process once MPI knows, without Python's tidying up; all it printed must be out.

    Taking numpy, h5py and OpenCV down object by object takes longer than many a step of the run.
    """
    if mpi := sys.modules.get("mpi4py.MPI"):
        import ctypes

        with contextlib.suppress(mpi.Exception):  # another rank broke: all that matters is told
            mpi.Finalize()
        # MPICH takes its leave of mpiexec when the C library ends the process.
        ctypes.CDLL(None).exit(status)
    os._exit(status)


def _reason(error: BaseException) -> str:
    """Return on one line what an error was first caused by: numpy adds a page of advice to it."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def not_loaded(error: BaseException, what: str = "") -> RunError:
    """Turn an error while libraries load into one line; `what` says what it was about."""
    hint = "is there enough memory (ulimit -v)?"
    if isinstance(error, ModuleNotFoundError):
        hint = "install requirements.txt"
    return RunError(f"{what}cannot load a library: {_reason(error)}; {hint}")


def failure_of(error: BaseException, what: str = "") -> ToolError:
    """Turn an error that nobody foresaw into one line; `what` says what it was about."""
    if isinstance(error, ToolError):
        return error
    if isinstance(error, ImportError):
        return not_loaded(error, what)
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM or no_thread:
        return RunError(f"{what}out of memory: {_reason(error)}")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return RunError(f"{what}{type(error).__name__}{place}: {error} (this is a bug)")


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Say of an error inside that nobody foresaw what it was about: a file, a colon, a space."""
    try:
        yield
    except ToolError:
        raise
    except Exception as error:
        raise failure_of(error, what) from error


def _shared(error: BaseException, where: str) -> SharedFailure:
    """Turn what went wrong on a rank into what all ranks are told."""
    if isinstance(error, SharedFailure):
        return error
    failure = failure_of(error)
    return SharedFailure(f"{where}{failure}", failure.status)


class World:
    """The ranks of a run.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        None for a serial run.
    """

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        self.comm = comm
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self._writers: Sequence[Writer | None] = []
        self._senders: list[_Sender] = []
        self._behind: Behind | None = None
        self._sent: list[MPI.Request] = []
        #: Whether this rank shares its host, and so its file systems, with rank 0.
        self.beside_root = self._shares_root_host()
        self._open = True
        if self.size > 1:
            self._unlink_shared_memory()
            atexit.register(self._check_left)

    def _check_left(self) -> None:
        """End all ranks if this one leaves in the middle: the others would wait for it for ever."""
        if self._open:
            self.fail(RunError("left before the run was over"))

    def close(self) -> None:
        """Take note that this rank is through with the run."""
        self._open = False

    def _shares_root_host(self) -> bool:
        if self.comm is None or self.size == 1:
            return True
        from mpi4py import MPI

        host = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        here: bool = host.allreduce(self.rank == 0, MPI.LOR)
        host.Free()
        return here

    @staticmethod
    def _unlink_shared_memory() -> None:
        """Remove the name of MPICH's shared memory, which all ranks of this host have open now.

        MPICH removes it at the end of a run. Killed ranks would leave it; and when SLURM starts
        their job again on this host, the new ranks choose the same name and fail on what the old
        ones left.
        """
        with contextlib.suppress(OSError):  # another rank was first; or this is not Linux
            with open("/proc/self/maps") as maps:
                names = re.findall(r"/dev/shm/mpich_shm_\w+$", maps.read(), re.MULTILINE)
            for name in set(names):
                os.unlink(name)

    # --- waiting and talking ------------------------------------------------------------------

    def _wait(self, source: int | None = None, seconds: float = math.inf) -> Any:
        """Wait politely for the next message; return its (message, status), None if none came."""
        from mpi4py import MPI

        assert self.comm is not None
        nap = 0.0
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            found = self._look(MPI.ANY_SOURCE if source is None else source)
            if found:
                return found
            time.sleep(nap)
            nap = min(NAP, nap + NAP / 20)
        return None

    def _look(self, source: int) -> Any:
        from mpi4py import MPI

        assert self.comm is not None
        status, look = MPI.Status(), self.comm.improbe
        # MPICH looks at what it knows of first and only then for more: what has come since the
        # last look is found by the second one.
        message = look(source, MPI.ANY_TAG, status) or look(source, MPI.ANY_TAG, status)
        return (message, status) if message else None

    def _is_to_stop(self) -> bool:
        """Tell whether rank 0 has said stop, behind other messages perhaps (see `_look`)."""
        assert self.comm is not None
        return bool(self.comm.iprobe(0, STOP) or self.comm.iprobe(0, STOP))

    def _tell(self, rank: int, what: object, tag: int) -> None:
        """Send a small object without waiting for the receiver, who may be sending to us."""
        assert self.comm is not None
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self.comm.isend(what, rank, tag))

    def _settle(self) -> None:
        while self._sent:
            self._sent.pop().wait()

    # --- steps of rank 0 alone ----------------------------------------------------------------

    def on_root(self, do: Callable[[], Result]) -> Result | None:
        """Run a step on rank 0 while the others wait; where it fails, fail on all ranks.

        Returns
        -------
        object
            What the step returned on rank 0, None on the others.
        """
        if self.rank:
            with profile.step("rank 0"):
                message, _ = self._wait(source=0)
            failure = message.recv()
            if failure:
                raise failure
            return None
        try:
            with profile.step("rank 0"):
                result = do()
        except Exception as error:
            failure = _shared(error, "")
            self._tell_all(failure, ROOT)
            raise failure from error
        self._tell_all(None, ROOT)
        return result

    def share(self, value: Result | None) -> Result:
        """Return on every rank the small value that rank 0 has."""
        if self.comm is not None and self.size > 1:
            if self.rank:
                message, _ = self._wait(source=0)
                value = message.recv()
            else:
                self._tell_all(value, ROOT)
        return value  # type: ignore[return-value]

    def gather(self, value: Result) -> list[Result]:
        """Return the small values of all ranks, in order, on rank 0."""
        if self.rank:
            assert self.comm is not None
            self.comm.send(value, 0, REPORT)
            return []
        values = [value]
        for rank in range(1, self.size):
            message, _ = self._wait(source=rank)
            values.append(message.recv())
        return values

    def _tell_all(self, what: object, tag: int) -> None:
        for rank in range(1, self.size):
            self._tell(rank, what, tag)
        self._settle()

    # --- bytes for the file -------------------------------------------------------------------

    def open_writers(
        self, local: Sequence[Writer | None], threads: int = 0
    ) -> Sequence[Writer | None]:
        """Return what this rank writes its blocks with, one for each file.

        Parameters
        ----------
        local : sequence of Writer or None
            The files themselves, where this rank sees the very files that rank 0 has made. Bytes
            for the others go to rank 0. None on rank 0 for files without a block to write.
        threads : int
            As for `run`: with any, a serial run writes in a thread.
        """
        if self.rank == 0:
            self._writers = local
            if self.comm or not threads:
                return self._writers
            self._behind = Behind(BEHIND_MOST)
            return [writer and _Later(self._behind, writer) for writer in local]
        self._senders = [_Sender(self.comm, file) for file in range(len(local))]
        return [writer or sender for writer, sender in zip(local, self._senders, strict=True)]

    def _receive_bytes(self, head: tuple[int, int, int], source: int, keep: bool) -> None:
        file, offset, length = head
        data = bytearray(length)
        assert self.comm is not None
        with profile.step("receive"):
            self.comm.Recv(data, source, BYTES)
        if keep:
            with profile.step("write"):
                writer = self._writers[file]
                assert writer
                writer.write(offset, memoryview(data))

    # --- shared work --------------------------------------------------------------------------

    def run(
        self,
        tasks: Sequence[Task] | None,
        work: Callable[[Any], Result],
        take: Callable[[Result], None],
        name: Callable[[Task], str] = lambda _: "",
        prepare: Callable[[Task], Any] = lambda task: task,
        threads: int = 0,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Do every task once, on any rank; results come to rank 0 in any order.

        Parameters
        ----------
        tasks : sequence
            What is to be done; rank 0's counts.
        work : callable
            Does a task, given what `prepare` made of it, and returns a small result. Called on
            every rank.
        take : callable
            Given each result, on rank 0, one at a time; by the thread that writes, if there is one.
        name : callable
            Says what a task is about, for the message about an error that nobody foresaw.
        prepare : callable
            The part of a task that may be done before its turn has come.
        threads : int
            How many of them a serial run may do at once, besides working. Ranks need none: each has
            a core to itself at best.
        meanwhile : callable
            What rank 0 does first, while the others are at their first tasks already.

        Raises
        ------
        SharedFailure
            On every rank, where `prepare`, `work` or `take` fails on any.
        """

        def named(do: Callable[[Any], Any], task: Task, given: Any) -> Any:
            with about(name(task)):
                return do(given)

        def whole(task: Task) -> Result:
            result: Result = named(work, task, named(prepare, task, task))
            return result

        if self.rank:
            self._follow(whole)
        elif self.comm:
            _Lead(self, list(tasks or ()), whole, take).run(meanwhile)
        else:
            try:
                if meanwhile:
                    meanwhile()
                prepared = made_ahead(tasks or (), lambda t: named(prepare, t, t), threads)
                with contextlib.closing(prepared):
                    for task, made in prepared:
                        self._when_written(functools.partial(take, named(work, task, made)))
                        del made  # before the next one is made: it may hold images
                if self._behind:
                    self._behind.settle()
            except Exception as error:
                raise _shared(error, "") from error
            finally:
                if self._behind:
                    self._behind.close()
                    self._behind = None

    def _when_written(self, do: Callable[[], object]) -> None:
        """Do something once the bytes are written that were handed out for the file before."""
        if self._behind:
            self._behind.do(do)
        else:
            do()

    def _follow(self, work: Callable[[Task], Result]) -> None:
        """Do what rank 0 hands out until it says stop."""
        assert self.comm is not None
        failure: SharedFailure | None = None
        while True:
            with profile.step("wait"):
                message, status = self._wait(source=0)
            told = message.recv()
            if status.tag == STOP:
                for sender in self._senders:
                    sender.settle()
                self._tell(0, ("stopped", None), REPORT)
                self._settle()
                if told:
                    raise told
                return
            # A task with STOP behind it is of no use, but must be received: MPICH's MPI_Finalize
            # fails where a message was not, this rank leaves first, and mpiexec kills the others.
            if failure or self._is_to_stop():
                continue
            try:
                report: tuple[str, object] = ("done", work(told))
            except Exception as error:
                failure = _shared(error, f"rank {self.rank}: ")
                report = ("failed", failure)
            # Rank 0 may be at work for a while: a send that waits for it would keep this rank idle.
            self._tell(0, report, REPORT)

    def fail(self, error: BaseException) -> int:
        """Print an error, once for all ranks, and return this process's exit status.

        An error that the other ranks know nothing of ends them too: they may wait for this rank.
        """
        if isinstance(error, KeyboardInterrupt):
            message, status = "interrupted", 130
        elif isinstance(error, SystemExit):
            message, status = "ended by a signal", int(error.code or 1)
        else:
            failure = _shared(error, f"rank {self.rank}: " if self.size > 1 else "")
            message, status = str(failure), failure.status
        message += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        self.close()
        shared = isinstance(error, SharedFailure)
        if self.rank == 0 or not shared:
            streams.print_error(message)
        if self.comm is not None and self.size > 1 and not shared:
            # MPICH's mpiexec was seen to end before it had passed the message on.
            sys.stdout.flush()
            time.sleep(LAST_WORDS)
            self.comm.Abort(status)
        # The same on every rank: MPICH's mpiexec was seen to lose the status of a single one.
        return status


class _Sender:
    """Hands bytes to rank 0 in messages of bounded size, going on while they are on their way."""

    piece_bytes, keeps = MESSAGE_BYTES, True

    def __init__(self, comm: Any, file: int) -> None:
        self.comm, self.file = comm, file
        self.pending: list[tuple[int, list[Any]]] = []

    def write(self, offset: int, data: memoryview) -> None:
        data = data.cast("B")
        for start in range(0, len(data), MESSAGE_BYTES):
            piece = data[start : start + MESSAGE_BYTES]
            head = self.comm.isend((self.file, offset + start, len(piece)), 0, WRITE)
            self.pending.append((len(piece), [head, self.comm.Isend(piece, 0, BYTES)]))
            while sum(length for length, _ in self.pending) > PENDING_BYTES:
                self._finish_oldest()

    def _finish_oldest(self) -> None:
        for request in self.pending.pop(0)[1]:
            request.wait()

    def settle(self) -> None:
        """Wait until rank 0 has everything."""
        while self.pending:
            self._finish_oldest()


class _Later:
    """Has bytes written by a thread, going on meanwhile."""

    piece_bytes, keeps = BEHIND_BYTES, True

    def __init__(self, behind: Behind, writer: Writer) -> None:
        self.behind, self.writer = behind, writer

    def write(self, offset: int, data: memoryview) -> None:
        def job() -> None:
            with profile.step("write"):
                self.writer.write(offset, data)

        self.behind.do(job)


class _Lead:
    """Rank 0's side of `World.run`: hands out tasks, takes results, and works too."""

    def __init__(
        self,
        world: World,
        tasks: list[Any],
        work: Callable[[Any], Any],
        take: Callable[[Any], None],
    ) -> None:
        self.world, self.work, self.take = world, work, take
        self.tasks = tasks[::-1]  # popped from the end
        self.held = dict.fromkeys(range(1, world.size), 0)
        self.failure: SharedFailure | None = None
        self.cause: Exception | None = None

    def run(self, meanwhile: Callable[[], object] | None) -> None:
        self.hand_out_all(HEAD_START if meanwhile else TASKS_AHEAD)
        try:
            if meanwhile:
                meanwhile()
        except Exception as error:
            self.stop_for(error)
        while not self.failure and (self.tasks or any(self.held.values())):
            try:
                self.step()
            except Exception as error:
                self.stop_for(error)
        self.end()
        if self.failure:
            raise self.failure from self.cause

    def stop_for(self, error: Exception) -> None:
        where = f"rank {self.world.rank}: " if self.world.size > 1 else ""
        self.failure, self.cause = _shared(error, where), error

    def step(self) -> None:
        while self.world.size > 1 and (found := self.world._look(_any_source())):
            self.answer(found)
        if self.failure:
            return
        if self.tasks:
            self.take(self.work(self.tasks.pop()))
        elif any(self.held.values()):
            with profile.step("wait"):
                found = self.world._wait()
            self.answer(found)

    def hand_out_all(self, most: int) -> None:
        """Hand out up to `most` tasks to each rank, in turns."""
        for number in range(1, most + 1):
            for rank in self.held:
                self.hand_out(rank, number)

    def hand_out(self, rank: int, most: int = TASKS_AHEAD) -> None:
        """Hand out a task, unless the rank holds `most`, or its share of those that are left."""
        if self.held[rank] < most and len(self.tasks) > self.held[rank] * self.world.size:
            self.held[rank] += 1
            self.world._tell(rank, self.tasks.pop(), TASK)

    def answer(self, found: Any) -> None:
        """Deal with one message of another rank."""
        message, status = found
        rank = status.source
        told = message.recv()
        if status.tag == WRITE:
            self.world._receive_bytes(told, rank, keep=self.failure is None)
            return
        what, result = told
        if what == "stopped":
            self.held.pop(rank)
            return
        self.held[rank] -= 1
        if what == "failed":
            self.failure = self.failure or result
        elif not self.failure:
            self.hand_out(rank)
            self.take(result)

    def end(self) -> None:
        """Tell every rank to stop, and hear from each that it has."""
        for rank in self.held:
            self.world._tell(rank, self.failure, STOP)
        while self.held:
            try:
                found = self.world._wait(seconds=PATIENCE if self.failure else math.inf)
                if not found:  # some rank is stuck, perhaps in a file system that hangs
                    self.world.fail(RunError(f"{self.failure} (rank {min(self.held)} is stuck)"))
                self.answer(found)
            except Exception as error:  # a write that fails must not keep the others waiting
                if not self.failure:
                    self.stop_for(error)
        self.world._settle()


def _any_source() -> int:
    from mpi4py import MPI

    return int(MPI.ANY_SOURCE)
