"""Reading parts of a file by its descriptor, past HDF5.

Not through a memory map: from disk a map reads seven times the bytes, because the kernel reads
around every page fault, and a file that is truncated, or lost on a network disk, ends the process
with a bus error where `preadv` raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

#: Whether this system can.
POSSIBLE = hasattr(os, "preadv")
#: Runs that are requested before the first of them is read: a disk is several times as fast with
#: many requests at once. A batch has about as many, and they are far fewer than fit into memory.
READ_AHEAD = 128


def shared_buffers(sizes: Sequence[int]) -> list[memoryview]:
    """Return buffers in the same memory: each is valid until the next one is filled."""
    memory = memoryview(bytearray(max(sizes, default=0)))
    return [memory[:size] for size in sizes]


def read_runs(
    path: str, descriptor: int, starts: Sequence[int], buffers: Sequence[memoryview]
) -> Iterator[memoryview]:
    """Read a run of bytes from each of `starts` into a buffer, and yield it."""
    runs = list(zip(starts, buffers, strict=True))
    for at, (start, buffer) in enumerate(runs):
        if at % READ_AHEAD == 0 and hasattr(os, "posix_fadvise"):
            for first, run in runs[at : at + READ_AHEAD]:
                os.posix_fadvise(descriptor, first, run.nbytes, os.POSIX_FADV_WILLNEED)
        if os.preadv(descriptor, [buffer], start) != buffer.nbytes:
            raise OSError(f"{path!r} ends before byte {start + buffer.nbytes}: it was truncated")
        yield buffer
