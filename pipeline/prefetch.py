"""Preparing later tasks in threads while a serial run works on one.

OpenCV and the operating system do most of this work, outside the interpreter lock.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from typing import TYPE_CHECKING, TypeVar

from pipeline.profile import step

if TYPE_CHECKING:  # it loads numpy, and --help must not
    from pipeline.model import Pair

Task = TypeVar("Task")
Prepared = TypeVar("Prepared")

#: The process itself cannot keep up with more threads than this.
MAX_THREADS = 4
#: Pixels of all pairs that are prefetched at a time, as float32; their views need a few times as
#: much.
MAX_PREFETCH_BYTES = 32 << 20


def threads_for(pairs: Iterable[Pair]) -> int:
    """Return how many threads may read these pairs: fewer for large images, to bound the memory.

    0 where the process has one core, and where decoders are needed: some are not safe in threads,
    and one runs in a forked process.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    slices = [one for pair in pairs for one in (pair.input, pair.target)]
    if cores == 1 or any(one.pixel_offset is None for one in slices):
        return 0
    largest = max((one.rows * one.columns for one in slices), default=1)
    return min(cores, MAX_THREADS, MAX_PREFETCH_BYTES // (2 * 4 * largest))


def prefetched(
    tasks: Iterable[Task], prepare: Callable[[Task], Prepared], threads: int
) -> Generator[Prepared, None, None]:
    """Yield `prepare(task)` for every task, in order; it is called in that many other threads.

    What it raises is raised when the result of its task is due. With 0 threads it is called then.
    """
    if not threads:
        yield from map(prepare, tasks)
        return
    rest = iter(tasks)
    with futures.ThreadPoolExecutor(threads, "prefetch") as pool:
        ahead = deque(pool.submit(prepare, task) for task in itertools.islice(rest, threads))
        while ahead:
            with step("wait"):
                futures.wait([ahead[0]])
            ahead.extend(pool.submit(prepare, task) for task in itertools.islice(rest, 1))
            yield ahead.popleft().result()
