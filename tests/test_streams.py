"""Output streams that are missing, full, or closed by their reader: real ones of real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Tree
from tests.faults import argv, kept, one_error
from tests.running import REPO, Ended, mpiexec, run

NO_SPACE = "main.py: error: cannot write to standard output: No space left on device\n"


def redirected(redirections: str, cwd: Path, *options: str | Path, ranks: int = 0) -> Ended:
    """Run `main.py` with the redirections of a shell; `| READER` makes it a pipe."""
    launcher = [mpiexec(), "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, REPO / "main.py", *options]
    script = f'set -o pipefail; "$@" {redirections}'
    return run(["bash", "-c", script, "bash", *command], cwd)


@pytest.fixture
def job(tmp_path: Path, tree: Tree) -> list[str]:
    """Return the options of a small job."""
    return argv(tree.root, tmp_path / "out" / "made.h5")


#: Redirections, status and stderr of a run.
STREAMS = {
    "stdout closed": (">&-", 0, ""),
    "stderr closed": ("2>&- | cat", 0, ""),
    "all closed": ("<&- >&- 2>&-", 0, ""),
    "reader of stdout gone": ("| true", 0, ""),
    "reader of both gone": ("2>&1 | true", 0, ""),
    "stdout full": (">/dev/full", 1, NO_SPACE),
    "stderr full": ("2>/dev/full", 0, ""),
    "both full": (">/dev/full 2>&1", 1, ""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_completes_its_data_set_whatever_its_streams_are(tmp_path, job, whole, name):
    redirections, status, err = STREAMS[name]
    ended = redirected(redirections, tmp_path, *job)
    assert (ended.status, ended.err) == (status, err)
    assert (tmp_path / "out" / "made.h5").read_bytes() == whole
    assert kept(tmp_path / "out") == {"made.h5"}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("what", ["help", "version", "dry run", "verify"])
def test_other_calls_end_as_a_run_does(tmp_path, job, whole, what, name):
    redirections, status, err = STREAMS[name]
    options: dict[str, list[str | Path]] = {
        "help": ["--help"],
        "version": ["--version"],
        "dry run": [*job, "--dry-run"],
        "verify": ["--verify", tmp_path / "out" / "made.h5"],
    }
    if what == "verify":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "made.h5").write_bytes(whole)
    ended = redirected(redirections, tmp_path, *options[what])
    assert (ended.status, ended.err) == (status, err)


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", "2> >(true)", ">&- 2>&-"])
def test_an_error_keeps_its_status_where_it_cannot_be_printed(tmp_path, redirections):
    ended = redirected(redirections, tmp_path, "--input-folder", "gone")
    assert (ended.status, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    (tmp_path / "x.h5").write_bytes(b"no h5 file")
    ended = redirected(redirections, tmp_path, "--verify", "x.h5")
    assert (ended.status, ended.out) == (1, "")


def test_a_failed_run_keeps_its_message_where_stdout_is_full(tmp_path, job):
    ended = redirected(">/dev/full", tmp_path, *job, "--dry-run", "--split", "1", "0", "0")
    assert (ended.status, ended.err) == (1, NO_SPACE)
    ended = redirected(">/dev/full", tmp_path, *job, "--patch-size", "p96")
    one_error(ended, "no patch", status=1)


@pytest.mark.parametrize("redirections", ["| true", "<&-"])
def test_ranks_complete_their_data_set_whatever_their_streams_are(
    tmp_path, job, whole, redirections
):
    ended = redirected(redirections, tmp_path, *job, "--mpi_run", ranks=2)
    assert "main.py" not in ended.err
    assert (tmp_path / "out" / "made.h5").read_bytes() == whole
    assert kept(tmp_path / "out") == {"made.h5"}


def test_the_output_never_gets_the_number_of_a_closed_stream(tmp_path, tree, whole):
    """Else what libraries write to standard error would lie among the patches."""
    script = tmp_path / "noisy.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(REPO)!r})\n"
        "import main\n"
        "from ctpatches import streams\n"
        "from ctpatches.blocks import Block\n"
        "write = Block.write\n"
        "def noisy(*arguments):\n"
        "    for descriptor in (0, 1, 2):\n"
        "        os.write(descriptor, b'words of a library')\n"
        "    return write(*arguments)\n"
        "Block.write = noisy\n"
        "sys.exit(streams.run(main.main))\n"
    )
    command = [sys.executable, script, *argv(tree.root, tmp_path / "made.h5")]
    ended = run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], tmp_path)
    assert ended.status == 0
    assert (tmp_path / "made.h5").read_bytes() == whole
