"""Opening the file of a slice: reasons to refuse it, and whether it changed during a run."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from pipeline.model import Slice
from utils import RunError, printable

#: Kind of what `--bad-files` is about.
BAD = "bad file"
MAX_FILE_BYTES = 64 << 20


class BadFile(RunError):
    """A file that cannot be used, and why; its name is added where it was opened or decoded."""

    def __init__(self, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.reason, self.file = reason, file

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.reason}"


def refusal(found: str, expected: object) -> BadFile:
    return BadFile(f"{found}; expected: {expected}")


def require(condition: bool, found: str, expected: object) -> None:
    if not condition:
        raise refusal(found, expected)


@contextlib.contextmanager
def opened(root: str, file: str) -> Iterator[int]:
    """Open a slice and yield its file descriptor; errors of the system become a `BadFile`."""
    try:
        # Without waiting for the writer of a FIFO.
        descriptor = os.open(os.path.join(root, file), os.O_RDONLY | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            require(regular, "is not a regular file", "a CT slice")
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", file) from None
    except BadFile as error:
        error.file = file
        raise


def stamp_of(descriptor: int) -> tuple[int, int, int]:
    """Return size, modification time and status change time of an open file, ns.

    The status change time (ctime) also reveals a rewritten file whose modification time was set
    back, as nothing can set it; new access rights or hard links change it, too, which seldom
    happens during a run. It comes from the file server, so all hosts see the same. The inode number
    is left out: some network file systems number files anew on every host or mount.
    """
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_parts(root: str, one: Slice, offsets: Sequence[int], size: int) -> bytes:
    """Return `size` bytes of a slice's file from each offset.

    Raises `RunError` if the file changed since its header was read: not a `BadFile`, which a run
    may leave out, as what was read before is wrong, too.
    """
    with opened(root, one.file) as descriptor:
        stamps = [stamp_of(descriptor)]
        data = b"".join(os.pread(descriptor, size, offset) for offset in offsets)
        stamps.append(stamp_of(descriptor))
        if stamps != [one.stamp, one.stamp]:
            raise RunError(
                f"{printable(one.file)}: changed while it was being used: its size, modification "
                "time or status change time is not what it was when its header was read; run again "
                "when nothing writes to the scans"
            )
        expected = len(offsets) * size
        require(len(data) == expected, f"only {len(data)} bytes could be read", expected)
    return data
