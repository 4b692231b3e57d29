"""Memory: bounded by the size of the images, and what `--dry-run` says is not exceeded."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

from tests.faults import command, run
from tests.scans import write_patient

_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
#: Those that need most memory.
OPTIONS = (
    *("--patch-size", "p96", "--overlap", "0", "--ds_augment", "--blurr_n_noise"),
    *("--air_threshold", "--edge", "pad", "--normalization-type", "dataset_std"),
    *("--sheets", "1"),
)
#: Sides of images, and how many pairs: enough to fill every thread, or a few.
SIDES = {256: 2, 512: 5, 1024: 5, 2048: 2}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an input folder for each size of images."""
    root = tmp_path_factory.mktemp("sizes")
    for side, pairs in SIDES.items():
        write_patient(root / str(side), "A", pairs, shape=(side, side))
    return root


def arguments(folder: Path, cwd: Path, *more: str) -> list[str]:
    where = ["--input-folder", str(folder), "--output-fname", str(cwd / "x.h5")]
    return [*where, *OPTIONS, *more]


@functools.cache
def predicted_mb(folder: Path, ranks: int = 0) -> int:
    """Return what `--dry-run` says of the memory of a rank."""
    cwd = folder.parent
    ended = run(command(ranks, arguments(folder, cwd, "--dry-run")), cwd)
    assert ended.status == 0, ended.err
    (found,) = re.findall(r"^memory +up to (\d+) MB per rank$", ended.out, re.MULTILINE)
    return int(found)


def peak_mb(folder: Path, cwd: Path, ranks: int) -> float:
    """Run, and return the peak of the process that took most memory."""
    ended = run([sys.executable, "-c", _MEASURE, *command(ranks, arguments(folder, cwd))], cwd)
    assert ended.status == 0, ended.err
    return int(ended.out.rpartition("peak ")[2]) * 1024 / 1e6


@pytest.mark.parametrize(("side", "ranks"), [(512, 0), (1024, 0), (1024, 2)])
def test_a_run_takes_no_more_memory_than_the_dry_run_says(scans, tmp_path, side, ranks):
    folder = scans / str(side)
    assert peak_mb(folder, tmp_path, ranks) <= predicted_mb(folder, ranks)


def test_the_memory_that_the_dry_run_says_grows_with_the_images(scans):
    found = [predicted_mb(scans / str(side)) for side in SIDES]
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]
