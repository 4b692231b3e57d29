"""Slices that another process changes while a run is using them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ctpatches.dicom.slice_file import MAX_FILE_BYTES
from pipeline.output import commit
from tests.editing import flip
from tests.faults import EARLIER, Fault, Run, argv, command, one_error, wait_for
from tests.running import called
from tests.scans import write_patient


def rewrite(path: Path) -> None:
    """Change a pixel in place."""
    flip(path, path.stat().st_size - 3)


def rewrite_and_restore_times(path: Path) -> None:
    status = path.stat()
    rewrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another slice of the same size and modification time in its place."""
    other = path.with_suffix(".new")
    shutil.copy2(path, other)
    rewrite_and_restore_times(other)
    other.replace(path)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "rewritten": (rewrite, "changed"),
    "rewritten, time restored": (rewrite_and_restore_times, "changed"),
    "replaced, same time": (replace, "changed"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 2), "changed"),
    "grown beyond the limit": (lambda path: os.truncate(path, MAX_FILE_BYTES + 1), "changed"),
    "emptied": (lambda path: os.truncate(path, 0), "changed"),
    "replaced by a pipe": (replace_by_pipe, "regular file"),
    "removed": (lambda path: path.unlink(), "No such file"),
}


BAD = ("--overwrite", "--bad-files", "skip")
COMPRESSION = pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless], ids=["native", "RLE"]
)


@COMPRESSION
@pytest.mark.parametrize("how", CHANGES)
def test_a_slice_that_changes_between_planning_and_filling_ends_the_run(
    tmp_path, output, monkeypatch, how, syntax
):
    made = write_patient(tmp_path / "scans", "A", 4, syntax=syntax)
    change, word = CHANGES[how]
    reserve_all = commit.reserve_all

    def change_and_reserve(files: Sequence[commit.OutputFile]) -> None:
        change(tmp_path / "scans" / made[2].target_file)
        reserve_all(files)

    monkeypatch.setattr(commit, "reserve_all", change_and_reserve)
    ended = called(tmp_path, *argv(tmp_path / "scans", output, *BAD))
    one_error(ended, made[2].target_file, word, status=1)
    assert output.read_bytes() == EARLIER


@COMPRESSION
def test_a_slice_that_changes_before_ranks_fill_ends_the_run(tmp_path, output, syntax):
    made = write_patient(tmp_path / "scans", "A", 4, syntax=syntax)
    mark = tmp_path / "held"
    words = command(
        2, argv(tmp_path / "scans", output, *BAD), Fault("hold", "reserving", mark=str(mark))
    )
    with Run(words, tmp_path) as run:
        wait_for(mark.exists, "the end of planning")
        rewrite_and_restore_times(tmp_path / "scans" / made[2].target_file)
        mark.unlink()
        one_error(run.ended(), made[2].target_file, "changed", status=1)
    assert output.read_bytes() == EARLIER


@pytest.mark.parametrize(
    ("how", "n"),
    [
        ("rewritten", 0),
        ("grown beyond the limit", 0),
        ("rewritten, time restored", 0),
        ("replaced, same time", 0),
        ("replaced, same time", 2),
    ],
)
def test_a_slice_that_changes_before_planning_ends_the_run(tmp_path, output, how, n):
    made = write_patient(tmp_path / "scans", "A", 6)
    arguments = argv(tmp_path / "scans", output, *BAD)
    mark = tmp_path / "held"
    with Run(command(n, arguments, Fault("hold", "planning", mark=str(mark))), tmp_path) as run:
        wait_for(mark.exists, "the end of reading headers")
        CHANGES[how][0](tmp_path / "scans" / made[0].input_file)
        mark.unlink()
        one_error(run.ended(), made[0].input_file, "changed", status=1)
    assert output.read_bytes() == EARLIER


def test_copies_and_links_of_slices_that_nobody_changes_are_no_change(tmp_path, output):
    write_patient(tmp_path / "scans", "A", 4)
    expected = tmp_path / "expected.h5"
    assert called(tmp_path, *argv(tmp_path / "scans", expected)).errors == []
    copy = tmp_path / "copy" / "A"
    shutil.copytree(tmp_path / "scans" / "A", copy, copy_function=shutil.copy2)
    for path in list(copy.rglob("*.dcm"))[::2]:
        path.unlink()
        path.symlink_to(tmp_path / "scans" / path.relative_to(copy.parent))
    mark = tmp_path / "held"
    arguments = argv(copy.parent, output, "--overwrite")
    with Run(command(2, arguments, Fault("hold", "reserving", mark=str(mark))), tmp_path) as run:
        wait_for(mark.exists, "the end of planning")
        for path in copy.rglob("*.dcm"):
            assert np.fromfile(path, np.uint8).size  # read by another program
        mark.unlink()
        ended = run.ended()
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == expected.read_bytes()
