"""Opening regular files for reading, and replacing files and folders as a whole."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator

#: One write(2) call writes at most 2^31 - 4096 bytes on Linux.
WRITE_BYTES = 1 << 30


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


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at that byte, however many bytes one call writes."""
    rest = memoryview(data).cast("B")
    while rest:
        done = os.pwrite(descriptor, rest[:WRITE_BYTES], offset)
        rest, offset = rest[done:], offset + done


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
