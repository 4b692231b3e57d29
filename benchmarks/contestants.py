"""The programs of the benchmark: how each is started, and what a run of it costs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAIN = HERE.parent / "main.py"
#: The job that is measured, without the report, as the others write none.
JOB = (
    "--patch-size",
    "p55",
    "--rot_augment",
    "--ds_augment",
    "--air_threshold",
    "--overwrite",
    "--no-report",
)
#: Input and target, float32.
PATCH_BYTES = 2 * 55 * 55 * 4
FLOOR, HAND, SERIAL = "floor", "hand script", "serial"
#: What else the tool can store, with the options for it.
VARIANTS = {
    "views": ("--store", "views"),
    "views float16": ("--store", "views", "--dtype", "float16"),
    "views int16": ("--store", "views", "--dtype", "int16"),
    "float16": ("--dtype", "float16"),
    "int16": ("--dtype", "int16"),
    "lz4": ("--compression", "lz4"),
    "zstd": ("--compression", "zstd"),
    "gzip": ("--compression", "gzip"),
    "int16 lz4": ("--dtype", "int16", "--compression", "lz4"),
}
#: What Open MPI wants to be told to run as root and with more ranks than cores; MPICH ignores it.
OPEN_MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
#: Python keeps the byte code of modules, unless told not to: compiling is not what is measured.
KEEP_CODE = {"PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True)
class Run:
    """What one run cost.

    Attributes
    ----------
    wall : float
        From the start of the process, or of mpiexec, to its end, seconds.
    cpu : float
        User and system time of all processes, seconds.
    peaks : tuple of int
        Most memory of each rank, bytes, the largest first.
    size : int
        Of the file that it wrote, bytes.
    """

    wall: float
    cpu: float
    peaks: tuple[int, ...]
    size: int = 0


def mpiexec() -> list[str]:
    """Return what starts ranks: the mpiexec beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    command = [str(beside) if beside.exists() else "mpiexec"]
    return command + (["--oversubscribe"] if "Open MPI" in mpi_version() else [])


def mpi_version() -> str:
    """Return name and version of the MPI that mpi4py uses here; '' without one."""
    code = "from mpi4py import MPI; print(MPI.Get_library_version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    text = done.stdout.strip(" \0\n")
    numbers = re.search(r"(Open MPI|MPICH|Intel\S* MPI)\D*([\d.]+)", text)
    return f"{numbers[1]} {numbers[2]}" if numbers else text.split("\n", maxsplit=1)[0]


def names(ranks: Sequence[int], variants: Sequence[str] = ()) -> list[str]:
    """Return the contestants in the order of their first turn; variants have one and two ranks."""
    stored = [f"{_ranks(n)}, {variant}" for variant in variants for n in (1, 2)]
    return [FLOOR, HAND, SERIAL, *(_ranks(n) for n in ranks), *stored]


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number > 1 else ''}"


def start(name: str, source: Path, folder: Path, patches: int, work: Path) -> Run:
    """Run a contestant to its end and remove what it wrote.

    Parameters
    ----------
    name : str
        One of `names`.
    source : Path
        The input folder.
    folder : Path
        Where it writes.
    patches : int
        How many it is to make: the floor writes as many bytes.
    work : Path
        An empty working directory, for the pictures and the ranks' figures.

    Raises
    ------
    RuntimeError
        It failed, or made another number of patches.
    """
    output = folder / "output.h5"
    if name == FLOOR:
        size = str(patches * PATCH_BYTES)
        command = [sys.executable, str(HERE / "floor.py"), str(source), str(output), size]
    elif name == HAND:
        command = [sys.executable, str(HERE / "hand_script.py"), str(source), str(output)]
    else:
        variant = VARIANTS.get(name.partition(", ")[2], ())
        job = ["--input-folder", str(source), "--output-fname", str(output), *JOB, *variant]
        command = [sys.executable, str(MAIN), *job]
        if name != SERIAL:
            rank = [sys.executable, str(HERE / "rank.py"), str(work), *job, "--mpi_run"]
            command = [*mpiexec(), "-n", name.split(maxsplit=1)[0], *rank]
    try:
        run, printed = measure(command, work)
        run = dataclasses.replace(run, size=output.stat().st_size)
    finally:
        # Giving gigabytes back takes time, too, and writing them to a disk slows the next turn.
        output.unlink(missing_ok=True)
        os.sync()
    made = re.search(r"^(?:patches +(\d+)|(\d+) patches)$", printed, re.MULTILINE)
    if name != FLOOR and patches and (not made or int(made[1] or made[2]) != patches):
        raise RuntimeError(f"{name} did not make {patches} patches:\n{printed}")
    return run


def measure(command: Sequence[str], work: Path) -> tuple[Run, str]:
    """Run a command to its end; return what it cost and what it printed.

    A child's peak memory begins at that of the process that started it: this one stays small, so
    neither numpy nor matplotlib is imported before the last run.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=work,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | OPEN_MPI | KEEP_CODE,
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        printed = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{printed}")
    ranks = [json.loads(file.read_text("utf-8")) for file in work.glob("rank_*.json")]
    if ranks:
        peaks = sorted((int(rank["peak"]) for rank in ranks), reverse=True)
        return Run(wall, sum(rank["cpu"] for rank in ranks), tuple(peaks)), printed
    return Run(wall, used.ru_utime + used.ru_stime, (used.ru_maxrss * 1024,)), printed


def count_patches(source: Path, folder: Path) -> int:
    """Return how many patches the job makes of an input folder, by running it once."""
    output = folder / "output.h5"
    job = ["--input-folder", str(source), "--output-fname", str(output), *JOB]
    with tempfile.TemporaryDirectory() as work:
        try:
            _, printed = measure([sys.executable, str(MAIN), *job], Path(work))
        finally:
            with contextlib.suppress(OSError):
                output.unlink()
    made = re.search(r"^patches +(\d+)$", printed, re.MULTILINE)
    if not made:
        raise RuntimeError(f"the tool did not say how many patches it made:\n{printed}")
    return int(made[1])
