"""Work done ahead of its turn: the order, the errors, how far ahead, and when threads are used."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any

import pytest

from ctpatches.dicom.header import read_slice
from pipeline import prefetch, profile
from pipeline.model import Pair
from pipeline.mpi.ranks import Ranks
from tests.scans import phantom, write_slice
from utils import RunError


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 2, 30])
def test_every_task_comes_once_in_order(number, threads):
    made = list(prefetch.prefetched(range(number), lambda task: task**2, threads))
    assert made == [task**2 for task in range(number)]


def test_an_error_is_raised_when_its_turn_has_come():
    def make(task: int) -> int:
        if task == 3:
            raise RunError("this slice is bad")
        return task

    made = prefetch.prefetched(range(100), make, 2)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RunError, match="this slice is bad"):
        next(made)


def test_no_more_is_made_ahead_than_there_are_threads():
    begun: list[int] = []

    def make(task: int) -> int:
        begun.append(task)
        return task

    for task in prefetch.prefetched(range(50), make, 3):
        assert max(begun) <= task + 3


def test_what_is_made_ahead_is_made_in_other_threads_all_of_which_end():
    made = list(prefetch.prefetched(range(9), lambda _: threading.current_thread().name, 2))
    assert {name.split("_")[0] for name in made} == {"prefetch"}
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]


def test_leaving_early_ends_the_threads():
    made = prefetch.prefetched(range(10**6), lambda task: task, 2)
    next(made)
    made.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_a_process_with_one_core_uses_no_thread():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert prefetch.threads_for([]) == 0
    finally:
        os.sched_setaffinity(0, cores)
    expected = min(len(cores), prefetch.MAX_THREADS) if len(cores) > 1 else 0
    assert prefetch.threads_for([]) == expected


def slices(folder: Any, **options: Any) -> Pair:
    for name, image in zip(("low", "full"), phantom((32, 32), 1, 2), strict=True):
        write_slice(folder / name, image, **options)
    return Pair("P", *(read_slice(str(folder), name) for name in ("low", "full")))


def test_slices_that_need_a_decoder_are_read_in_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    pair = slices(tmp_path)
    packed = Pair("P", pair.input, dataclasses.replace(pair.target, pixel_offset=None))
    assert prefetch.threads_for([pair, pair]) == 2
    assert prefetch.threads_for([pair, packed]) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(32, 32, 4), (1024, 1024, 4), (1024, 2048, 2), (2048, 2048, 1), (2048, 2049, 0)],
)
def test_fewer_pairs_of_large_images_are_prefetched(tmp_path, monkeypatch, rows, columns, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    small = slices(tmp_path)
    large = dataclasses.replace(small.target, rows=rows, columns=columns)
    assert prefetch.threads_for([small, Pair("P", large, large), small]) == expected


@pytest.mark.parametrize("threads", [0, 2])
def test_a_serial_run_prepares_and_works_in_order(threads):
    results = Ranks().imap_unordered(lambda n: n + 1, [3, 1, 2], lambda n: n * 10, threads)
    assert list(results) == [31, 11, 21]


def test_the_profile_tells_threads_from_ranks(monkeypatch):
    monkeypatch.setattr(profile, "spent", {})
    monkeypatch.setattr(profile, "spent_ahead", {})

    def make(task: int) -> int:
        with profile.step("scale"):
            return task

    for _ in prefetch.prefetched(range(5), make, 2):
        with profile.step("cut"):
            pass
    assert set(profile.spent) == {"cut", "wait"}
    assert set(profile.spent_ahead) == {"scale"}
    lines = profile.table([profile.spent], profile.spent_ahead, 1.0)
    assert [line.split()[0] for line in lines] == ["seconds", "rank", "ahead"]


def test_steps_that_take_turns_share_the_time_between_them(monkeypatch):
    clock = iter([1.0, 3.0, 7.0, 7.5])
    monkeypatch.setattr(profile, "spent", {"cut": 10.0})
    monkeypatch.setattr("pipeline.profile.time.perf_counter", lambda: next(clock))
    lap = profile.laps()
    for name in ("cut", "write", "cut"):
        lap(name)
    assert profile.spent == {"cut": 12.5, "write": 4.0}


def test_the_profile_of_ranks_tells_how_long_they_were_idle():
    ranks = [{"cut": 3.0, "rank 0": 5.0}, {"cut": 2.0, "wait": 1.0, "rank 0": 5.0}]
    lines = profile.table(ranks, {}, 9.0)
    assert lines[-1].split() == ["idle", "in", "shared", "work", "16.7%"]
    assert [line.split()[-1] for line in lines[1:3]] == ["9.00", "9.00"]
