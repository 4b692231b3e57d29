#!/usr/bin/env python3
"""Uses memory once before a contestant's turn, and hands it over as the contestant fills a folder.

A virtual machine may give what lies idle back to its host within seconds, and memory that comes
from there costs ten times as much and more: a contestant shall pay neither for the pause before its
turn nor for the length of it. A process of its own, since the peak memory of a process counts for
what it starts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import sys
from pathlib import Path

PIECE = bytes(1 << 20)
#: Bytes that are handed over at once, and how far ahead of what the folder holds.
PART, AHEAD = 64 << 20, 512 << 20
#: Seconds between two looks at the folder.
PAUSE = 0.01


def main(folder: Path, size: int) -> None:
    """Use so many bytes, say so, and give them back while the folder's file system fills.

    It ends with its standard input.
    """
    parts = -(-size // PART)
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


def _used(folder: Path) -> int:
    system = os.statvfs(folder)
    return (system.f_blocks - system.f_bfree) * system.f_frsize


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
