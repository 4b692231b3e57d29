#!/usr/bin/env python3
"""Uses all free memory before a contestant's turn, and hands it over as the folder fills.

A virtual machine may give what lies idle back to its host within seconds, and memory that comes
from there costs ten times as much and more: a contestant shall pay neither for the pause before its
turn nor for the length of it. Nothing that is cached is driven out. A process of its own, since the
peak memory of a process counts for what it starts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import sys
from pathlib import Path

PIECE = bytes(1 << 20)
#: Bytes that are handed over at once; how far ahead of what the folder holds, since what is free
#: may go back to the host at any moment; and what is left free.
PART, AHEAD, LEFT = 16 << 20, 128 << 20, 256 << 20
#: Seconds between two looks at the folder.
PAUSE = 0.004


def main(folder: Path) -> None:
    """Use all that is free, say so, and give it back while the folder's file system fills.

    It ends with its standard input.
    """
    parts = max(1, (_free() - LEFT) // PART)
    with mmap.mmap(-1, parts * PART, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError, AttributeError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for _ in range(parts * PART // len(PIECE)):
            memory.write(PIECE)
        before, given = _used(folder), 0
        print("warm", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            wanted = min((_used(folder) - before + AHEAD) // PART, parts)
            if wanted > given:
                memory.madvise(mmap.MADV_DONTNEED, given * PART, (wanted - given) * PART)
                given = wanted


def _free() -> int:
    """Return how many bytes hold nothing, nor a cached file (proc(5))."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemFree:"))


def _used(folder: Path) -> int:
    system = os.statvfs(folder)
    return (system.f_blocks - system.f_bfree) * system.f_frsize


if __name__ == "__main__":
    main(Path(sys.argv[1]))
