"""What the tests of `parallel` run under mpiexec: `worlds.py SCENARIO [RANK]`.

It ends as `main.py` does: an error goes to `World.fail`, and its status is the process's.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import streams
from pipeline.mpi import parallel
from utils import RunError

TASKS = 40
PIECE = 24 << 20
#: Tasks of another rank that rank 0 waits for before it looks up; and for how many seconds at most.
EARLY, PATIENCE = 12, 20.0


def square(task: int) -> list[int]:
    """Return a task with its result."""
    return [task, task**2]


def every_task_once(world: parallel.World) -> None:
    """Print what came to rank 0 for several numbers of tasks, the smallest below that of ranks."""
    found = {}
    for number in (0, 1, max(1, world.size - 1), TASKS):
        came: list[list[int]] = []
        world.run(range(number), square, came.append)
        found[number] = sorted(came)
    shared = world.share("from rank 0" if world.rank == 0 else None)
    on_root = world.on_root(lambda: "on rank 0")

    def tell(_: int) -> list[object]:
        return [world.rank, shared, on_root]

    said: list[list[object]] = []
    world.run(range(5), tell, said.append)
    if world.rank == 0:
        print(json.dumps({"size": world.size, "found": found, "said": said}))


def large_bytes(world: parallel.World) -> None:
    """Hand more bytes to rank 0 than may be on their way at once; print their digest."""
    image = bytearray(3 * world.size * PIECE)

    class Memory:
        piece_bytes, keeps = PIECE, False

        def write(self, offset: int, data: memoryview) -> None:
            image[offset : offset + len(data)] = data

    (writer,) = world.open_writers([Memory() if world.rank == 0 else None])
    assert writer

    def work(task: int) -> int:
        data = bytes([task + 1]) * (3 * PIECE)
        writer.write(task * 3 * PIECE, memoryview(data))
        return task

    world.run(list(range(world.size)), work, lambda _: None)
    if world.rank == 0:
        print(hashlib.sha256(image).hexdigest())


class Bell:
    """Rung by other ranks; rank 0 waits for it."""

    def __init__(self, world: parallel.World) -> None:
        self.path = Path("bell")
        world.on_root(lambda: os.mkfifo(self.path))

    def ring(self) -> None:
        """Ring once."""
        with open(self.path, "ab", buffering=0) as pipe:
            pipe.write(b".")

    def wait(self, times: int) -> int:
        """Return how often it was rung: so many times, unless it takes too long."""
        pipe = os.open(self.path, os.O_RDWR)  # both, and never closed: writers wait for a reader
        rung = 0
        while rung < times and select.select([pipe], [], [], PATIENCE)[0]:
            rung += len(os.read(pipe, 1))
        return rung


def head_start(world: parallel.World) -> None:
    """Print what other ranks have done while rank 0 has not begun: it waits for `EARLY` tasks."""
    bell = Bell(world)
    found: list[list[int]] = []

    def work(task: int) -> list[int]:
        if world.rank:
            bell.ring()
        return square(task)

    def meanwhile() -> None:
        print(json.dumps({"early": bell.wait(EARLY), "taken": len(found)}))

    world.run(range(TASKS), work, found.append, meanwhile=meanwhile)
    if world.rank == 0:
        print(json.dumps(sorted(found)))


def stop(world: parallel.World) -> None:
    """Fail on rank 0 while another is at its first task of many; print what that one begins."""
    bell = Bell(world)

    def work(task: int) -> int:
        print(json.dumps({"begun": task}))
        bell.ring()
        latest = time.monotonic() + PATIENCE
        while not world._is_to_stop() and time.monotonic() < latest:
            pass
        return task

    def meanwhile() -> None:
        bell.wait(1)
        raise RunError("this slice is bad")

    world.run(range(TASKS), work, lambda _: None, meanwhile=meanwhile)


def fail(world: parallel.World, scenario: str, at: int) -> None:
    """Fail on one rank in the way that the scenario names, amid the work of all."""

    def work(task: int) -> int:
        if scenario == "everywhere":
            raise RunError("this slice is bad")
        if world.rank == at:
            if scenario == "refuses":
                raise RunError("this slice is bad")
            if scenario == "breaks":
                raise ZeroDivisionError("nobody thought of this")
            if scenario == "exits":
                sys.exit(0)
        return task

    def take(_: Any) -> None:
        if scenario == "take":
            raise RunError("this slice is bad")

    def step() -> None:
        if scenario == "root":
            raise RunError("this slice is bad")

    def meanwhile() -> None:
        if scenario == "meanwhile":
            raise RunError("this slice is bad")

    world.on_root(step)
    if scenario == "alone" and world.rank == at:
        raise RunError("this slice is bad")
    world.run(list(range(TASKS)), work, take, meanwhile=meanwhile)
    world.on_root(lambda: print("all is done"))


def main(scenario: str, at: int) -> int:
    """Run a scenario as `main.py` runs a job."""
    world = parallel.connect(scenario != "serial", os.environ)
    try:
        if scenario in ("results", "serial"):
            every_task_once(world)
        elif scenario == "bytes":
            large_bytes(world)
        elif scenario == "head start":
            head_start(world)
        elif scenario == "stop":
            stop(world)
        else:
            fail(world, scenario, at)
        world.close()
    except BaseException as error:
        return world.fail(error)
    return 0


if __name__ == "__main__":
    at = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    parallel.leave(streams.run(lambda: main(sys.argv[1], at)))
