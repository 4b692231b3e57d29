"""Large pages for a file on a memory file system: Linux takes its bytes in several times as fast.

A tmpfs holds a file in pages of 4 kB, unless it is mounted otherwise. Each of them is made while a
write holds the lock of the file, so that processes which write into one file wait for each other.
The kernel makes one of 2 MB, outside that lock, for a process that asks (MADV_COLLAPSE of
madvise(2), Linux 6.1 or later); and what a process puts into such a page by its own addresses needs
no write at all.
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
#: Seconds that small pages take for a large one's bytes, at least: so many it may take. How many
#: times of it may be lent, and are charged at most: one page that took long, perhaps because the
#: process had to wait for its core, proves nothing. And how many are charged at least where none
#: came.
WORTH, LENT, IN_VAIN = 0.0005, 16, 4
#: How much of it every small page pays back: large ones are dear by turns, and to try them again
#: makes the small ones dearer by no more than this, as far as it is charged.
PAID_BACK = 1 / 8


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

    Attributes
    ----------
    credit : float
        Seconds that large pages may still cost beyond their worth; below 0, none is made.
    """

    credit: float = WORTH * LENT

    def next_is_large(self) -> bool:
        """Tell whether the next page shall be a large one; if not, it pays back."""
        if self.credit >= 0:
            return True
        self.credit += WORTH * PAID_BACK
        return False

    def charge(self, seconds: float) -> None:
        """Take note of what a large page has cost."""
        self.credit = min(self.credit + WORTH - min(seconds, WORTH * LENT), WORTH * LENT)


class LargePages:
    """Makes the large pages of one file, each when the first bytes come for it, and shows them.

    Parameters
    ----------
    descriptor : int
        Of the file, open for reading and writing, in its full size.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pages = os.fstat(descriptor).st_size // LARGE
        #: Whether each page that bytes have come for is large; one that was left small stays so.
        self.seen: dict[int, bool] = {}
        self.thrift = Thrift()
        #: How many this process has asked for with success.
        self.made = 0
        # Addresses for two pages: wherever a piece begins, up to LARGE bytes of it lie in them. The
        # kernel wants them aligned.
        self._reserved = _map(0, 3 * LARGE, _PROT_NONE, _PRIVATE)
        self._window = -(-(self._reserved or 0) // LARGE) * LARGE
        shown = (ctypes.c_ubyte * (2 * LARGE)).from_address(self._window)
        self._memory = memoryview(shown).cast("B")
        #: The page of the file that the window begins with.
        self._first: int | None = None

    def lend(self, offset: int, size: int) -> memoryview | None:
        """Return the file's own memory for bytes: what is put in is in the file.

        Parameters
        ----------
        offset, size : int
            Where they belong, and how many: all of them must be put in, or written if None is
            returned, for the first of each page may have been overwritten.

        Returns
        -------
        memoryview or None
            Good until the next call; None where there are small pages, or more than two.
        """
        first, end = offset // LARGE, -(-(offset + size) // LARGE)
        if end - first > 2 or not self._show(first):
            return None
        for page in range(first, end):
            if page not in self.seen:
                self.seen[page] = self._make(page, max(offset, page * LARGE))
            if not self.seen[page]:
                return None
        return self._memory[offset - first * LARGE :][:size]

    def _show(self, first: int) -> bool:
        """Let the window show two pages of the file; tell whether it does."""
        if first != self._first:
            access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
            at = first * LARGE
            # In place of those before: what a process has mapped of a file counts as its memory.
            if self._reserved and (
                _map(self._window, 2 * LARGE, access, flags, self.descriptor, at) is None
            ):
                self._reserved = None  # nobody knows what is there now
            self._first = first
        return self._reserved is not None

    def _make(self, page: int, at: int) -> bool:
        """Make a page large that the window shows, if that pays; `at` is a byte of it to begin."""
        assert self._first is not None
        if page >= self.pages or not self.thrift.next_is_large():
            return False
        begin = time.perf_counter()
        # The kernel makes a page large that has been begun, but none from nothing.
        os.pwrite(self.descriptor, b"\0", at)
        place = self._window + (page - self._first) * LARGE
        made = bool(_libc().madvise(place, LARGE, _MADV_COLLAPSE) == 0)
        self.made += made
        cost = time.perf_counter() - begin
        self.thrift.charge(cost if made else max(cost, WORTH * IN_VAIN))
        return made

    def close(self) -> None:
        """Let go of the file's memory; what was lent of it is no longer there."""
        if self._reserved:
            _libc().munmap(self._reserved, 3 * LARGE)
            self._reserved = self._first = None


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [size, size, number, number, number, ctypes.c_int64]
    libc.mmap.restype = size
    libc.munmap.argtypes = [size, size]
    libc.madvise.argtypes = [size, size, number]
    return libc


def _map(
    address: int, size: int, access: int, flags: int, descriptor: int = -1, at: int = 0
) -> int | None:
    """Return where the kernel has mapped it, None where it has not."""
    mapped = int(_libc().mmap(address, size, access, flags, descriptor, at))
    return None if mapped == ctypes.c_size_t(-1).value else mapped
