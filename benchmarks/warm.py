#!/usr/bin/env python3
"""Uses all free memory before a contestant's turn, and hands it over as the contestant needs it.

A virtual machine may give what lies idle back to its host within seconds, and memory that comes
from there costs ten times as much and more: a contestant shall pay neither for the pause before its
turn nor for the length of it. A process of its own, since the peak memory of a process counts for
what it starts: `warm.py [FOLDER ...]`, with the folders that will be read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

#: Bytes that are handed over at once, that are left free at first, and that are kept free then: not
#: many, since what is free may go back to the host, but enough for the kernel to drop no file.
PART, LEFT, FREE = 8 << 20, 384 << 20, 256 << 20
#: So many of them in whole large pages: after hours of use the rest is in smaller pieces.
LARGE, FREE_LARGE = 2 << 20, 96 << 20
#: Seconds between two looks at what is free: on a machine whose cores are all at work, each look
#: takes from the contestant.
PAUSE = 0.008
#: Linux offers its host free memory, large pages of it, two seconds after some got free
#: (PAGE_REPORTING_DELAY in mm/page_reporting.c). Just then there is none to be had, and what there
#: is comes back cold: no turn begins with that still to come.
REST = 2.5
#: What contestants load. The kernel drops cached files when memory gets short.
LOADS = """
import cv2, h5py, mpi4py, numpy.random, pydicom, xxhash
mpi4py.rc.initialize = False
import mpi4py.MPI
"""


def main() -> None:
    """Use all but a little, say so, and give it back part by part; end with standard input."""
    with contextlib.suppress(OSError):  # if memory gets short, this is to go first
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    try:
        told = os.open("/proc/meminfo", os.O_RDONLY)
        pieces = os.open("/proc/buddyinfo", os.O_RDONLY)
    except OSError:  # no Linux: nothing is kept warm
        print("warm", flush=True)
        sys.stdin.read()
        return
    parts = max(0, min(_free(told) + _kept_aside(), _room_of_group()) - LEFT) // PART
    with mmap.mmap(-1, max(parts, 1) * PART, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError, AttributeError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        zeros = bytes(PART)
        for _ in range(parts):
            memory.write(zeros)
        given = 0
        _read_again(map(Path, sys.argv[1:]))
        time.sleep(REST)
        print("warm", flush=True)
        pause = 0.0
        while not select.select([sys.stdin], [], [], pause)[0]:
            missing = max(FREE - _free(told), FREE_LARGE - _free_large(pieces), 0)
            more = min(-(-missing // PART), parts - given)
            pause = 0.0 if more else PAUSE  # that part may not have been in large pages
            if more:
                memory.madvise(mmap.MADV_DONTNEED, given * PART, more * PART)
                given += more


def _read_again(folders: Iterable[Path]) -> None:
    """Have the kernel cache what the contestants load and read."""
    subprocess.run([sys.executable, "-c", LOADS], stderr=subprocess.DEVNULL, check=False)
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()


def _free(told: int) -> int:
    """Return how many bytes hold nothing, nor a cached file (proc(5))."""
    found = re.search(rb"MemFree: *(\d+) kB", os.pread(told, 200, 0))
    assert found
    return int(found[1]) << 10


def _kept_aside() -> int:
    """Return how many bytes more the cores keep for themselves of what was freed on them (proc(5)).

    It may be a gigabyte, which comes back in pieces as soon as memory gets short.
    """
    counts = re.findall(r"\n +count: +(\d+)", Path("/proc/zoneinfo").read_text("ascii"))
    return sum(map(int, counts)) * mmap.PAGESIZE


def _free_large(pieces: int) -> int:
    """Return how many free bytes are in large pages (proc(5): pieces of 1, 2, 4, ... pages)."""
    total = 0
    for zone in os.pread(pieces, 1 << 16, 0).splitlines():
        if b" DMA " not in zone:  # which is kept for who can use no other
            for order, number in enumerate(zone.split()[4:]):
                size = mmap.PAGESIZE << order
                total += int(number) * size if size >= LARGE else 0
    return total


def _room_of_group() -> int:
    """Return how many bytes this control group may still use."""
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text("ascii")
        return int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
    except (OSError, ValueError):  # no group, or no limit
        return sys.maxsize


if __name__ == "__main__":
    main()
