"""No space: a full disk, the process's limit on the size of a file, a quota of two files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import EARLIER, argv, command, kept, left, mounted, one_error, run
from tests.running import REPO, called

KB = 1024


def fill_all_but(disk: Path, free: int) -> None:
    """Fill a disk until only so many bytes are free."""
    there = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, there.f_bavail * there.f_frsize - free)
    while (there := os.statvfs(disk)).f_bavail * there.f_frsize < free:
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - KB)


@contextlib.contextmanager
def ext4(folder: Path, size: int) -> Iterator[Path]:
    """Mount an ext4 file system of that size; skip the test where that is not allowed."""
    image = folder.with_suffix(".img")
    image.write_bytes(bytes(size))
    folder.mkdir()
    make: list[str | Path] = ["mkfs.ext4", "-q", "-m0", image]
    mount: list[str | Path] = ["mount", "-o", "loop", image, folder]
    for words in (make, mount):
        if not shutil.which(str(words[0])) or subprocess.run(words, check=False).returncode:
            pytest.skip("may not mount a disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("free", [0, 4, 8, 12, 16])
def test_a_tmpfs_that_is_almost_full_ends_in_one_line(tmp_path, tree, free):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        fill_all_but(disk, free * KB)
        ended = run(command(0, argv(tree.root, disk / "new" / "x.h5")), tmp_path)
        one_error(ended, "no space left", str(disk / "new" / "x.h5"), status=1)
        assert left(disk) == {"filler"}


@pytest.mark.parametrize(("free", "ranks"), [(0, 0), (4, 0), (16, 0), (64, 0), (0, 2), (64, 2)])
def test_an_ext4_that_is_almost_full_ends_in_one_line(tmp_path, tree, free, ranks):
    with ext4(tmp_path / "disk", 2 << 20) as disk:
        fill_all_but(disk, free * KB)
        ended = run(command(ranks, argv(tree.root, disk / "x.h5")), tmp_path)
        one_error(ended, "no space left", str(disk / "x.h5"), status=1)
        assert left(disk) == {"filler", "lost+found"}


@pytest.mark.parametrize("limit", [1, 8, 100, 500])
def test_a_limit_on_the_size_of_a_file_ends_in_one_line(tmp_path, tree, output, limit):
    words = command(0, argv(tree.root, output, "--overwrite"))
    ended = run(["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *words], tmp_path)
    one_error(ended, "no space left", str(output), status=1)
    assert left(output.parent) == {output.name}
    assert output.read_bytes() == EARLIER


def test_space_is_needed_for_all_files_of_a_split_together(tmp_path, tree):
    split = ("--split", "0.4", "0.3", "0.3")
    assert called(tmp_path, *argv(tree.root, tmp_path / "x.h5", *split)).errors == []
    sizes = [path.stat().st_size for path in tmp_path.glob("x_*.h5")]
    assert len(sizes) == 3
    with mounted(tmp_path / "disk", f"size={max(sizes) + sum(sizes) >> 1}") as disk:
        ended = called(tmp_path, *argv(tree.root, disk / "x.h5", *split))
        message = one_error(ended, "no space left", "needed", status=1)
        assert all(f"x_{side}.h5" in message for side in ("train", "val", "test"))
        assert left(disk) == set()


def test_a_report_that_finds_no_space_is_completed_later(tmp_path, tree, whole):
    output = tmp_path / "x.h5"
    words = argv(tree.root, output, "--sheets", "0", report=True)
    with mounted(tmp_path / "sanity_check", "size=4k") as images:
        (images / "filler").write_bytes(bytes(4096))
        one_error(called(tmp_path, *words), "x.h5' is complete", "--resume", status=1)
        assert kept(tmp_path) == {"x.h5"}
        assert output.read_bytes() == whole
    (tmp_path / "sanity_check").rmdir()
    ended = called(tmp_path, *words, "--resume")
    assert (ended.status, ended.errors) == (0, [])
    assert "10 of 10 pairs were already complete" in ended.out
    assert output.read_bytes() == whole
    assert left(tmp_path) == {"x.h5", "sanity_check"}
    assert left(tmp_path / "sanity_check" / "x") >= {"report.html", "report.json"}


def test_hdf5_locks_that_the_environment_asks_for_stop_nobody(tmp_path, tree, whole):
    extra = {"HDF5_USE_FILE_LOCKING": "TRUE"}
    output = tmp_path / "x.h5"
    for more in ([], ["--overwrite"], ["--resume"]):
        ended = run(command(0, argv(tree.root, output, *more)), tmp_path, extra)
        assert (ended.status, ended.errors) == (0, [])
        assert output.read_bytes() == whole
    ended = run([sys.executable, str(REPO / "main.py"), "--verify", str(output)], tmp_path, extra)
    assert (ended.status, ended.errors) == (0, [])
