"""How far a run has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

#: Seconds between two lines where there is no terminal.
INTERVAL_S = 10.0


class Progress:
    """How far one step, such as ``planning``, has come with all pairs; on rank 0."""

    def __init__(self, what: str, pairs: int, quiet: bool) -> None:
        self.what, self.pairs, self.quiet = what, pairs, quiet
        self.done = self.bytes = 0
        self.begin = self.printed = time.monotonic()
        self.bar: tqdm | None = None
        if pairs and not quiet and sys.stderr and sys.stderr.isatty():
            self.bar = tqdm(
                total=pairs, desc=what, unit=" pairs", dynamic_ncols=True, mininterval=0.2
            )

    def advance(self, size: int = 0) -> None:
        """Count one more pair, and the bytes of its patches."""
        self.done += 1
        self.bytes += size
        now = time.monotonic()
        rate = f"{self.bytes / 1e6 / max(now - self.begin, 1e-9):.0f} MB/s" if self.bytes else ""
        if self.bar:
            self.bar.set_postfix_str(rate, refresh=False)
            self.bar.update()
        elif not self.quiet and now - self.printed >= INTERVAL_S:
            self.printed = now
            left = (now - self.begin) / self.done * (self.pairs - self.done)
            done = f"{self.what}: {self.done} of {self.pairs} pairs{rate and ', '}{rate}"
            print(f"{done}, {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar:
            self.bar.close()
