"""Large pages for a file on a memory file system: Linux takes its bytes in several times as fast.

A tmpfs holds a file in pages of 4 kB, unless it is mounted otherwise. Each of them is made while a
write holds the lock of the file, so that processes which write into one file wait for each other.
Where a page of 2 MB is there already, a write has but to copy: still in its turn, but soon done.
The kernel makes one, outside that lock, for a process that asks (MADV_COLLAPSE of madvise(2), Linux
6.1 or later).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import time
from dataclasses import dataclass

#: Bytes of a large page: what a table of page tables maps on x86-64, and on ARM with pages of 4 kB.
LARGE = 2 << 20
#: Of <asm-generic/mman-common.h>; Python names none of them.
_PROT_NONE, _MAP_FIXED, _MADV_COLLAPSE = 0, 0x10, 25
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
#: Seconds that small pages take for a large one's bytes, at least: so many it may take. And how
#: many times of it may be lent, and are charged where none came.
WORTH, LENT, IN_VAIN = 0.0005, 16, 4
#: After how many pages a large one is tried again when they proved dear; then twice as many, until
#: they have been cheap for a while.
FIRST_PAUSE = 16


def has_small_pages(status: os.stat_result) -> bool:
    """Tell whether a file lies on a memory file system that holds files in small pages."""
    kind, options = file_system(status)
    return kind == "tmpfs" and not {"huge=always", "huge=within_size"} & set(options)


def file_system(status: os.stat_result) -> tuple[str, list[str]]:
    """Return type and options of the file system that a file lies on; '' where nobody tells."""
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            # Field 3 is the device; behind a lone dash type, source and options (proc(5)).
            fields = [line.split() for line in mounts]
    except OSError:
        return "", []
    told = [f[f.index("-") + 1 :] for f in fields if f[2] == device]
    return (told[0][0], told[0][-1].split(",")) if told else ("", [])


@dataclass
class Thrift:
    """Tells whether large pages are worth what they cost just now.

    They are not where memory is in pieces that have to be put together first, nor in a virtual
    machine that has to get it from its host again.
    """

    credit: float = WORTH * LENT
    pause: int = FIRST_PAUSE
    passed: int = 0

    def next_is_large(self) -> bool:
        """Tell whether the next page shall be a large one, and count it."""
        if self.credit >= 0:
            return True
        self.passed += 1
        if self.passed < self.pause:
            return False
        self.passed, self.pause, self.credit = 0, 2 * self.pause, 0.0
        return True

    def charge(self, seconds: float) -> None:
        """Take note of what a large page has cost."""
        self.credit = min(self.credit + WORTH - seconds, WORTH * LENT)
        if self.credit == WORTH * LENT:
            self.pause = FIRST_PAUSE


class LargePages:
    """Makes the large pages of one file, each just before something is written into it.

    Parameters
    ----------
    descriptor : int
        Of the file, open for reading and writing, in its full size.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pages = os.fstat(descriptor).st_size // LARGE
        #: Those that bytes have come for; one that was left small stays so.
        self.seen: set[int] = set()
        self.thrift = Thrift()
        #: How many this process has asked for with success.
        self.made = 0

    def prepare(self, offset: int, data: memoryview) -> None:
        """Make the pages that bytes will be written into, as far as that pays.

        Parameters
        ----------
        offset : int
            Where they will be written.
        data : memoryview
            The bytes. Some of them are written at once: the kernel makes a page large that has been
            begun, but none from nothing.
        """
        for page in range(offset // LARGE, -(-(offset + len(data)) // LARGE)):
            if page >= self.pages or page in self.seen:
                continue
            self.seen.add(page)
            if not self.thrift.next_is_large():
                continue
            begin = time.perf_counter()
            start = max(offset, page * LARGE)
            os.pwrite(self.descriptor, data[start - offset : start - offset + 1], start)
            done = _make_large(self.descriptor, page * LARGE)
            self.made += done
            self.thrift.charge(time.perf_counter() - begin if done else WORTH * IN_VAIN)

    def close(self) -> None:
        """Let go of the file's memory."""
        room = _room()
        if room is not None:
            _map(room, LARGE, _PROT_NONE, _PRIVATE | _MAP_FIXED)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [size, size, number, number, number, ctypes.c_int64]
    libc.mmap.restype = size
    libc.madvise.argtypes = [size, size, number]
    return libc


def _map(
    address: int, size: int, access: int, flags: int, descriptor: int = -1, at: int = 0
) -> int | None:
    """Return where the kernel has mapped it, None where it has not."""
    mapped = int(_libc().mmap(address, size, access, flags, descriptor, at))
    return None if mapped == ctypes.c_size_t(-1).value else mapped


@functools.cache
def _room() -> int | None:
    """Reserve addresses for one large page, and return the first; the kernel wants it aligned."""
    reserved = _map(0, 2 * LARGE, _PROT_NONE, _PRIVATE)
    return None if reserved is None else -(-reserved // LARGE) * LARGE


def _make_large(descriptor: int, offset: int) -> bool:
    """Make one page of those of a file from `offset` on; tell whether it is one now."""
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
    room = _room()
    # In place of the one before: what a process has mapped of a file counts as its memory.
    if room is None or _map(room, LARGE, access, flags, descriptor, offset) is None:
        return False
    return bool(_libc().madvise(room, LARGE, _MADV_COLLAPSE) == 0)
