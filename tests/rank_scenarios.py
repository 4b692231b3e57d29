"""What the tests of `pipeline.mpi` run under mpiexec: `rank_scenarios.py SCENARIO [RANK]`.

It ends as `main.py` does: an error goes to `Ranks.fail`, and its status is the process's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import sys
import time
from pathlib import Path

from ctpatches import streams
from ctpatches.files import Offset
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from utils import RunError

TASKS = 40
ROUNDS = 50
PIECE = 24 << 20
#: How long rank 0 waits for the bell of another rank, at most.
PATIENCE_S = 20.0


def square(task: int) -> list[int]:
    """Return a task with its result."""
    return [task, task**2]


def every_task_once(ranks: Ranks) -> None:
    """Print what came to rank 0 for several numbers of tasks, the smallest below that of ranks."""
    found = {
        number: sorted(ranks.imap_unordered(square, range(number)))
        for number in (0, 1, max(1, ranks.size - 1), TASKS)
    }
    shared = ranks.share(lambda: "from rank 0")
    on_root = ranks.on_root(lambda: "on rank 0")

    def values(_: int) -> list[object]:
        return [ranks.rank, shared, on_root]

    said = list(ranks.imap_unordered(values, range(5)))
    gathered = []
    for _ in range(ROUNDS):  # what follows a farm at once may arrive before the farm has ended
        list(ranks.imap_unordered(square, range(ranks.size)))
        gathered.append(ranks.on_all(lambda: ranks.rank))
    if ranks.rank == 0:
        out = {"size": ranks.size, "found": found, "said": said, "gathered": gathered}
        print(json.dumps(out))


def large_bytes(ranks: Ranks) -> None:
    """Send more bytes to rank 0 than may be on their way at once; print their digest."""
    image = bytearray(3 * ranks.size * PIECE)

    def write(offset: Offset, data: memoryview) -> None:
        assert isinstance(offset, int)
        image[offset : offset + len(data)] = data

    def work(task: int) -> int:
        data = memoryview(bytes([task + 1]) * (3 * PIECE))
        if ranks.rank:
            ranks.send(0, task * 3 * PIECE, data)
        else:
            write(task * 3 * PIECE, data)
        return task

    for _ in ranks.imap_unordered(work, range(ranks.size), writes=[write]):
        pass
    if ranks.rank == 0:
        print(hashlib.sha256(image).hexdigest())


class Bell:
    """Rung by other ranks; rank 0 waits for it."""

    def __init__(self, ranks: Ranks) -> None:
        self.path = Path("bell")
        ranks.on_root(lambda: os.mkfifo(self.path))

    def ring(self) -> None:
        """Ring once."""
        with open(self.path, "ab", buffering=0) as pipe:
            pipe.write(b".")

    def wait(self) -> None:
        """Wait until it was rung, unless it takes too long."""
        pipe = os.open(self.path, os.O_RDWR)  # both, and never closed: writers wait for a reader
        if select.select([pipe], [], [], PATIENCE_S)[0]:
            os.read(pipe, 1)


def stop(ranks: Ranks) -> None:
    """Fail on rank 0 while another is at its first task of many; print what that one begins."""
    bell = Bell(ranks)

    def work(task: int) -> int:
        if ranks.rank == 0:
            bell.wait()
            raise RunError("this slice is bad")
        print(json.dumps({"begun": task}))
        bell.ring()
        latest = time.monotonic() + PATIENCE_S
        assert ranks._farm
        while not ranks._farm.is_stopped() and time.monotonic() < latest:
            pass
        return task

    for _ in ranks.imap_unordered(work, range(TASKS)):
        pass


def stuck(ranks: Ranks, where: str) -> None:
    """Fail on rank 0, in a task or where the results are used, while another hangs in a task."""
    from pipeline.mpi import task_farm  # here: it loads MPI

    task_farm.PATIENCE_S = 0.5
    bell = Bell(ranks)

    def work(task: int) -> None:
        if ranks.rank == 0:
            bell.wait()
            if where == "task":
                raise RunError("this slice is bad")
            return
        bell.ring()
        time.sleep(PATIENCE_S)

    with contextlib.closing(ranks.imap_unordered(work, range(TASKS))) as results:
        for _ in results:
            raise RunError("this slice is bad")


def fail(ranks: Ranks, scenario: str, at: int) -> None:
    """Fail on one rank in the way that the scenario names, amid the work of all."""
    reached = Path("reached")

    def work(task: int) -> int:
        if scenario == "everywhere":
            raise RunError("this slice is bad")
        if scenario in ("refuses", "breaks", "exits") and ranks.rank != at:
            # The others do not return before: they might leave no task to rank 0.
            latest = time.monotonic() + PATIENCE_S
            while not reached.exists() and time.monotonic() < latest:
                time.sleep(0.001)
        elif ranks.rank == at:
            reached.touch()
            if scenario == "refuses":
                raise RunError("this slice is bad")
            if scenario == "breaks":
                raise ZeroDivisionError("nobody thought of this")
            if scenario == "exits":
                sys.exit(0)
        return task

    def step() -> None:
        if scenario == "root":
            raise RunError("this slice is bad")

    def step_of_all() -> None:
        if scenario == "together" and ranks.rank >= at:
            raise RunError("this slice is bad")

    ranks.on_root(step)
    ranks.on_all(step_of_all)
    if scenario == "alone" and ranks.rank == at:
        raise RunError("this slice is bad")
    with contextlib.closing(ranks.imap_unordered(work, range(TASKS))) as results:
        for _ in results:
            if scenario == "consumer":
                raise RunError("this slice is bad")
    ranks.on_root(lambda: print("all is done"))


def main(scenario: str, at: int) -> int:
    """Run a scenario as `main.py` runs a job."""
    ranks = launch.connect(scenario != "serial", os.environ)
    try:
        if scenario in ("results", "serial"):
            every_task_once(ranks)
        elif scenario == "bytes":
            large_bytes(ranks)
        elif scenario == "stop":
            stop(ranks)
        elif scenario.startswith("stuck"):
            stuck(ranks, scenario.removeprefix("stuck "))
        else:
            fail(ranks, scenario, at)
        ranks.close()
    except BaseException as error:
        return ranks.fail(error)
    return 0


if __name__ == "__main__":
    rank = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    sys.exit(streams.run(lambda: main(sys.argv[1], rank)))
