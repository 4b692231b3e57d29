"""Running the tool as its users do, in processes that cannot outlive a hang."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import main

REPO = Path(__file__).resolve().parents[1]
#: Seconds after which a run counts as hung.
HANG = 120
#: What a launcher leaves in the environment, should the tests themselves be started by one.
_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "SLURM_")
#: What Open MPI needs to run as root, and with more ranks than cores (version 5, version 4).
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


#: A line of progress: a run prints none, unless the machine is busy.
_PROGRESS = re.compile(r"^[a-z ]+: \d+ of \d+ \w+, [^\n]* left\n", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    out: str
    stderr: str

    @property
    def err(self) -> str:
        """Standard error without lines of progress."""
        return _PROGRESS.sub("", self.stderr)

    @property
    def errors(self) -> list[str]:
        """The errors that the tool printed: a launcher may add lines when a rank fails."""
        return [line for line in self.err.splitlines() if line.startswith("main.py: error:")]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a run: no launcher's variables, and what Open MPI needs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    return {**_OPEN_MPI, **clean, "PYTHONPATH": str(REPO), **(extra or {})}


def mpiexec() -> str:
    """Return the mpiexec of this Python's environment, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert found, "no mpiexec: install requirements-dev.txt"
    return found


def run(
    command: Sequence[str | Path],
    cwd: Path,
    extra: Mapping[str, str] | None = None,
    timeout: float = HANG,
) -> Ended:
    """Run a command to its end; where it hangs, end it and fail."""
    # Files, not pipes: ranks that outlive their mpiexec would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # mpiexec ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode(errors="replace"))
    assert status is not None, f"hung: {command}\n{said[0]}\n{said[1]}"
    return Ended(status, *said)


def serial(cwd: Path, *options: str | Path, extra: Mapping[str, str] | None = None) -> Ended:
    """Run `python main.py` with these options."""
    return run([sys.executable, REPO / "main.py", *options], cwd, extra)


def ranks(n: int, cwd: Path, *options: str | Path) -> Ended:
    """Run `mpiexec -n N python main.py` with these options."""
    return run([mpiexec(), "-n", str(n), sys.executable, REPO / "main.py", *options], cwd)


def ranks_of(n: int, script: str, cwd: Path, *arguments: str | Path) -> Ended:
    """Run a script of this folder under mpiexec."""
    path = REPO / "tests" / script
    return run([mpiexec(), "-n", str(n), sys.executable, path, *arguments], cwd)


def called(cwd: Path, *options: str | Path) -> Ended:
    """Call `main.main` in this process: the serial run without the start of an interpreter."""
    out, err = io.StringIO(), io.StringIO()
    cwd.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main.main([str(option) for option in options])
    return Ended(status, out.getvalue(), err.getvalue())


def contents(folder: Path) -> set[str]:
    """Return every path below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
