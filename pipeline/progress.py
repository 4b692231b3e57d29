"""How far a run has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from pipeline.mpi.terminal import open_terminal

#: Seconds until the first line where there is no terminal, and between two lines.
FIRST_S, INTERVAL_S = 0.2, 10.0
#: There is no line where fewer seconds are left: short runs print none at all.
MIN_LEFT_S = 2.0


class Progress:
    """How far one step, such as ``planning``, has come with all pairs; on rank 0."""

    def __init__(self, what: str, total: int, quiet: bool, unit: str = "pairs") -> None:
        self.what, self.total, self.quiet, self.unit = what, total, quiet, unit
        self.done = self.bytes = 0
        self.begin = time.monotonic()
        self.due = self.begin + FIRST_S
        terminal = open_terminal() if total and not quiet else None
        self.bar: tqdm | None = None
        if terminal:  # even a disabled bar would start a thread
            self.bar = tqdm(
                total=total, desc=what, unit=f" {unit}", file=terminal, dynamic_ncols=True
            )

    def advance(self, count: int = 1, size: int = 0) -> None:
        """Count what was done, and the bytes of its patches."""
        self.done += count
        self.bytes += size
        now = time.monotonic()
        seconds = max(now - self.begin, 1e-9)
        rate = f"{self.bytes / 1e6 / seconds:.0f} MB/s" if self.bytes else ""
        if self.bar:
            self.bar.set_postfix_str(rate, refresh=False)
            self.bar.update(count)
        elif not self.quiet and now >= self.due:
            left_s = seconds / self.done * (self.total - self.done)
            if left_s >= MIN_LEFT_S:
                self.due = now + INTERVAL_S
                done = f"{self.what}: {self.done} of {self.total} {self.unit}"
                rates = f"{self.done / seconds:.1f} {self.unit}/s{rate and ', '}{rate}"
                left = tqdm.format_interval(left_s)
                print(f"{done}, {rates}, {left} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar:
            self.bar.close()
