"""The batch script in a real SLURM: jobs that are killed, cancelled, requeued, submitted again."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Tree
from tests.faults import Fault, argv, finished_blocks, kept, no_process_left, wait_for
from tests.running import REPO, mpiexec, run
from tests.slurm import Slurm, running_slurm

RANKS = "--ntasks=2"
COUNT = re.compile(r"(\d+) of 10 pairs were already complete")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm() as slurm:
        yield slurm


@pytest.fixture(scope="module")
def mpi(slurm: Slurm) -> str:
    """Return how srun connects ranks of the MPI that the tests run with."""
    if "Open MPI" not in run([mpiexec(), "--version"], Path.cwd()).out:
        return "pmi2"
    try:
        slurm.call("srun", "--mpi=pmix", "true")
    except subprocess.CalledProcessError:
        pytest.skip("SLURM's plugin for PMIx finds no PMIx library (Debian: libpmix-dev)")
    return "pmix"


def write_script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tool with its environment, in a folder with blanks in its name."""
    folder = tmp_path_factory.mktemp("slurm") / "a copy of the tool"
    folder.mkdir()
    for path in [*REPO.glob("*.py"), REPO / "gen_patches.slurm"]:
        shutil.copy2(path, folder)
    write_script(folder / ".venv-cluster/bin/python", f"exec '{sys.executable}' \"$@\"")
    return folder


@dataclass
class Job:
    """One command line of sbatch, that is submitted again and again.

    The log has one name, so that it shows all its jobs.
    """

    slurm: Slurm
    tool: Path
    mpi: str
    folder: Path
    arguments: list[str]

    @property
    def output(self) -> Path:
        return self.folder / "out" / "mine.h5"

    @property
    def checkpoint(self) -> Path:
        return Path(f"{self.output}.checkpoint")

    @property
    def log(self) -> str:
        path = self.folder / "job.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^main\.py: error:.*", self.log, re.MULTILINE)

    def submit(self, cwd: Path | None = None, fault: Fault | None = None, **extra: str) -> str:
        """Submit it, with a fault in it; return its number."""
        if fault:
            extra["PYTHON"] = str(self.break_main(fault))
        options = (RANKS, f"--output={self.folder}/job.log", self.tool / "gen_patches.slurm")
        variables = {"SLURM_MPI_TYPE": self.mpi, **extra}
        return self.slurm.submit(cwd or self.tool, *options, *self.arguments, extra=variables)

    def run(self, cwd: Path | None = None, fault: Fault | None = None, **extra: str) -> str:
        """Submit it; return the state in which it ends."""
        return self.slurm.end_state(self.submit(cwd, fault, **extra))

    def hold(self) -> str:
        """Submit it; return its number when rank 1 waits in the middle and a block is complete."""
        mark = self.folder / "mark"
        number = self.submit(fault=Fault("hold", "patching", 1, call=2, mark=str(mark)))
        wait_for(mark.exists, "rank 1 to wait")
        wait_for(lambda: finished_blocks(self.checkpoint), "a complete block")
        return number

    def break_main(self, fault: Fault) -> Path:
        """Write a Python that runs main.py with a fault in it."""
        faulty = f"'{sys.executable}' '{REPO}/tests/faults.py'"
        words = json.dumps(dataclasses.asdict(fault))
        return write_script(self.folder / "python", "shift", f"exec {faulty} '{words}' \"$@\"")


@pytest.fixture
def job(slurm: Slurm, tool: Path, mpi: str, tree: Tree, tmp_path: Path) -> Job:
    return Job(slurm, tool, mpi, tmp_path, argv(tree.root, tmp_path / "out" / "mine.h5"))


def test_two_ranks_give_the_bytes_of_the_serial_run_and_the_same_job_again_is_complete(job, whole):
    assert job.run() == "COMPLETED", job.log
    assert job.output.read_bytes() == whole
    before = job.output.stat()
    assert job.run() == "COMPLETED", job.log
    assert "already complete" in job.log
    assert job.output.read_bytes() == whole
    assert job.output.stat().st_mtime_ns == before.st_mtime_ns
    assert job.errors == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_same_job_again_continues(job, whole, rank):
    mark = job.folder / "mark"
    fault = Fault("kill", "patching", rank, mark=str(mark))
    assert job.run(fault=fault) == "FAILED", job.log
    assert mark.exists()
    assert len(job.errors) <= 1
    assert "Traceback" not in job.log
    no_process_left(job.output)
    assert job.run() == "COMPLETED", job.log
    assert job.output.read_bytes() == whole
    assert kept(job.output.parent) == {"mine.h5"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_job_with_one_message(job, rank):
    fault = Fault("raise", "patching", rank, mark=str(job.folder / "mark"))
    assert job.run(fault=fault) == "FAILED", job.log
    (line,) = job.errors
    assert f"rank {rank}: " in line
    assert "made to fail" in line
    no_process_left(job.output)


def test_an_invalid_call_ends_the_job_with_one_message(job):
    job.arguments.append("--patch-size=p1")
    assert job.run() == "FAILED", job.log
    (line,) = job.errors
    assert "p1" in line


def continued(job: Job, whole: bytes) -> bool:
    """Tell whether the file is right, and some of its blocks, not all, were made by a first run."""
    counts = [int(count) for count in COUNT.findall(job.log)]
    assert len(counts) == 1, job.log
    (line,) = job.errors
    assert f"interrupted ({counts[0]} of 10 pairs are complete in " in line
    assert kept(job.output.parent) == {job.output.name}
    return 1 <= counts[0] < 10 and job.output.read_bytes() == whole


def test_a_cancelled_job_continues_when_it_is_submitted_again(job, whole):
    assert job.slurm.cancel(job.hold()) == "CANCELLED", job.log
    no_process_left(job.output)
    first = job.log
    assert "CANCELLED" in first
    assert job.run() == "COMPLETED", job.log
    assert job.log.startswith(first)
    assert continued(job, whole)


def test_a_job_that_slurm_starts_again_continues_and_keeps_its_log(job, whole):
    number = job.hold()
    job.break_main(Fault("raise", "patching", rank=9))  # the second start has no such rank
    job.slurm.requeue(number)
    assert job.slurm.end_state(number) == "COMPLETED", job.log
    assert "DUE TO JOB REQUEUE" in job.log
    assert continued(job, whole)


def test_a_job_is_submitted_in_any_folder(job, whole, tree):
    scans = job.folder / "here" / "my scans"
    scans.parent.mkdir()
    scans.symlink_to(tree.root)
    job.arguments = argv(Path("my scans"), "../out/mine.h5")
    assert job.run(cwd=scans.parent, CTPATCHES=str(job.tool)) == "COMPLETED", job.log
    assert job.output.read_bytes() == whole


def test_a_job_that_does_not_find_the_tool_says_so(job):
    assert job.run(cwd=job.folder) == "FAILED"
    (line,) = job.log.splitlines()
    assert line.startswith(f"gen_patches.slurm: no main.py in {job.folder}; ")
    assert "CTPATCHES=" in line


def test_a_job_without_an_environment_says_so(job):
    assert job.run(PYTHON=f"{job.folder}/missing") == "FAILED"
    (line,) = job.log.splitlines()
    assert line.startswith(f"gen_patches.slurm: no Python at {job.folder}/missing; ")


def test_ranks_that_srun_does_not_connect_fail_with_one_message(job, mpi):
    assert job.run(SLURM_MPI_TYPE="none") == "FAILED"
    (line,) = job.errors
    assert "srun started 2 processes" in line
    assert f"--mpi={mpi}" in line
    assert not job.output.exists()
