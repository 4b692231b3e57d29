"""Opening regular files for reading, and replacing files and folders as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import TypeAlias

from ctpatches.messages import RunError, quoted

#: Where bytes are written to: at one place, or in equal parts at several.
Offset: TypeAlias = int | list[int]
#: Writes all of the data there, now or later: it must not change afterwards.
Write: TypeAlias = Callable[[Offset, memoryview], None]
#: No space on the disk, over the quota, beyond the limit on the size of a file (ulimit -f).
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Invalid(ValueError):
    """A file that is not a valid file of ctpatches; `reason` does not name it."""

    def __init__(self, path: str, reason: str = "") -> None:
        # A DataLoader creates the error again from its message alone.
        super().__init__(f"{path!r} {reason}" if reason else path)
        self.reason = reason


def open_regular(path: str) -> int:
    """Return a descriptor of a regular file; on a pipe it does not wait."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(path, "is not a regular file")
    return descriptor


def write_at(descriptor: int, data: bytes | memoryview, offset: Offset) -> None:
    """Write all of `data` there, however many bytes one call writes."""
    data = memoryview(data).cast("B")
    offsets = offset if isinstance(offset, list) else [offset]
    width = len(data) // len(offsets)
    for part, at in enumerate(offsets):
        rest = data[part * width : (part + 1) * width]
        while rest:
            done = os.pwrite(descriptor, rest, at)
            rest, at = rest[done:], at + done  # noqa: PLW2901


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn an error of the system or of HDF5 into one line that names the file."""
    try:
        yield
    except OSError as error:
        problem = "no space left for" if error.errno in NO_SPACE else "cannot write"
        reason = error.strerror or str(error).split("\n")[0]
        raise RunError(f"{problem} {quoted(path)}: {reason}") from error


def sync_folder(path: str) -> None:
    """Bring what was renamed in the folder of a file to the disk."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def reserve(descriptor: int, size: int) -> None:
    """Reserve the space of a file, if the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a temporary name to write to, and rename that file to `path` afterwards."""
    partial = f"{os.fspath(path)}.partial"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


@contextlib.contextmanager
def atomic_folder(path: str) -> Iterator[str]:
    """Yield a temporary folder to write to, which replaces the folder `path` afterwards."""
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}.partial-") as temporary:
        new = os.path.join(temporary, "new")
        os.mkdir(new)  # with the usual permissions, which the temporary folder lacks
        yield new
        if os.path.isdir(path):
            os.rename(path, os.path.join(temporary, "old"))
        os.rename(new, path)
