"""Makes faults happen: a run in which one rank breaks at one step, small disks, missing locks.

As a script it is `main.py` with one function broken on one rank, and all else real:
`faults.py FAULT ARGUMENT ...`, where FAULT is JSON of a `Fault`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpatches import streams
from pipeline.mpi import launch
from tests.running import REPO, Ended, environment, mpiexec

#: Seconds after which a run with a fault counts as hung.
HANG = 60
#: Seconds that a broken run may take to end, from the fault on.
SOON = 10
EARLIER = b"weeks of work"
#: The function that is broken for a step: module and name. Those of the tool's work on one pair.
STEPS = {
    "finding": ("pipeline.cohort.patients", "read_headers"),
    "planning": ("pipeline.cohort.anatomy", "sample_of"),
    "reading": ("pipeline.filling", "read_pixels"),
    "patching": ("patching", "make_block"),
    "writing": ("ctpatches.blocks", "Block.write"),
    "handing over": ("pipeline.mpi.ranks", "Ranks.send"),
    "taking": ("pipeline.output.commit", "OutputFile.write"),
    "reserving": ("pipeline.output.commit", "reserve"),
    "creating": ("pipeline.output.commit", "OutputFile.create"),
    "syncing": ("os", "fsync"),
    "renaming": ("os", "replace"),
    "reporting": ("pipeline.report.contents", "write_report"),
}
#: Those on which ranks share the work.
SHARED_STEPS = ("finding", "planning", "reading", "patching", "writing")


@dataclass(frozen=True)
class Fault:
    """What happens at a step.

    Attributes
    ----------
    how : {'raise', 'kill', 'exit', 'leave', 'hold', 'skip', 'spoil'}
        Raise an error, get SIGKILL, call sys.exit(0), os._exit(0), wait for ever, do nothing, or
        return NaN.
    step : str
        One of `STEPS`.
    rank : int
        On which rank.
    call : int
        At which call of the function there, from 1.
    mark : str
        A file that is made at the moment of the fault, with the process id in it. On rank 0, it
        makes the fault certain: the other ranks wait for it instead of doing all the work.
    after : str
        A checkpoint in which a finished block must stand first.
    """

    how: str
    step: str
    rank: int = 0
    call: int = 1
    mark: str = ""
    after: str = ""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = HANG) -> Any:
    """Return the first true value of a condition; fail when it takes too long."""
    latest = time.monotonic() + seconds
    while time.monotonic() < latest:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s: {what}")


def finished_blocks(checkpoint: Path) -> int:
    """Return how many blocks a checkpoint names."""
    try:
        return checkpoint.read_bytes().count(b'\n["done"')
    except FileNotFoundError:
        return 0


# --- runs ------------------------------------------------------------------------------------


def argv(root: Path, output: str | Path, *options: str | Path, report: bool = False) -> list[str]:
    """Return the arguments of a small job."""
    where = ["--input-folder", root, "--output-fname", output]
    how = ["--patch-size", "p24", *([] if report else ["--no-report"])]
    return [str(a) for a in (*where, *how, *options)]


def command(n: int, arguments: Sequence[str], fault: Fault | None = None) -> list[str]:
    """Return the command of a run: serial for n = 0, else under mpiexec."""
    script = [str(REPO / "main.py")]
    if fault:
        script = [str(REPO / "tests" / "faults.py"), json.dumps(dataclasses.asdict(fault))]
    launcher = [mpiexec(), "-n", str(n)] if n else []
    return [*launcher, sys.executable, *script, *arguments, *(["--mpi_run"] if n else [])]


class Run:
    """A run in the background, that is ended when its block is left."""

    def __init__(
        self, words: Sequence[str], cwd: Path, extra: Mapping[str, str] | None = None
    ) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        # Files, not pipes: ranks that outlive their mpiexec would keep a pipe open.
        self.streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=self.streams[0],
            stderr=self.streams[1],
            start_new_session=True,
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in self.streams:
            stream.close()

    def said(self) -> list[str]:
        """Return what came on stdout and stderr so far."""
        out = []
        for stream in self.streams:
            stream.seek(0)
            out.append(stream.read().decode(errors="replace"))
        return out

    def ended(self, seconds: float = HANG) -> Ended:
        """Wait for the end."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hung: {self.process.args!r}\n{self.said()}") from None
        return Ended(status, *self.said())


def run(
    words: Sequence[str], cwd: Path, extra: Mapping[str, str] | None = None, seconds: float = HANG
) -> Ended:
    """Run a command to its end."""
    with Run(words, cwd, extra) as running:
        return running.ended(seconds)


def processes_of(word: str) -> list[int]:
    """Return the processes whose command line holds that word, without this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def no_process_left(output: Path) -> None:
    """Check that no process of a run is there any more."""
    wait_for(lambda: not processes_of(str(output)), f"the end of all processes of {output}", 5)


def one_error(ended: Ended, *words: str, status: int | None = None) -> str:
    """Check that a run failed with one message of the tool that holds these words; return it."""
    assert ended.status != 0, ended.out
    if status is not None:
        assert ended.status == status, ended.err
    assert len(ended.errors) == 1, ended.err
    assert "Traceback" not in ended.err, ended.err
    message = ended.err[ended.err.index("main.py: error:") :]
    for word in words:
        assert word in message, message
    return message


def left(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def kept(folder: Path) -> set[str]:
    """Return the names in a folder without the reports of runs that went well."""
    return left(folder) - {"sanity_check"}


# --- disks -----------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a disk of its own in memory; skip the test where that is not allowed."""
    import pytest  # here: half of the start of a broken run

    folder.mkdir()
    mount = shutil.which("mount")
    how = [str(mount), "-t", "tmpfs", *(["-o", ",".join(options)] if options else []), "none"]
    done = mount and subprocess.run([*how, str(folder)], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("may not mount a disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@functools.cache
def without_locks() -> str | None:
    """Return a library that makes every flock fail as on a network file system without locks."""
    compiler = shutil.which("cc")
    if not compiler:
        return None
    folder = Path(tempfile.mkdtemp())
    source, library = folder / "flock.c", folder / "flock.so"
    source.write_text(
        "#include <errno.h>\nint flock(int f, int how) { errno = ENOLCK; return -1; }\n"
    )
    made = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=False)
    return str(library) if made.returncode == 0 else None


# --- the broken run --------------------------------------------------------------------------


def happen(fault: Fault) -> None:
    """Let the fault happen, in the process that it is for."""
    if fault.after:
        wait_for(lambda: finished_blocks(Path(fault.after)), "a finished block in the checkpoint")
    if fault.mark:
        Path(fault.mark).write_text(str(os.getpid()))
        happened(fault).touch()
    if fault.how == "raise":
        raise ZeroDivisionError("made to fail")
    if fault.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.how == "exit":
        sys.exit(0)
    if fault.how == "leave":
        os._exit(0)
    if fault.how == "hold":
        latest = time.monotonic() + 2 * HANG  # not for ever: no test may leave a process
        while time.monotonic() < latest and Path(fault.mark).exists():
            time.sleep(0.01)


def happened(fault: Fault) -> Path:
    """Return a file that stays there once the fault has happened: a test may remove the mark."""
    return Path(fault.mark + ".happened")


def broken(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    """Return the function with the fault in it."""
    calls = itertools.count(1)  # in one step, whichever thread calls

    def instead(*arguments: Any, **named: Any) -> Any:
        if next(calls) == fault.call:
            happen(fault)
            if fault.how == "skip":
                return ()
            if fault.how == "spoil":
                return function(*arguments, **named) * float("nan")
        return function(*arguments, **named)

    return instead


def delayed(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    """Return the function for a rank that waits in it until the fault has happened."""

    def instead(*arguments: Any, **named: Any) -> Any:
        wait_for(happened(fault).exists, "the fault on rank 0")
        if fault.how == "hold":
            wait_for(lambda: not Path(fault.mark).exists(), "its end")
        return function(*arguments, **named)

    return instead


def main(description: str, arguments: Sequence[str]) -> int:
    """Run the command line with a fault in it."""
    import importlib

    import main as tool

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as main.py, but here numpy is loaded before
    fault = Fault(**json.loads(description))
    here = launch.launcher_ranks(os.environ)[0] == fault.rank
    if here or (fault.rank == 0 and fault.mark and fault.step in SHARED_STEPS):
        module, name = STEPS[fault.step]
        *path, last = name.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(module))
        function = getattr(owner, last)
        other = broken(function, fault) if here else delayed(function, fault)
        setattr(owner, last, other)
    sys.argv[1:] = arguments  # as from a shell, so that Ctrl-C ends it as there
    return tool.main()


if __name__ == "__main__":
    sys.exit(streams.run(lambda: main(sys.argv[1], sys.argv[2:])))
