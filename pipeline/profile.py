"""Where the time of a run goes, by step and rank: cheap enough to be always on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

#: Seconds that this process has spent in each step so far.
spent: dict[str, float] = {}
#: The same of its other threads, all together.
spent_ahead: dict[str, float] = {}
_MAIN, _LOCK = threading.get_ident(), threading.Lock()

#: Steps in the order of the table; `wait` is for work, `rank 0` for what rank 0 does alone.
STEPS = (
    *("headers", "read", "plan", "noise", "scale", "cut", "compress", "sum"),
    *("write", "receive", "wait", "rank 0"),
)


class step:
    """Add the time spent inside to a step: `with step("read"): ...`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        _add(self.name, time.perf_counter() - self.begin)


@contextlib.contextmanager
def laps() -> Iterator[Callable[[str], None]]:
    """Divide the time spent inside among steps that alternate.

    In ``with laps() as lap`` a call of ``lap("read")`` adds what has passed since the last one.
    """
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        _add(name, now - begin)
        begin = now

    yield lap


def _add(name: str, seconds: float) -> None:
    if threading.get_ident() == _MAIN:
        spent[name] = spent.get(name, 0.0) + seconds
    else:
        with _LOCK:
            spent_ahead[name] = spent_ahead.get(name, 0.0) + seconds


def table(ranks: Sequence[dict[str, float]], ahead: dict[str, float], wall: float) -> list[str]:
    """Return a table of the seconds in each step: of every rank, and ahead in threads."""
    names = [*STEPS, *sorted({name for row in (*ranks, ahead) for name in row} - set(STEPS))]
    lines = ["seconds   " + "".join(f"{name:>9}" for name in (*names, "other", "all"))]
    rows = [(f"rank {number:<5}", rank, wall) for number, rank in enumerate(ranks)]
    if ahead:
        rows.append((f"{'ahead':10}", ahead, sum(ahead.values())))
    for title, row, whole in rows:
        seconds = [row.get(name, 0.0) for name in names]
        figures = (*seconds, max(0.0, whole - sum(seconds)), whole)
        lines.append(title + "".join(f"{figure:9.2f}" for figure in figures))
    if len(ranks) > 1:
        shared = [sum(rank.values()) - rank.get("rank 0", 0.0) for rank in ranks]
        idle = sum(rank.get("wait", 0.0) for rank in ranks) / max(sum(shared), 1e-9)
        lines.append(f"idle in shared work {idle:9.1%}")
    return lines
