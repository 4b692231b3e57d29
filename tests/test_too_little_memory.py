"""Too little memory while libraries load: a limit on the addresses of a process (`ulimit -v`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults import argv, one_error
from tests.running import REPO, mpiexec, run

#: Runs `main.py` with some MB more than it has once a module is loaded.
SCRIPT = f"""import importlib, os, resource, sys
sys.path.insert(0, {str(REPO)!r})
module, megabytes = sys.argv[1], int(sys.argv[2])
import main
from ctpatches import streams
importlib.import_module(module)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20),) * 2)
sys.exit(streams.run(lambda: main.main(sys.argv[3:])))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


@pytest.mark.parametrize(
    ("loaded", "megabytes"),
    [("main", 8), ("main", 20), ("main", 150), ("main", 250), ("numpy", 100)],
)
def test_a_library_that_does_not_fit_into_memory_is_one_line(tmp_path, tree, loaded, megabytes):
    (tmp_path / "limited.py").write_text(SCRIPT)
    options = [loaded, str(megabytes), *argv(tree.root, tmp_path / "made.h5")]
    ended = run([sys.executable, "limited.py", *options], tmp_path)
    message = one_error(ended, "cannot load a library: ", "memory (ulimit -v)", status=1)
    assert len(message.splitlines()) == 1


def test_a_library_that_no_rank_can_load_is_one_line(tmp_path, tree):
    (tmp_path / "limited.py").write_text(SCRIPT)
    options = ["mpi4py.MPI", "20", *argv(tree.root, tmp_path / "made.h5", "--mpi_run")]
    ended = run([mpiexec(), "-n", "2", sys.executable, "limited.py", *options], tmp_path)
    one_error(ended, "cannot load a library: ", "memory (ulimit -v)", status=1)
