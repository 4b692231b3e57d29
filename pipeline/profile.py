"""Where the time of a run goes, by step and rank: cheap enough to be always on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

#: Seconds that the main thread of this process has spent in each step so far.
spent: dict[str, float] = {}
#: The same of its other threads, all together.
spent_ahead: dict[str, float] = {}
_LOCK = threading.Lock()

#: Steps in the order of the table; `wait` is for work, `rank 0` for what rank 0 does alone.
STEPS = (
    *("headers", "read", "plan", "noise", "scale", "cut", "compress", "sum"),
    *("write", "receive", "wait", "rank 0"),
)


def laps() -> Callable[[str], None]:
    """Return a function that adds the time since it was last called, or made, to a step.

    It is for the thread that makes it.
    """
    times = spent if threading.current_thread() is threading.main_thread() else spent_ahead
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        with _LOCK:
            times[name] = times.get(name, 0.0) + now - begin
        begin = now

    return lap


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Add the time spent inside to a step."""
    lap = laps()
    try:
        yield
    finally:
        lap(name)


def table(ranks: Sequence[dict[str, float]], ahead: dict[str, float], wall: float) -> list[str]:
    """Return a table of the seconds in each step: of every rank, and ahead in threads."""
    lines = ["seconds   " + "".join(f"{name:>9}" for name in (*STEPS, "other", "all"))]
    rows = [(f"rank {number}", rank, wall) for number, rank in enumerate(ranks)]
    if ahead:
        rows.append(("ahead", ahead, sum(ahead.values())))
    for title, row, whole in rows:
        seconds = [row.get(name, 0.0) for name in STEPS]
        figures = (*seconds, max(0.0, whole - sum(seconds)), whole)
        lines.append(f"{title:10}" + "".join(f"{figure:9.2f}" for figure in figures))
    if len(ranks) > 1:
        shared = [sum(rank.values()) - rank.get("rank 0", 0.0) for rank in ranks]
        idle = sum(rank.get("wait", 0.0) for rank in ranks) / max(sum(shared), 1e-9)
        lines.append(f"idle in shared work {idle:9.1%}")
    return lines
