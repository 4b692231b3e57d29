"""Reading parts of a file by its descriptor, past HDF5.

Not through a memory map: from disk a map reads seven times the bytes, because the kernel reads
around every page fault, and a file that is truncated, or lost on a network disk, ends the process
with a bus error where `preadv` raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

#: Whether this system can.
POSSIBLE = hasattr(os, "preadv")
#: Runs that are requested before the first of them is read: a disk is several times as fast with
#: many requests at once. A batch has about as many, and they are far fewer than fit into memory.
READ_AHEAD = 128


def read_runs(
    path: str, descriptor: int, starts: Sequence[int], buffers: Sequence[Any]
) -> Iterator[Any]:
    """Fill buffers with the bytes of a file from some places on, and yield each when it is full."""
    for at, (start, buffer) in enumerate(zip(starts, buffers, strict=True)):
        if at % READ_AHEAD == 0 and hasattr(os, "posix_fadvise"):
            group = slice(at, at + READ_AHEAD)
            for one, other in zip(starts[group], buffers[group], strict=True):
                os.posix_fadvise(descriptor, one, other.nbytes, os.POSIX_FADV_WILLNEED)
        if os.preadv(descriptor, [buffer], start) != buffer.nbytes:
            raise OSError(f"{path!r} ends before byte {start + buffer.nbytes}: it was truncated")
        yield buffer
