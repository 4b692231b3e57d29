"""Opening regular files for reading, and replacing them by complete ones."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator


class Invalid(ValueError):
    """A file that is not a valid file of this tool, and why."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)  # alone: so a DataLoader makes it again in another process
        self.reason = reason

    @classmethod
    def of(cls, path: str, reason: str) -> Invalid:
        """Return the error that names the file and the reason."""
        return cls(f"{path!r} {reason}", reason)


def open_regular(path: str) -> int:
    """Return a descriptor of a regular file; a pipe is not waited for."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid.of(path, "is no regular file")
    return descriptor


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a temporary name to write to, and rename the file to `path` once it is whole."""
    partial = f"{os.fspath(path)}.partial"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
