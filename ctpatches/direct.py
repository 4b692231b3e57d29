"""Reading parts of a file by its descriptor, past HDF5.

Not through a memory map: from disk a map reads seven times the bytes, because the kernel reads
around every page fault, and a file that is truncated, or lost on a network disk, ends the process
with a bus error where `preadv` raises.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Whether this system can.
POSSIBLE = hasattr(os, "preadv")
#: Runs that are requested before the first of them is read: a disk is several times as fast with
#: many requests at once. A batch has about as many, and they are far fewer than fit into memory.
READ_AHEAD = 128


def read_rows(
    path: str, descriptor: int, offset: int, rows: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Read rows of a contiguous dataset that begins at `offset` into `out`, in any order."""
    width = out.itemsize * math.prod(out.shape[1:])
    raw = out.reshape(-1).view(np.uint8).data
    for at, row in enumerate(rows.tolist()):
        piece = raw[at * width : (at + 1) * width]
        if os.preadv(descriptor, [piece], offset + row * width) != width:
            raise OSError(f"{path!r} ends before patch {row}: it was truncated")


def read_runs(
    path: str, descriptor: int, starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[memoryview]:
    """Yield runs of bytes, each in memory that is used again for the next one."""
    memory = memoryview(bytearray(max(sizes, default=0)))
    for at, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if at % READ_AHEAD == 0 and hasattr(os, "posix_fadvise"):
            group = slice(at, at + READ_AHEAD)
            for one, n in zip(starts[group], sizes[group], strict=True):
                os.posix_fadvise(descriptor, one, n, os.POSIX_FADV_WILLNEED)
        if os.preadv(descriptor, [memory[:size]], start) != size:
            raise OSError(f"{path!r} ends before byte {start + size}: it was truncated")
        yield memory
