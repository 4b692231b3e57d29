"""The Python API: `from pipeline import Config, make_patches`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctpatches.structure import open_hdf5
from pipeline import Config, Summary, make_patches
from tests.conftest import Tree
from tests.faults import argv
from tests.running import REPO, called, contents, environment, mpiexec, run
from tests.scans import write_patient
from utils import CallError, RunError

#: The job of README.md, without MPI.
SAMPLE = ("--rot_augment", "--ds_augment", "--air_threshold")


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(tree: Tree, output: str, **options: Any) -> Config:
    return Config(str(tree.root), output, patch_size=24, **options)


# --- what is created -------------------------------------------------------------------------


def test_the_sample_is_the_same_as_from_the_command_line_and_nothing_is_printed(cwd, capfd):
    sample = str(REPO / "raw_data")
    words = ["--input-folder", sample, "--output-fname", "shell.h5", *SAMPLE]
    words += ["--sheets", "0"]
    assert called(cwd, *words).status == 0
    capfd.readouterr()
    config = Config(
        sample, "api.h5", rot_augment=True, ds_augment=True, air_threshold=True, sheets=0
    )
    summary = make_patches(config)
    assert capfd.readouterr() == ("", "")
    assert (cwd / "api.h5").read_bytes() == (cwd / "shell.h5").read_bytes()
    assert contents(cwd / "sanity_check" / "api") == contents(cwd / "sanity_check" / "shell")
    with open_hdf5("api.h5") as file:
        assert summary.patches == len(file["input"])
        assert summary.pairs == len(file["pair/patient"])
        assert summary.patients == len(set(file["pair/patient"][()]))
    assert summary.windows >= summary.patches // 3
    assert (summary.files, summary.left_out, summary.warnings) == (("api.h5",), (), ())


def test_the_summary_has_files_and_what_is_left_out_and_warnings(cwd, capfd):
    write_patient(cwd / "scans", "P1", 3)
    write_patient(cwd / "scans", "P2", 2)
    next((cwd / "scans" / "P1").glob("quarter*/*")).write_bytes(b"damaged")
    options: dict[str, Any] = {"bad_files": "skip", "no_report": True, "patch_size": 24}
    summary = make_patches(Config("scans", "out/x.h5", split=(0.5, 0.5, 0), random_N=2, **options))
    assert capfd.readouterr() == ("", "")
    assert summary.files == ("out/x_train.h5", "out/x_val.h5")
    assert (summary.patients, summary.pairs) == (2, 4)
    assert summary.windows == summary.patches
    # The damaged file, and its partner.
    assert {line.split("/")[1] for line in summary.left_out} == {"quarter_3mm", "full_3mm"}
    assert summary.warnings == ()
    summary = make_patches(Config("scans", "y.h5", random_N=3, **options))
    assert len(summary.warnings) == 2
    assert all("fewer than --random_N 3" in warning for warning in summary.warnings)


def test_a_dry_run_counts_and_writes_nothing(cwd, tree, capfd):
    planned = make_patches(job(tree, "x.h5", dry_run=True))
    assert capfd.readouterr() == ("", "")
    assert contents(cwd) == set()
    made = make_patches(job(tree, "x.h5", no_report=True))
    assert planned == Summary(**{**vars(made), "files": ()})


def test_it_prints_what_the_command_line_prints_where_asked(cwd, tree, capfd):
    ended = called(cwd, *argv(tree.root, "x.h5"))
    capfd.readouterr()
    make_patches(job(tree, "x.h5", no_report=True, overwrite=True), verbose=True)
    assert capfd.readouterr().out == ended.out


def test_ranks_share_the_work_and_each_gets_the_summary(cwd, tree):
    script = (
        "import sys\n"
        "from mpi4py import MPI\n"
        "from pipeline import Config, make_patches\n"
        "config = Config(sys.argv[1], 'ranks.h5', patch_size=24, mpi_run=True, no_report=True)\n"
        "counts = MPI.COMM_WORLD.allgather(make_patches(config, MPI.COMM_WORLD).patches)\n"
        "assert counts == [counts[0]] * 2, counts\n"
    )
    ended = run([mpiexec(), "-n", "2", sys.executable, "-c", script, tree.root], cwd)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    make_patches(job(tree, "serial.h5", no_report=True))
    assert (cwd / "ranks.h5").read_bytes() == (cwd / "serial.h5").read_bytes()


# --- errors ----------------------------------------------------------------------------------


def test_errors_are_those_of_the_command_line(cwd, tree):
    (cwd / "x.h5").write_bytes(b"weeks of work")
    for error, config in (
        (CallError, job(tree, "x.h5")),
        (CallError, Config("gone", "y.h5")),
        (RunError, Config(str(tree.root), "y.h5", patch_size=512, overlap=0)),
    ):
        words = ["--input-folder", config.input_folder, "--output-fname", config.output_fname]
        words += ["--patch-size", f"p{config.patch_size}", "--overlap", str(config.overlap)]
        ended = called(cwd, *words)
        with pytest.raises(error) as raised:
            make_patches(config)
        assert ended.err == f"main.py: error: {raised.value}\n"
        assert ended.status == raised.value.status
    assert (cwd / "x.h5").read_bytes() == b"weeks of work"


def test_processes_of_a_launcher_do_not_each_do_the_whole_job(cwd, tree, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(CallError, match="started 2 processes"):
        make_patches(job(tree, "x.h5"))


def test_the_configuration_is_imported_without_numpy(cwd):
    code = "import sys, json; from pipeline import Config; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=True
    )
    assert not {"numpy", "h5py", "pydicom", "mpi4py"} & set(json.loads(found.stdout))
