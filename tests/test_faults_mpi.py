"""What users see, and what is on the disk, when a fault meets a run of several ranks.

Each test is a row of the table of faults; 'intact' means that the final name holds what it held
before, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults import (
    EARLIER,
    SOON,
    Fault,
    Run,
    argv,
    command,
    finished_blocks,
    kept,
    left,
    no_process_left,
    one_error,
    run,
    wait_for,
)
from tests.running import called, mpiexec
from tests.scans import write_slice, write_tree

SMALL = {"A": 1, "B": 1}


def since(mark: Path) -> float:
    """Return the seconds since the fault."""
    return time.time() - mark.stat().st_mtime


# --- each rank in turn raises ----------------------------------------------------------------

RAISES = [
    *((step, rank) for step in ("reading", "patching") for rank in (0, 1)),
    *(("writing", rank) for rank in (0, 1, 2)),
    ("handing over", 1),
    ("taking", 0),
    *(("planning", rank) for rank in (0, 1)),
]


@pytest.mark.parametrize(("step", "rank"), RAISES, ids=str)
def test_a_rank_that_raises_ends_all_with_one_message(tmp_path, tree, output, step, rank):
    mark = tmp_path / "mark"
    options = ["--overwrite"]
    if step in ("handing over", "taking"):
        options += ["--hand_over", "messages"]
    fault = Fault("raise", step, rank, mark=str(mark))
    n = 3 if step == "writing" else 2  # of three, one is neither rank 0 nor the one that fails
    ended = run(command(n, argv(tree.root, output, *options), fault), tmp_path)
    assert since(mark) < SOON
    message = one_error(ended, f"rank {rank}: ", "made to fail", status=1)
    if step not in ("planning", "taking"):
        assert any(made.input_file in message for made in tree.pairs)
    assert output.read_bytes() == EARLIER
    assert (f"{output.name}.partial" in left(output.parent)) == ("--resume continues" in message)
    no_process_left(output)


# --- SIGKILL ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_while_planning_ends_all(tmp_path, tree, output, rank):
    mark = tmp_path / "mark"
    fault = Fault("kill", "planning", rank, mark=str(mark))
    ended = run(command(2, argv(tree.root, output, "--overwrite"), fault), tmp_path)
    assert since(mark) < SOON
    assert ended.status != 0
    assert "Traceback" not in ended.err
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {output.name}
    no_process_left(output)


@pytest.mark.parametrize(("rank", "call", "then"), [(0, 2, 3), (1, 1, 0)], ids=["rank 0", "rank 1"])
def test_what_was_done_when_a_rank_is_killed_while_filling_is_gone_on_with(
    tmp_path, tree, output, whole, rank, call, then
):
    mark, checkpoint = tmp_path / "mark", Path(f"{output}.checkpoint")
    fault = Fault("kill", "patching", rank, call, str(mark), str(checkpoint))
    arguments = argv(tree.root, output, "--overwrite")
    ended = run(command(2, arguments, fault), tmp_path)
    assert since(mark) < SOON
    assert ended.status != 0
    assert "Traceback" not in ended.err
    no_process_left(output)
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {f"{output.name}{end}" for end in ("", ".partial", ".checkpoint")}
    assert finished_blocks(checkpoint)
    ended = run(command(then, [*arguments, "--resume"]), tmp_path)
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == whole
    assert kept(output.parent) == {output.name}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_to_the_launcher_ends_all(tmp_path, tree, output, number):
    mark = tmp_path / "mark"
    fault = Fault("hold", "patching", 1, mark=str(mark))
    with Run(command(2, argv(tree.root, output, "--overwrite"), fault), tmp_path) as running:
        wait_for(mark.exists, "rank 1 to hold")
        sent = time.monotonic()
        running.process.send_signal(number)
        ended = running.ended()
        assert time.monotonic() - sent < 5
    assert ended.status != 0
    # Where stderr is no terminal, mpiexec of Open MPI may not forward it any more.
    assert len(ended.errors) == 1 or (mpi_is_open() and not ended.errors)
    assert "Traceback" not in ended.err
    assert output.read_bytes() == EARLIER
    no_process_left(output)


def test_ranks_leave_no_shared_memory_when_they_are_killed(tmp_path, tree, output):
    mark = tmp_path / "mark"
    fault = Fault("hold", "patching", 1, mark=str(mark))
    with Run(command(2, argv(tree.root, output, "--overwrite"), fault), tmp_path) as running:
        pid = int(wait_for(lambda: mark.exists() and mark.read_text(), "rank 1 to hold"))
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        os.kill(pid, signal.SIGKILL)
        assert running.ended().status != 0
    segments = {line.split(maxsplit=5)[5] for line in maps if "/dev/shm/mpich_shm" in line}
    assert segments or mpi_is_open()
    assert all(name.endswith("(deleted)") for name in segments), segments


# --- a rank leaves early without an error ----------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["exit", "leave"])
def test_a_rank_that_leaves_early_ends_the_others_with_a_message(tmp_path, tree, output, how, rank):
    mark = tmp_path / "mark"
    fault = Fault(how, "patching", rank, mark=str(mark))
    ended = run(command(2, argv(tree.root, output, "--overwrite"), fault), tmp_path)
    assert since(mark) < SOON
    if how == "exit":
        # Open MPI sends SIGTERM to rank 0, which adds what is complete.
        causes = [error for error in ended.errors if "interrupted" not in error]
        assert (len(causes), ended.status) == (1, 1)
        assert f"rank {rank}: SystemExit" in causes[0]
    elif mpi_is_open():  # not so MPICH's mpiexec, which ends the others without a word
        assert ended.status != 0
        assert ended.err.strip()
    assert "Traceback" not in ended.err
    assert "patches" not in ended.out
    assert output.read_bytes() == EARLIER
    no_process_left(output)


def mpi_is_open() -> bool:
    """Tell whether the mpiexec of the tests is Open MPI's."""
    return "Open MPI" in run([mpiexec(), "--version"], Path.cwd()).out


# --- how many ranks --------------------------------------------------------------------------


def test_more_ranks_than_pairs_work(tmp_path):
    write_tree(tmp_path / "scans", SMALL)
    output = tmp_path / "made.h5"
    assert called(tmp_path, *argv(tmp_path / "scans", tmp_path / "serial.h5")).status == 0
    ended = run(command(4, argv(tmp_path / "scans", output)), tmp_path)
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == (tmp_path / "serial.h5").read_bytes()


# --- large -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], bytes]:
    """Return a folder with a job of blocks of 2 x 70 MB, its options, and the serial digest."""
    folder = tmp_path_factory.mktemp("large")
    write_tree(folder / "scans", SMALL, shape=(360, 360))
    options = ["--patch-size", "p12", "--overlap", "11"]
    output = folder / "serial.h5"
    ended = run(command(0, [*argv(folder / "scans", output), *options]), folder)
    assert ended.status == 0, ended.err
    return folder, options, digest(output)


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, and remove it."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    path.unlink()
    return found


@pytest.mark.parametrize("how", ["messages", "auto"])
def test_blocks_larger_than_64_mb_make_the_bytes_of_the_serial_run(large, how):
    folder, options, expected = large
    output = folder / f"{how}.h5"
    arguments = [*argv(folder / "scans", output), *options, "--hand_over", how]
    ended = run(command(2, arguments), folder)
    assert (ended.status, ended.errors) == (0, [])
    assert digest(output) == expected


@pytest.mark.skipif("PATCHES_BIG_TESTS" not in os.environ, reason="PATCHES_BIG_TESTS is not set")
def test_more_than_2_to_the_31_elements_make_the_bytes_of_the_serial_run(tmp_path):
    """Needs 18 GB of disk and some minutes."""
    from tests.scans import phantom

    for patient in range(60):
        for side in ("low", "full"):
            folder = tmp_path / "scans" / f"{patient:02}" / side
            if patient == 0:
                write_slice(folder / "1.dcm", phantom((512, 512), 1)[side == "full"])
            else:
                folder.mkdir(parents=True)
                (folder / "1.dcm").symlink_to(tmp_path / "scans" / "00" / side / "1.dcm")
    arguments = argv(tmp_path / "scans", tmp_path / "made.h5", "--overlap", "11")
    arguments[arguments.index("p24")] = "p12"
    digests = []
    for n, how in ((0, "auto"), (3, "messages"), (3, "auto")):
        ended = run(command(n, [*arguments, "--hand_over", how]), tmp_path, seconds=3600)
        assert (ended.status, ended.errors) == (0, [])
        assert (tmp_path / "made.h5").stat().st_size > 2 * 60 * 250_000 * 4 * 144
        digests.append(digest(tmp_path / "made.h5"))
    assert digests[1:] == digests[:1] * 2
