"""Sharing work over ranks, and failing together: arithmetic first, then real runs of mpiexec."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import SharedFailure
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from tests.rank_scenarios import PATIENCE_S, PIECE, ROUNDS, TASKS
from tests.running import REPO, Ended, ranks_of, run
from utils import CallError

# --- what a launcher says --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, (1, 3)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, (0, 1)),
        ({"PMI_SIZE": "many"}, (0, 1)),
        ({"PMI_RANK": "²", "PMI_SIZE": "4"}, (0, 1)),
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, (0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "1"}, (0, 1)),
        ({"PMI_RANK": "0", "PMI_SIZE": "9" * 5000}, (0, 1)),
    ],
    ids=[
        *("none", "MPICH", "Open MPI", "srun", "a batch script", "nonsense"),
        *("a superscript", "too high a rank", "rank 1 of 1", "5000 digits"),
    ],
)
def test_launcher_variables_are_understood(environ, expected):
    assert launch.launcher_ranks(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [{}, {"PMI_RANK": "0", "PMI_SIZE": "1"}, {"SLURM_NTASKS": "8"}],
    ids=["no launcher", "mpiexec -n 1", "a batch script"],
)
def test_without_mpi_run_one_process_is_a_run_of_one(environ):
    ranks = launch.connect(False, environ)
    assert (ranks.rank, ranks.size, ranks.beside_root) == (0, 1, True)
    assert "mpi4py" not in sys.modules


# --- a ranks of one --------------------------------------------------------------------------


def test_a_serial_run_does_every_task_in_order():
    assert list(Ranks().imap_unordered(lambda task: task * 10, [3, 1, 2])) == [30, 10, 20]


def test_an_error_in_a_serial_ranks_is_printed_once_and_gives_its_status(capsys):
    def step() -> None:
        raise CallError("no such thing")

    ranks = Ranks()
    with pytest.raises(SharedFailure) as raised:
        ranks.on_root(step)
    assert ranks.fail(raised.value) == 2
    assert capsys.readouterr().err == "main.py: error: no such thing\n"


# --- real ranks ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_result_comes_to_rank_0_once(tmp_path, n):
    ended = ranks_of(n, "rank_scenarios.py", tmp_path, "results")
    assert (ended.status, ended.err) == (0, "")
    said = json.loads(ended.out)
    assert said["size"] == n
    for number in (0, 1, max(1, n - 1), TASKS):
        assert said["found"][str(number)] == [[task, task**2] for task in range(number)]
    assert said["gathered"] == [list(range(n))] * ROUNDS
    for rank, shared, on_root in said["said"]:
        assert (shared, on_root) == ("from rank 0", "on rank 0" if rank == 0 else None)


def test_a_serial_run_gives_what_ranks_give(tmp_path):
    ended = run([sys.executable, REPO / "tests" / "rank_scenarios.py", "serial"], tmp_path)
    assert json.loads(ended.out)["found"][str(TASKS)] == [[t, t**2] for t in range(TASKS)]


def test_bytes_of_any_size_reach_rank_0(tmp_path):
    ended = ranks_of(2, "rank_scenarios.py", tmp_path, "bytes")
    expected = b"".join(bytes([task + 1]) * (3 * PIECE) for task in range(2))
    assert ended.out.split() == [hashlib.sha256(expected).hexdigest()], ended.err


def failed_once(ended: Ended, message: str) -> None:
    """Check that the run failed, and that the message was printed once."""
    assert (ended.status, len(ended.errors)) == (1, 1), ended.err
    assert message in ended.errors[0]
    assert "all is done" not in ended.out


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_failure_on_any_rank_ends_all(tmp_path, at):
    ended = ranks_of(3, "rank_scenarios.py", tmp_path, "refuses", str(at))
    failed_once(ended, f"rank {at}: this slice is bad")


@pytest.mark.parametrize(("at", "where"), [(0, ""), (1, "rank 1: ")])
def test_a_step_of_all_that_fails_on_some_ends_all(tmp_path, at, where):
    ended = ranks_of(3, "rank_scenarios.py", tmp_path, "together", str(at))
    failed_once(ended, f"error: {where}this slice is bad")


@pytest.mark.parametrize("at", [0, 2])
def test_a_bug_on_a_rank_ends_all_and_says_where_it_is(tmp_path, at):
    ended = ranks_of(3, "rank_scenarios.py", tmp_path, "breaks", str(at))
    failed_once(ended, f"rank {at}: ZeroDivisionError at rank_scenarios.py:")


@pytest.mark.parametrize("scenario", ["consumer", "root"])
def test_a_failure_of_rank_0_in_between_ends_all(tmp_path, scenario):
    failed_once(ranks_of(3, "rank_scenarios.py", tmp_path, scenario), "this slice is bad")


def test_tasks_that_were_handed_out_before_a_failure_are_not_begun(tmp_path):
    ended = ranks_of(2, "rank_scenarios.py", tmp_path, "stop")
    failed_once(ended, "this slice is bad")
    assert len(ended.out.splitlines()) == 1, ended.out


@pytest.mark.parametrize("where", ["task", "consumer"])
def test_a_rank_that_hangs_does_not_hold_up_the_end_of_a_failed_run(tmp_path, where):
    begin = time.monotonic()
    ended = ranks_of(2, "rank_scenarios.py", tmp_path, f"stuck {where}")
    failed_once(ended, "this slice is bad (rank 1 is stuck)")
    assert time.monotonic() - begin < PATIENCE_S


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_rank_that_fails_on_its_own_takes_the_others_along(tmp_path, at):
    failed_once(ranks_of(3, "rank_scenarios.py", tmp_path, "alone", str(at)), "this slice is bad")


@pytest.mark.parametrize("at", [0, 1])
def test_a_rank_that_exits_amid_the_work_takes_the_others_along(tmp_path, at):
    failed_once(ranks_of(2, "rank_scenarios.py", tmp_path, "exits", str(at)), "SystemExit at")


def test_failures_of_all_ranks_at_once_are_one_message(tmp_path: Path):
    ended = ranks_of(3, "rank_scenarios.py", tmp_path, "everywhere")
    failed_once(ended, "this slice is bad")
