"""Work done ahead of its turn: the order, the errors, how far ahead, and when threads are used."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any

import pytest

import ahead
import parallel
import stopwatch
from dicom_io import read_slice
from tests.scans import phantom, write_slice
from utils import Pair, RunError


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 2, 30])
def test_every_task_comes_once_in_order(number, threads):
    made = list(ahead.made_ahead(range(number), lambda task: task**2, threads))
    assert made == [(task, task**2) for task in range(number)]


def test_an_error_is_raised_when_its_turn_has_come():
    def make(task: int) -> int:
        if task == 3:
            raise RunError("this slice is bad")
        return task

    made = ahead.made_ahead(range(100), make, 2)
    assert [next(made)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RunError, match="this slice is bad"):
        next(made)


def test_no_more_is_made_ahead_than_there_are_threads():
    begun: list[int] = []

    def make(task: int) -> int:
        begun.append(task)
        return task

    for task, _ in ahead.made_ahead(range(50), make, 3):
        assert max(begun) <= task + 3


def test_what_is_made_ahead_is_made_in_other_threads_all_of_which_end():
    made = list(ahead.made_ahead(range(9), lambda _: threading.current_thread().name, 2))
    assert {name.split("_")[0] for _, name in made} == {"ahead"}
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_leaving_early_ends_the_threads():
    made = ahead.made_ahead(range(10**6), lambda task: task, 2)
    next(made)
    made.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_a_process_with_one_core_uses_no_thread():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert ahead.threads() == 0
    finally:
        os.sched_setaffinity(0, cores)
    assert ahead.threads() == (min(len(cores), ahead.MOST_THREADS) if len(cores) > 1 else 0)


def slices(folder: Any, **options: Any) -> Pair:
    for name, image in zip(("low", "full"), phantom((32, 32), 1, 2), strict=True):
        write_slice(folder / name, image, **options)
    return Pair("P", *(read_slice(str(folder), name) for name in ("low", "full")))


def test_slices_that_need_a_decoder_are_read_in_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "threads", lambda: 2)
    pair = slices(tmp_path)
    packed = Pair("P", pair.input, dataclasses.replace(pair.target, pixel_offset=None))
    assert ahead.threads_for([pair, pair]) == 2
    assert ahead.threads_for([pair, packed]) == 0


@pytest.mark.parametrize("threads", [0, 2])
def test_a_serial_world_prepares_and_works_in_order(threads):
    taken: list[int] = []
    parallel.World(None).run(
        [3, 1, 2],
        lambda prepared: prepared + 1,
        taken.append,
        prepare=lambda task: task * 10,
        threads=threads,
    )
    assert taken == [31, 11, 21]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("where", ["prepare", "work", "take"])
def test_an_error_that_nobody_foresaw_names_the_task(where, threads):
    def broken(what: Any) -> Any:
        raise ZeroDivisionError("made to fail")

    parts: dict[str, Any] = {"prepare": lambda t: t, "work": lambda t: t, "take": lambda _: None}
    parts[where] = broken
    world = parallel.World(None)

    def name(task: int) -> str:
        return f"task {task}: "

    with pytest.raises(parallel.SharedFailure, match=r"ZeroDivisionError.*made to fail") as raised:
        world.run([7], parts["work"], parts["take"], name, parts["prepare"], threads)
    assert ("task 7: " in str(raised.value)) == (where != "take")


def test_the_profile_tells_threads_from_ranks(monkeypatch):
    monkeypatch.setattr(stopwatch, "spent", {})
    monkeypatch.setattr(stopwatch, "spent_ahead", {})

    def make(task: int) -> int:
        with stopwatch.step("scale"):
            return task

    for _ in ahead.made_ahead(range(5), make, 2):
        with stopwatch.step("cut"):
            pass
    assert set(stopwatch.spent) == {"cut", "wait"}
    assert set(stopwatch.spent_ahead) == {"scale"}
    lines = stopwatch.table([stopwatch.spent], stopwatch.spent_ahead, 1.0)
    assert [line.split()[0] for line in lines] == ["seconds", "rank", "ahead"]


def test_the_profile_of_ranks_tells_how_long_they_were_idle():
    ranks = [{"cut": 3.0, "rank 0": 5.0}, {"cut": 2.0, "wait": 1.0, "rank 0": 5.0}]
    lines = stopwatch.table(ranks, {}, 9.0)
    assert lines[-1].split() == ["idle", "in", "shared", "work", "16.7%"]
    assert [line.split()[-1] for line in lines[1:3]] == ["9.00", "9.00"]
