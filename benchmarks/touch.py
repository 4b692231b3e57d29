#!/usr/bin/env python3
"""Uses so many bytes of memory once, in large pages where the system has them.

The first touch of memory may cost seconds where the machine is a virtual one, which gives back to
its host what lies idle for a few seconds: no contestant shall pay for the pause before its turn. A
process of its own, since the peak memory of a process counts for what it starts.
"""

from __future__ import annotations

import contextlib
import mmap
import sys

PIECE = bytes(1 << 20)


def main(size: int) -> None:
    """Touch at least that many bytes."""
    pieces = -(-size // len(PIECE))
    with mmap.mmap(-1, pieces * len(PIECE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError, AttributeError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for _ in range(pieces):
            memory.write(PIECE)


if __name__ == "__main__":
    main(int(sys.argv[1]))
