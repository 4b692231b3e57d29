"""Where the time of a run goes, by step and rank: cheap enough to be always on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

#: Seconds that this process has spent in each step so far.
spent: dict[str, float] = {}
#: The same of its other threads, all together.
spent_ahead: dict[str, float] = {}
_MAIN, _LOCK = threading.get_ident(), threading.Lock()

#: Steps in the order of the table; `wait` is for work, `rank 0` for what rank 0 does alone.
_SHARED = ("headers", "read", "plan", "scale", "cut", "sum", "write", "receive", "wait")
STEPS = (*_SHARED, "rank 0")


class step:
    """Add the time spent inside to a step: `with step("read"): ...`."""

    __slots__ = ("begin", "name")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        _add(self.name, time.perf_counter() - self.begin)


class laps:
    """Share the time inside out among steps that take turns, with one look at the clock each.

    In ``with laps() as lap`` a call of ``lap("read")`` adds what has passed since the last one.
    """

    __slots__ = ("begin", "sums")

    def __enter__(self) -> Callable[[str], None]:
        self.sums: dict[str, float] = {}
        self.begin = time.perf_counter()
        return self.lap

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.sums[name] = self.sums.get(name, 0.0) + now - self.begin
        self.begin = now

    def __exit__(self, *_: object) -> None:
        for name, seconds in self.sums.items():
            _add(name, seconds)


def _add(name: str, seconds: float) -> None:
    if threading.get_ident() == _MAIN:
        spent[name] = spent.get(name, 0.0) + seconds
    else:
        with _LOCK:
            spent_ahead[name] = spent_ahead.get(name, 0.0) + seconds


def table(ranks: Sequence[dict[str, float]], ahead: dict[str, float], wall: float) -> list[str]:
    """Return a table of the seconds of every rank in each step.

    Parameters
    ----------
    ranks : sequence of dict
        `spent` of each rank.
    ahead : dict
        `spent_ahead` of a serial run.
    wall : float
        Seconds that the run took on rank 0.
    """
    rows = [*ranks, ahead]
    names = [*STEPS, *sorted({name for row in rows for name in row} - set(STEPS))]
    lines = ["seconds   " + "".join(f"{name:>9}" for name in (*names, "other", "all"))]
    for number, rank in enumerate(ranks):
        row = [rank.get(name, 0.0) for name in names]
        figures = (*row, wall - sum(row), wall)
        lines.append(f"rank {number:<5}" + "".join(f"{figure:9.2f}" for figure in figures))
    if ahead:
        row = [ahead.get(name, 0.0) for name in names]
        lines.append("ahead     " + "".join(f"{figure:9.2f}" for figure in (*row, 0.0, sum(row))))
    if len(ranks) > 1:
        shared = [sum(rank.values()) - rank.get("rank 0", 0.0) for rank in ranks]
        idle = sum(rank.get("wait", 0.0) for rank in ranks) / max(sum(shared), 1e-9)
        lines.append(f"idle in shared work {idle:9.1%}")
    return lines
