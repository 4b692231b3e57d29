"""Large pages of a memory file system: asked for where they pay, and never another byte."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import blocks
import large_pages
from large_pages import IN_VAIN, LARGE, LENT, PAID_BACK, WORTH, LargePages, Thrift
from tests.conftest import Tree
from tests.faults import Fault, argv, command, mounted, one_error, run
from tests.running import called, ranks

SIZE = 3 * LARGE + 12345


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a memory file system with small pages."""
    with mounted(tmp_path / "disk", "huge=never") as folder:
        yield folder


def able(folder: Path) -> bool:
    """Tell whether this system makes large pages there."""
    path = folder / "probe"
    path.write_bytes(bytes(LARGE))
    with open(path, "r+b") as file:
        pages = LargePages(file.fileno())
        lent = pages.lend(0, 1)
        pages.close()
    path.unlink()
    return lent is not None


def laid_out(path: Path, content: bytes | None = None) -> blocks.Layout:
    if content is not None:
        path.write_bytes(content)
    status = path.stat()
    return blocks.Layout(str(path), status.st_dev, status.st_ino, {}, small_pages=True)


def put(file: blocks.PartialFile, offset: int, data: bytes) -> bool:
    """Bring bytes into the file as a run does; tell whether it lent its memory for them."""
    lent = file.lend(offset, len(data))
    if lent is None:
        file.write(offset, memoryview(data))
    else:
        lent[:] = data
    return lent is not None


def mappings(path: Path) -> list[int]:
    """Return the bytes of every range of this process's addresses that shows the file."""
    out = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, end = (int(n, 16) for n in line.split()[0].split("-"))
            out.append(end - first)
    return out


# --- whether they pay ------------------------------------------------------------------------


def test_cheap_pages_go_on_for_ever() -> None:
    thrift = Thrift()
    for _ in range(10_000):
        assert thrift.next_is_large()
        thrift.charge(WORTH / 2)
    assert thrift.credit == WORTH * LENT


def test_dear_pages_are_tried_seldom() -> None:
    thrift = Thrift()
    tried = []
    for page in range(200):
        if thrift.next_is_large():
            tried.append(page)
            thrift.charge(WORTH * IN_VAIN)
    # What is lent pays for five and a bit; then one as soon as small pages have paid for the last.
    after = 1 + round((IN_VAIN - 1) / PAID_BACK)
    assert tried[:7] == [*range(6), 6 + round(2 / PAID_BACK)]
    assert set(np.diff(tried[6:])) == {after}


@pytest.mark.parametrize("times", [2, IN_VAIN, 10, LENT])
def test_trying_dear_pages_makes_small_ones_no_dearer_than_it_may(times: int) -> None:
    thrift, lost, small = Thrift(), 0.0, 0
    while small < 5000:
        if thrift.next_is_large():
            thrift.charge(WORTH * times)
            lost += WORTH * (times - 1)
        else:
            small += 1
    assert lost <= WORTH * (LENT + LENT + small * PAID_BACK)


def test_one_page_in_twenty_that_takes_long_proves_nothing() -> None:
    thrift = Thrift()
    for _ in range(1000):
        thrift.charge(1.0)
        for _ in range(19):
            assert thrift.next_is_large()
            thrift.charge(WORTH / 10)


def test_one_page_in_five_that_takes_long_makes_them_rare() -> None:
    thrift = Thrift()
    large = 0
    for _ in range(1000):
        if thrift.next_is_large():
            large += 1
            thrift.charge(WORTH / 10 if large % 5 else 1.0)
    # Each five cost so much beyond their worth, which small ones have to pay back.
    beyond = (LENT - 1) - 4 * (1 - 1 / 10)
    assert large <= 10 + 1000 * 5 / (5 + beyond / PAID_BACK)


def test_pages_that_are_cheap_again_are_made_again() -> None:
    thrift = Thrift(credit=0.0)
    thrift.charge(WORTH * 3)
    assert [thrift.next_is_large() for _ in range(17)] == [False] * 16 + [True]
    for _ in range(100):
        thrift.charge(WORTH)
        assert thrift.next_is_large()


def test_what_cheap_pages_saved_is_not_wasted_on_dear_ones() -> None:
    thrift = Thrift()
    for _ in range(10_000):
        thrift.charge(0.0)
    thrift.charge(1.0)
    thrift.charge(WORTH * 3)
    assert not thrift.next_is_large()


# --- the bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1000, 1 << 19, LARGE, 2 * LARGE, SIZE])
def test_a_file_holds_what_was_put_in(disk: Path, piece: int) -> None:
    whole = np.random.default_rng(piece).bytes(SIZE)
    path = disk / "file"
    with blocks.PartialFile(laid_out(path, bytes(SIZE))) as file:
        for start in range(0, SIZE, piece):
            put(file, start, whole[start : start + piece])
    assert path.read_bytes() == whole


def test_bytes_that_were_there_stay(disk: Path) -> None:
    before = np.random.default_rng(0).bytes(SIZE)
    path = disk / "file"
    at, data = LARGE - 7, b"seven and seven"
    with blocks.PartialFile(laid_out(path, before)) as file:
        put(file, at, data)
    assert path.read_bytes() == before[:at] + data + before[at + len(data) :]


def test_whole_pages_are_made_large_once_each(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not able(disk):
        pytest.skip("this system makes no large pages")
    # However dear they are at this moment.
    monkeypatch.setattr(Thrift, "next_is_large", lambda _: True)
    path = disk / "file"
    path.touch()
    os.truncate(path, SIZE)
    with blocks.PartialFile(laid_out(path)) as file:
        assert file.large
        assert put(file, LARGE + 5, b"x")
        assert file.large.made == 1
        for start in range(0, SIZE, 1000):
            # The rest, no whole page, cannot be made large.
            data = b"y" * min(1000, SIZE - start)
            assert put(file, start, data) == (start + len(data) <= 3 * LARGE)
            # Else all of the file would count as memory of this process.
            assert sum(mappings(path)) <= 2 * LARGE
        assert file.large.made == 3
    assert mappings(path) == []
    assert path.read_bytes() == b"y" * SIZE


def test_more_than_two_pages_are_not_lent(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not able(disk):
        pytest.skip("this system makes no large pages")
    monkeypatch.setattr(Thrift, "next_is_large", lambda _: True)
    with blocks.PartialFile(laid_out(disk / "file", bytes(SIZE))) as file:
        assert file.lend(LARGE - 1, LARGE + 1) is not None
        assert file.lend(LARGE - 1, LARGE + 2) is None


@pytest.mark.parametrize("lends", [True, False])
def test_two_who_write_share_a_page(
    disk: Path, monkeypatch: pytest.MonkeyPatch, lends: bool
) -> None:
    """What one puts in or writes stays, whatever the other puts in or writes beside it."""
    if not able(disk):
        pytest.skip("this system makes no large pages")
    monkeypatch.setattr(Thrift, "next_is_large", lambda _: True)
    path = disk / "file"
    layout = laid_out(path, bytes(SIZE))
    with blocks.PartialFile(layout) as one, blocks.PartialFile(layout) as other:
        if not lends:
            other.large = None
        for start in range(0, 2 * LARGE, 128):
            assert put(one, start, b"%064d" % start)
            assert put(other, start + 64, b"%064d" % (start + 64)) == lends
    expected = b"".join(b"%064d" % start for start in range(0, 2 * LARGE, 64))
    assert path.read_bytes() == expected + bytes(SIZE - 2 * LARGE)


def test_a_file_system_without_any_takes_the_bytes_all_the_same(tmp_path: Path) -> None:
    whole = np.random.default_rng(1).bytes(SIZE)
    path = tmp_path / "file"
    with blocks.PartialFile(laid_out(path, bytes(SIZE))) as file:
        for start in range(0, SIZE, 1 << 20):
            put(file, start, whole[start : start + (1 << 20)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("option", "small"),
    [
        ("huge=never", True),
        ("huge=advise", True),
        ("huge=within_size", False),
        ("huge=always", False),
    ],
)
def test_only_where_pages_are_small(tmp_path: Path, option: str, small: bool) -> None:
    with mounted(tmp_path / "disk", option) as folder:
        assert large_pages.has_small_pages(folder.stat()) is small


def test_a_disk_is_no_memory_file_system(tmp_path: Path) -> None:
    command = ["stat", "-f", "-c", "%T", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode or told.stdout.strip() == "tmpfs":
        pytest.skip("no disk here")
    assert large_pages.has_small_pages(tmp_path.stat()) is False


def test_a_run_makes_them(
    tree: Tree, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not able(disk):
        pytest.skip("this system makes no large pages")
    monkeypatch.setattr(Thrift, "next_is_large", lambda _: True)
    made = []
    close = LargePages.close

    def counted(pages: LargePages) -> None:
        made.append(pages.made)
        close(pages)

    monkeypatch.setattr(LargePages, "close", counted)
    options = ["--patch-size", "p48", "--overlap", "46"]
    ended = called(tmp_path, *argv(tree.root, disk / "made.h5", *options))
    assert ended.status == 0, ended.err
    assert made == [(disk / "made.h5").stat().st_size // LARGE]


def test_without_addresses_there_are_none(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pages, "_map", lambda *_: None)
    whole = np.random.default_rng(2).bytes(SIZE)
    with blocks.PartialFile(laid_out(disk / "file", bytes(SIZE))) as file:
        assert not put(file, 0, whole)
        assert not put(file, 0, whole[:1000])
        assert file.large
        assert file.large.made == 0
    assert (disk / "file").read_bytes() == whole


#: Two datasets of 14 MB: ranks meet within a page, and some pages are one rank's alone.
LARGE_JOB = ("--patch-size", "p48", "--overlap", "46", "--overwrite")


@pytest.fixture(scope="module")
def large_file(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what a serial run to a disk makes of the large job."""
    folder = tmp_path_factory.mktemp("large")
    ended = called(folder, *argv(tree.root, folder / "x.h5", *LARGE_JOB))
    assert ended.status == 0, ended.err
    whole = (folder / "x.h5").read_bytes()
    assert len(whole) > 4 * LARGE
    return whole


@pytest.mark.parametrize("pages", ["as they come", "every other one"])
def test_a_serial_run_writes_the_same_bytes_into_memory(
    tree: Tree,
    tmp_path: Path,
    disk: Path,
    large_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
    pages: str,
) -> None:
    if pages == "every other one":  # what is cut into the file, and what a thread writes, in turns
        turns = itertools.cycle([True, False])
        monkeypatch.setattr(Thrift, "next_is_large", lambda _: next(turns))
    ended = called(tmp_path, *argv(tree.root, disk / "x.h5", *LARGE_JOB))
    assert ended.status == 0, ended.err
    assert (disk / "x.h5").read_bytes() == large_file


@pytest.mark.parametrize("hand_over", ["auto", "messages"])
def test_ranks_write_the_same_bytes_into_memory(
    tree: Tree, tmp_path: Path, disk: Path, large_file: bytes, hand_over: str
) -> None:
    options = [*LARGE_JOB, "--mpi_run", "--hand_over", hand_over]
    ended = ranks(3, tmp_path, *argv(tree.root, disk / "x.h5", *options))
    assert ended.status == 0, ended.err
    assert (disk / "x.h5").read_bytes() == large_file


@pytest.mark.parametrize("many", [0, 2], ids=["serial", "2 ranks"])
def test_a_disk_that_fills_while_it_lends_memory_is_named(
    tree: Tree, tmp_path: Path, many: int
) -> None:
    with mounted(tmp_path / "small", "huge=never", "size=13m") as small:
        arguments = argv(tree.root, small / "x.h5", *LARGE_JOB)
        # As if the space had been there when it was looked at.
        ended = run(command(many, arguments, Fault("skip", "reserving")), tmp_path)
        one_error(ended, "no space", str(small / "x.h5"))
