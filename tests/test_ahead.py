"""Work done ahead of its turn: the order, the errors, how far ahead, and when threads are used."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from typing import Any

import pytest

from pipeline import prefetch, profile
from pipeline.dicom.dicom_io import read_slice
from pipeline.mpi import parallel
from tests.scans import phantom, write_slice
from utils import Pair, RunError


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 2, 30])
def test_every_task_comes_once_in_order(number, threads):
    made = list(prefetch.made_ahead(range(number), lambda task: task**2, threads))
    assert made == [(task, task**2) for task in range(number)]


def test_an_error_is_raised_when_its_turn_has_come():
    def make(task: int) -> int:
        if task == 3:
            raise RunError("this slice is bad")
        return task

    made = prefetch.made_ahead(range(100), make, 2)
    assert [next(made)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RunError, match="this slice is bad"):
        next(made)


def test_no_more_is_made_ahead_than_there_are_threads():
    begun: list[int] = []

    def make(task: int) -> int:
        begun.append(task)
        return task

    for task, _ in prefetch.made_ahead(range(50), make, 3):
        assert max(begun) <= task + 3


def test_what_is_made_ahead_is_made_in_other_threads_all_of_which_end():
    made = list(prefetch.made_ahead(range(9), lambda _: threading.current_thread().name, 2))
    assert {name.split("_")[0] for _, name in made} == {"ahead"}
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_leaving_early_ends_the_threads():
    made = prefetch.made_ahead(range(10**6), lambda task: task, 2)
    next(made)
    made.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_a_process_with_one_core_uses_no_thread():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert prefetch.threads() == 0
    finally:
        os.sched_setaffinity(0, cores)
    assert prefetch.threads() == (min(len(cores), prefetch.MOST_THREADS) if len(cores) > 1 else 0)


def slices(folder: Any, **options: Any) -> Pair:
    for name, image in zip(("low", "full"), phantom((32, 32), 1, 2), strict=True):
        write_slice(folder / name, image, **options)
    return Pair("P", *(read_slice(str(folder), name) for name in ("low", "full")))


def test_slices_that_need_a_decoder_are_read_in_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "threads", lambda: 2)
    pair = slices(tmp_path)
    packed = Pair("P", pair.input, dataclasses.replace(pair.target, pixel_offset=None))
    assert prefetch.threads_for([pair, pair]) == 2
    assert prefetch.threads_for([pair, packed]) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(32, 32, 4), (1024, 1024, 4), (1024, 2048, 2), (2048, 2048, 1), (2048, 2049, 0)],
)
def test_fewer_pairs_of_large_images_are_prefetched(tmp_path, monkeypatch, rows, columns, expected):
    monkeypatch.setattr(prefetch, "threads", lambda: 4)
    small = slices(tmp_path)
    large = dataclasses.replace(small.target, rows=rows, columns=columns)
    assert prefetch.threads_for([small, Pair("P", large, large), small]) == expected


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
    monkeypatch.setattr(profile, "spent", {})
    monkeypatch.setattr(profile, "spent_ahead", {})

    def make(task: int) -> int:
        with profile.step("scale"):
            return task

    for _ in prefetch.made_ahead(range(5), make, 2):
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
    with profile.laps() as lap:
        for name in ("cut", "write", "cut"):
            lap(name)
    assert profile.spent == {"cut": 12.5, "write": 4.0}


def test_the_profile_of_ranks_tells_how_long_they_were_idle():
    ranks = [{"cut": 3.0, "rank 0": 5.0}, {"cut": 2.0, "wait": 1.0, "rank 0": 5.0}]
    lines = profile.table(ranks, {}, 9.0)
    assert lines[-1].split() == ["idle", "in", "shared", "work", "16.7%"]
    assert [line.split()[-1] for line in lines[1:3]] == ["9.00", "9.00"]


# --- behind ----------------------------------------------------------------------------------


def behind_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "behind"]


def test_jobs_are_done_in_order_in_one_other_thread():
    done: list[tuple[int, str]] = []
    behind = prefetch.Behind(3)
    assert not behind_threads()

    def job(i: int) -> None:
        done.append((i, threading.current_thread().name))

    for i in range(50):
        behind.do(functools.partial(job, i))
    behind.settle()
    assert done == [(i, "behind") for i in range(50)]
    behind.close()
    assert not behind_threads()


def test_no_more_jobs_wait_than_may():
    begin, waiting = threading.Event(), threading.Event()
    behind = prefetch.Behind(2)
    given: list[int] = []

    def give() -> None:
        behind.do(begin.wait)
        for i in range(4):
            given.append(i)
            if i == 2:
                waiting.set()
            behind.do(lambda: None)

    giver = threading.Thread(target=give)
    giver.start()
    assert waiting.wait(60)
    # The first is at work and two wait: the giver is at the third, and cannot get past it.
    assert given == [0, 1, 2]
    begin.set()
    giver.join()
    behind.settle()
    behind.close()
    assert given == [0, 1, 2, 3]


def test_an_error_comes_out_and_what_lies_behind_it_is_left_undone():
    done: list[int] = []

    def job(i: int) -> None:
        if i == 3:
            raise RunError("the disk is full")
        done.append(i)

    behind = prefetch.Behind(100)
    with pytest.raises(RunError, match="the disk is full"):  # noqa: PT012
        for i in range(100):
            behind.do(functools.partial(job, i))
        behind.settle()
    assert done == [0, 1, 2]
    with pytest.raises(RunError, match="the disk is full"):
        behind.do(lambda: done.append(9))
    behind.close()
    assert done == [0, 1, 2]
    assert not behind_threads()


def test_closing_drops_what_waits():
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        go.wait(60)
        done.append("first")

    behind = prefetch.Behind(10**6)
    behind.do(first)
    behind.do(lambda: done.append("second"))
    assert begun.wait(60)
    closer = threading.Thread(target=behind.close)
    closer.start()
    with pytest.raises(RuntimeError, match="closed"):  # noqa: PT012
        while True:  # until it is closing
            behind.do(lambda: None)
    go.set()
    closer.join()
    assert done == ["first"]
    assert not behind_threads()


class Slow:
    """A file whose writes are seen only when they are done."""

    piece_bytes, keeps = 100, False

    def __init__(self, full_at: int = 1000) -> None:
        self.written: list[int] = []
        self.full_at = full_at

    def write(self, offset: int, data: memoryview) -> None:
        if offset == self.full_at:
            raise RunError("no space left")
        self.written.append(offset)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_result_is_taken_after_its_bytes_were_written(threads):
    file = Slow()
    world = parallel.World(None)
    (writer,) = world.open_writers([file], threads)
    assert writer
    taken: list[int] = []

    def work(task: int) -> int:
        writer.write(task, memoryview(b"x"))
        writer.write(100 + task, memoryview(b"x"))
        return task

    def take(task: int) -> None:
        assert {task, 100 + task} <= set(file.written)
        taken.append(task)

    world.run(range(40), work, take, threads=threads)
    assert taken == list(range(40))
    assert file.written == [at for i in range(40) for at in (i, 100 + i)]
    assert not behind_threads()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_write_that_fails_fails_the_run_and_no_later_result_is_taken(threads):
    file = Slow(full_at=20)
    world = parallel.World(None)
    (writer,) = world.open_writers([file], threads)
    assert writer
    taken: list[int] = []

    def work(task: int) -> int:
        writer.write(task, memoryview(b"x"))
        return task

    with pytest.raises(parallel.SharedFailure, match=r"^no space left$"):
        world.run(range(40), work, taken.append, threads=threads)
    assert taken == list(range(len(taken)))
    assert len(taken) <= 20
    assert file.written == list(range(20))
    assert not behind_threads()
