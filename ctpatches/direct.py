"""Reading parts of a file by its descriptor, past HDF5.

Not through a memory map: from disk a map reads seven times the bytes, because the kernel reads
around every page fault, and a file that is truncated, or lost on a network disk, ends the process
with a bus error where `preadv` raises.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
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


@functools.cache
def fits_in_memory(size: int) -> bool:
    """Return whether so many bytes fit into the memory that this process may use.

    That of the machine, or less where a batch system or a container limits it: by the control group
    of the process, in version 1 or 2, or by a group around it.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            group = PurePosixPath(line.split(":", 2)[2])
            for place in (group, *group.parents):
                for name in (f"memory{place}/memory.limit_in_bytes", f"{place}/memory.max"):
                    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                        limits.append(int(Path(f"/sys/fs/cgroup/{name}").read_text("utf-8")))
    return size <= min(limits)


def request(descriptor: int, starts: Sequence[int], sizes: Sequence[int]) -> None:
    """Have the system read ranges of bytes into its memory, without waiting for them."""
    if hasattr(os, "posix_fadvise"):
        for start, size in zip(starts, sizes, strict=True):
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


def read_runs(
    path: str, descriptor: int, starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[memoryview]:
    """Yield runs of bytes, each in memory that is used again for the next one."""
    memory = memoryview(bytearray(max(sizes, default=0)))
    for at, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if at % READ_AHEAD == 0:
            group = slice(at, at + READ_AHEAD)
            request(descriptor, starts[group], sizes[group])
        if os.preadv(descriptor, [memory[:size]], start) != size:
            raise OSError(f"{path!r} ends before byte {start + size}: it was truncated")
        yield memory
