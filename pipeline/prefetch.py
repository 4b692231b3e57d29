"""What threads of a process do while it works on a task: make what later tasks need, and write what
it has made.

For work in which OpenCV or the system has the word, not Python: it runs beside other threads.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.profile import step
from utils import Pair

Task = TypeVar("Task")
Made = TypeVar("Made")

#: More threads than this find no work: the process itself cannot keep up with them.
MOST_THREADS = 4
#: Pixels of all pairs that are prefetched at a time, as float32; what is made of them takes a few
#: times as much.
MAX_PREFETCH_BYTES = 32 << 20


def threads() -> int:
    """Return how many threads are of use here: 0 where the process has one core."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return min(cores, MOST_THREADS) if cores > 1 else 0


def threads_for(pairs: Iterable[Pair]) -> int:
    """Return how many threads may read these pairs: fewer for large images, to bound the memory.

    None where decoders are needed: some of those are no friends of threads, and one is run in a
    process that is forked.
    """
    largest = 1
    for pair in pairs:
        if pair.input.pixel_offset is None or pair.target.pixel_offset is None:
            return 0
        largest = max(largest, pair.input.rows * pair.input.columns)  # the target is as large
    return min(threads(), MAX_PREFETCH_BYTES // (2 * 4 * largest))


def made_ahead(
    tasks: Sequence[Task], make: Callable[[Task], Made], threads: int
) -> Generator[tuple[Task, Made], None, None]:
    """Yield every task with what `make` makes of it, in order.

    Parameters
    ----------
    tasks : sequence
    make : callable
        Is called in other threads, for a few tasks at once; what it raises is raised when the turn
        of its task has come.
    threads : int
        How many; with 0 everything is made in its turn.
    """
    if not threads:
        for task in tasks:
            yield task, make(task)
        return
    waiting: deque[tuple[Task, Future[Made]]] = deque()
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        for task in tasks:
            waiting.append((task, pool.submit(make, task)))
            if len(waiting) > threads:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[Task, Future[Made]]]) -> tuple[Task, Made]:
    task, made = waiting.popleft()
    with step("wait"):
        return task, made.result()


class Behind:
    """Does jobs in a thread, in order, while the process goes on.

    What a job raises, `do` or `settle` raises after it; the jobs behind it are left undone. The
    thread runs from the first job until `close`.

    Parameters
    ----------
    most : int
        How many jobs may wait: with more, `do` waits for the thread.
    """

    def __init__(self, most: int) -> None:
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(most)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def do(self, job: Callable[[], object]) -> None:
        """Have a job done."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="behind")
            thread.start()
            self._thread = thread
        self._check()
        self._jobs.put(job)

    def settle(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.join()
        self._check()

    def close(self) -> None:
        """Drop the jobs that wait, and end the thread."""
        if self._thread:
            self._error = self._error or RuntimeError("closed")
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _run(self) -> None:
        while job := self._jobs.get():
            try:
                if not self._error:
                    job()
            except BaseException as error:
                self._error = error
            self._jobs.task_done()
