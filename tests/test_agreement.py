"""One agreement of all ranks before any work: an invalid call on any rank ends all of them."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Tree
from tests.faults import argv, left, no_process_left, one_error
from tests.running import REPO, Ended, called, mpiexec, ranks, run, serial


def different(cwd: Path, *calls: Sequence[str | Path]) -> Ended:
    """Run `main.py` with other options on each rank, rank N in the folder wN."""
    words: list[str | Path] = [mpiexec()]
    for rank, options in enumerate(calls):
        folder = cwd / f"w{rank}"
        folder.mkdir(exist_ok=True)
        words += [":"] if rank else []
        words += ["-n", "1", "-wdir", folder, sys.executable, REPO / "main.py", *options]
    return run(words, cwd)


@pytest.fixture
def job(tmp_path: Path, tree: Tree) -> list[str]:
    """Return the options of a small job of several ranks."""
    return [*argv(tree.root, tmp_path / "out" / "made.h5"), "--mpi_run"]


def rejected(ended: Ended, folder: Path, *words: str) -> str:
    """Check that all ranks ended with status 2 and one message, and that nothing was made."""
    message = one_error(ended, *words, status=2)
    assert ended.out == ""
    assert left(folder / "out") == set()
    no_process_left(folder / "out")
    return message


# --- ranks that differ -----------------------------------------------------------------------


@pytest.mark.parametrize("there", [0, 1])
def test_a_config_file_that_one_rank_does_not_find_ends_all(tmp_path, job, there):
    (tmp_path / f"w{there}").mkdir()
    (tmp_path / f"w{there}" / "c.json").write_text('{"seed": 3}')
    ended = different(tmp_path, *[[*job, "--config", "c.json"]] * 2)
    rejected(ended, tmp_path, f"error: rank {1 - there}: --config 'c.json': No such file")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_invalid_option_on_one_rank_ends_all(tmp_path, job, rank):
    calls = [job, job]
    calls[rank] = [*job, "--edge", "round"]
    rejected(different(tmp_path, *calls), tmp_path, f"error: rank {rank}: ", "--edge", "round")


@pytest.mark.parametrize("rank", [0, 1])
def test_mpi_run_missing_on_one_rank_ends_all(tmp_path, job, rank):
    calls = [job, job]
    calls[rank] = job[:-1]
    rejected(different(tmp_path, *calls), tmp_path, f"error: rank {rank}: ", "add --mpi_run")


def test_all_ranks_use_the_configuration_of_rank_0(tmp_path, tree, job):
    ended = different(tmp_path, [*job, "--seed", "3"], [*job, "--seed", "4", "--rot_augment"])
    assert (ended.status, ended.errors) == (0, [])
    serially = called(tmp_path, *argv(tree.root, tmp_path / "serial.h5", "--seed", "3"))
    assert serially.status == 0
    made = (tmp_path / "out" / "made.h5").read_bytes()
    assert made == (tmp_path / "serial.h5").read_bytes()


# --- ranks that do not -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--edge", "round"], "round"), (["--config", "gone.json"], "gone.json")],
    ids=["option", "config"],
)
def test_the_same_invalid_call_on_all_ranks_is_one_message_without_a_rank(
    tmp_path, job, options, word
):
    message = rejected(ranks(3, tmp_path, *job, *options), tmp_path, word)
    assert "rank" not in message


@pytest.mark.parametrize("mpi_run", [[], ["--mpi_run"]], ids=["without", "with --mpi_run"])
@pytest.mark.parametrize(("option", "begin"), [("--help", "usage: "), ("--version", "main.py ")])
def test_help_and_version_are_printed_once(tmp_path, option, begin, mpi_run):
    ended = ranks(3, tmp_path, *mpi_run, option)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(begin)
    assert ended.out == called(tmp_path, option).out


def test_files_are_verified_once(tmp_path, tree):
    assert called(tmp_path, *argv(tree.root, tmp_path / "made.h5")).status == 0
    ended = ranks(3, tmp_path, "--verify", tmp_path / "made.h5")
    assert (ended.status, ended.errors) == (0, [])
    assert len(ended.out.splitlines()) == 1
    (tmp_path / "made.h5").write_bytes(b"no h5 file")
    one_error(ranks(3, tmp_path, "--verify", tmp_path / "made.h5"), "made.h5", status=1)


# --- launchers that MPI knows nothing of -----------------------------------------------------

NO_LAUNCHER = [
    {"PMI_RANK": "1", "PMI_SIZE": "1"},
    {"PMI_RANK": "2", "PMI_SIZE": "2"},
    {"PMI_RANK": "0", "PMI_SIZE": "0"},
    {"PMI_RANK": "²", "PMI_SIZE": "²"},
    {"PMI_RANK": "0", "PMI_SIZE": "9" * 5000},
    {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "-4"},
]


@pytest.mark.parametrize("variables", NO_LAUNCHER, ids=json.dumps)
def test_variables_that_no_launcher_sets_change_nothing(tmp_path, tree, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    one_error(called(tmp_path, "--input-folder", "in", "--edge", "round"), "round", status=2)
    ended = called(tmp_path, *argv(tree.root, tmp_path / "made.h5", "--random_N", "1"))
    assert (ended.status, ended.errors) == (0, [])
    assert (tmp_path / "made.h5").exists()


OTHERS = [
    ("mpiexec", {"PMI_RANK": "{}", "PMI_SIZE": "4"}),
    ("mpiexec", {"OMPI_COMM_WORLD_RANK": "{}", "OMPI_COMM_WORLD_SIZE": "4"}),
    ("srun", {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}),
]


@pytest.fixture(scope="module")
def unconnected(
    tree: Tree, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[tuple[int, bool, int], Ended]]:
    """Run two ranks of each of `OTHERS`, all at once, as each waits for a second.

    Return their folder, and how each one ended by launcher, `--mpi_run` and rank.
    """
    folder = tmp_path_factory.mktemp("unconnected")

    def ended(launcher: int, mpi_run: bool, rank: int) -> Ended:
        options = [*argv(tree.root, folder / "out" / "made.h5"), *["--mpi_run"] * mpi_run]
        variables = {key: value.format(rank) for key, value in OTHERS[launcher][1].items()}
        return serial(folder, *options, extra=variables)

    cases = list(itertools.product(range(len(OTHERS)), (False, True), (0, 3)))
    with ThreadPoolExecutor(len(cases)) as pool:
        return folder, dict(zip(cases, pool.map(ended, *zip(*cases, strict=True)), strict=True))


@pytest.mark.parametrize("mpi_run", [False, True], ids=["without", "with --mpi_run"])
@pytest.mark.parametrize("launcher", range(len(OTHERS)), ids=["MPICH", "Open MPI", "SLURM"])
def test_processes_that_mpi_does_not_connect_fail_and_the_first_says_why(
    unconnected, launcher, mpi_run
):
    folder, runs = unconnected
    name, _ = OTHERS[launcher]
    for rank in (0, 3):
        ended = runs[launcher, mpi_run, rank]
        assert (ended.status, ended.out) == (2, "")
        if rank:
            assert ended.err == ""
            continue
        advice = "srun --mpi=pm" if name == "srun" else "mpiexec of the MPI that mpi4py uses"
        one_error(ended, f"{name} started 4 processes, but MPI finds 1", advice)
        assert ("mpiexec" in ended.err) == (name == "mpiexec")
        assert len(ended.err.splitlines()) == 1  # no warning of mpi4py beside it
    assert left(folder / "out") == set()


def test_a_plugin_of_slurm_is_suggested_that_fits_the_mpi(tmp_path, job):
    variables = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    open_mpi = "Open MPI" in run([mpiexec(), "--version"], tmp_path).out
    plugin = "pmix" if open_mpi else "pmi2"
    one_error(serial(tmp_path, *job, extra=variables), f"--mpi={plugin} ", "srun --mpi=list")


def test_a_batch_script_without_srun_is_explained(tmp_path, job):
    ended = serial(tmp_path, *job, extra={"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})
    rejected(ended, tmp_path, "SLURM reserved 4 tasks", "put srun in front (srun --mpi=pm")


@pytest.mark.parametrize("rank", [0, 1])
def test_without_an_mpi_library_every_process_fails_and_the_first_says_why(tmp_path, job, rank):
    variables = {"PMI_RANK": str(rank), "PMI_SIZE": "2"}
    variables |= {"MPI4PY_MPIABI": "mpich", "MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")}
    ended = serial(tmp_path, *job, extra=variables)
    assert (ended.status, ended.out) == (1, "")
    if rank == 0:
        one_error(ended, "cannot load MPI")
    else:
        assert ended.err == ""
