"""The scripts of the set-up: their syntax, and gen_patches.sh as users run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from tests.running import REPO, Ended, run
from tests.scans import write_tree

SCRIPTS = ["gen_patches.sh", "gen_patches.slurm", "setup_env.sh", "tests/run.sh", ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses(script):
    checked = subprocess.run(
        ["bash", "-n", REPO / script], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_shellcheck_finds_nothing():
    tool = Path(sys.executable).with_name("shellcheck")
    found = str(tool) if tool.exists() else shutil.which("shellcheck")
    assert found, "no shellcheck: install requirements-dev.txt"
    # All at once: each sources another.
    checked = subprocess.run(
        [found, *SCRIPTS], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("script", ["gen_patches.sh", "tests/run.sh", ".ci/run"])
def test_a_script_is_executable(script):
    assert os.access(REPO / script, os.X_OK)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tool with small scans, in a folder with blanks in its name."""
    folder = tmp_path_factory.mktemp("a copy") / "of the tool"
    folder.mkdir()
    for path in [*REPO.glob("*.py"), *REPO.glob("*.sh"), *REPO.glob("requirements*.txt")]:
        shutil.copy2(path, folder)
    for package in ("ctpatches", "pipeline"):
        shutil.copytree(REPO / package, folder / package)
    write_tree(folder / "raw_data", {"P1": 2, "P2": 1}, shape=(100, 120))
    return folder


def gen_patches(copy: Path, *arguments: str, ranks: int = 2) -> Ended:
    """Run gen_patches.sh from another folder, with this Python."""
    return run(
        [copy / "gen_patches.sh", *arguments],
        copy.parent,
        {"PYTHON": sys.executable, "RANKS": str(ranks)},
    )


def shape_of(path: Path) -> tuple[int, ...]:
    with h5py.File(path) as file:
        shape: tuple[int, ...] = file["input"].shape
    return shape


def test_gen_patches_makes_the_sample_file_and_makes_it_again(copy):
    output = copy / "results" / "training_patches.h5"
    found = []
    for ranks, options in ((2, ()), (1, ("--sheets", "0"))):
        ended = gen_patches(copy, *options, ranks=ranks)
        assert ended.status == 0, ended.err
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert shape_of(output)[1:] == (1, 55, 55)
    assert (copy / "sanity_check/training_patches/report.html").is_file()


def test_gen_patches_passes_arguments_on(copy):
    how = ["--patch-size", "p24", "--tensor-format", "tf", "--output-fname", "my file.h5"]
    ended = gen_patches(copy, *how, "--no-report")
    assert ended.status == 0, ended.err
    assert shape_of(copy / "my file.h5")[1:] == (24, 24, 1)
    assert not (copy / "sanity_check" / "my file").exists()


def test_gen_patches_replaces_no_file_that_the_user_names(copy):
    (copy / "mine.h5").write_bytes(b"weeks of work")
    ended = gen_patches(copy, "--output-fname", "mine.h5", ranks=1)
    assert ended.status == 2
    assert "exists" in ended.err
    assert (copy / "mine.h5").read_bytes() == b"weeks of work"


def test_gen_patches_helps_without_mpi(copy):
    ended = gen_patches(copy, "--help")
    assert ended.status == 0
    assert "--input-folder" in ended.out


def test_gen_patches_names_what_a_python_lacks(copy, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    ended = run([copy / "gen_patches.sh"], copy, {"PYTHON": str(tmp_path / "bare/bin/python")})
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert "mpi4py" in line
