#!/usr/bin/env python3
"""Uses all free memory before a contestant's turn, and hands it over as the contestant needs it.

A virtual machine may give what lies idle back to its host within seconds, and memory that comes
from there costs ten times as much and more: a contestant shall pay neither for the pause before its
turn nor for the length of it. A process of its own, since the peak memory of a process counts for
what it starts.
"""

from __future__ import annotations

import contextlib
import mmap
import select
import sys
from pathlib import Path

PIECE = bytes(1 << 20)
#: Bytes that are handed over at once, and that are kept free: not many, since what is free may go
#: back to the host at any moment.
PART, FREE = 16 << 20, 384 << 20
#: Seconds between two looks at what is free.
PAUSE = 0.004


def main() -> None:
    """Use all but a little, say so, and give it back part by part; end with standard input."""
    with contextlib.suppress(OSError):  # if memory gets short, this is to go first
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    parts = max(0, _free() - FREE) // PART
    with mmap.mmap(-1, max(parts, 1) * PART, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError, AttributeError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for _ in range(parts * PART // len(PIECE)):
            memory.write(PIECE)
        given = 0
        print("warm", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            more = min(max(0, FREE - _free()) // PART, parts - given)
            if more:
                memory.madvise(mmap.MADV_DONTNEED, given * PART, more * PART)
                given += more


def _free() -> int:
    """Return how many bytes hold nothing, nor a cached file; 0 where nobody tells (proc(5))."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemFree:"))
    except OSError:
        return 0
    try:
        room = Path("/sys/fs/cgroup/memory.max").read_text("ascii")
        used = Path("/sys/fs/cgroup/memory.current").read_text("ascii")
        return min(free, int(room) - int(used))
    except (OSError, ValueError):  # no group, or no limit
        return free


if __name__ == "__main__":
    main()
