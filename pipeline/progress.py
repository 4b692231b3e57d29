"""Telling how far a run has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

#: Seconds between two lines where there is no terminal.
EVERY = 10.0


class Progress:
    """How far one step has come, on rank 0.

    Parameters
    ----------
    what : str
        The step, such as ``planning``.
    pairs : int
        All that there are.
    quiet : bool
        Say nothing.
    """

    def __init__(self, what: str, pairs: int, quiet: bool) -> None:
        self.what, self.pairs = what, pairs
        self.done = self.bytes = 0
        self.begin = self.told = time.monotonic()
        self.bar: Any = None
        self.quiet = quiet
        if not quiet and pairs and sys.stderr and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=pairs, desc=what, unit=" pairs", dynamic_ncols=True, mininterval=0.2
            )

    def advance(self, size: int = 0) -> None:
        """Take note of one more pair, and of the bytes of its patches."""
        self.done += 1
        self.bytes += size
        now = time.monotonic()
        if self.bar is not None:
            if size:
                self.bar.set_postfix_str(self._rate(now), refresh=False)
            self.bar.update()
        elif not self.quiet and now - self.told >= EVERY:
            self.told = now
            left = (now - self.begin) / self.done * (self.pairs - self.done)
            rate = f", {self._rate(now)}" if self.bytes else ""
            told = f"{self.what}: {self.done} of {self.pairs} pairs{rate}, {left:.0f} s left"
            print(told, file=sys.stderr, flush=True)

    def _rate(self, now: float) -> str:
        return f"{self.bytes / 1e6 / max(now - self.begin, 1e-9):.0f} MB/s"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
