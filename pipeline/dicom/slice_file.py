"""Opening the file of a slice: reasons to refuse it, and whether it changed during a run."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.model import Slice
from utils import RunError, printable

if TYPE_CHECKING:
    from pydicom import Dataset

    #: The elements of a header by keyword.
    Header = Mapping[str, Any] | Dataset

#: Kind of what `--bad-files` is about.
BAD = "bad file"
MAX_FILE_BYTES = 64 << 20


class BadFile(RunError):
    """A file that cannot be used, and why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.reason}"


def too_large(file: str, found: str, most: str) -> BadFile:
    return BadFile(file, f"{found} exceeds the limit; wanted: at most {most}")


def refusal(file: str, found: str, expected: str) -> BadFile:
    return BadFile(file, f"{found}; wanted: {expected}")


@contextlib.contextmanager
def opened(root: str, file: str) -> Iterator[io.FileIO]:
    """Open a slice for reading; turn errors of the system into a `BadFile`."""

    def without_waiting(path: str, flags: int) -> int:  # for the writer of a FIFO
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(os.path.join(root, file), "rb", buffering=0, opener=without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise refusal(file, "is no regular file", "a CT slice")
            yield stream
    except OSError as error:
        raise BadFile(file, f"cannot be read: {error.strerror}") from None


def stamp_of(stream: io.FileIO) -> tuple[int, int, int]:
    """Return size, modification time and status change time of an open file, ns.

    The status change time (ctime) also reveals a rewritten file whose modification time was set
    back, as nothing can set it; new access rights or hard links change it, too, which seldom
    happens during a run. It comes from the file server, so all hosts see the same. The inode number
    is left out: some network file systems number files anew on every host or mount.
    """
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def opened_unchanged(root: str, one: Slice) -> Iterator[io.FileIO]:
    """Open a slice for its pixels, and check that no byte changed since its header was read.

    Raises
    ------
    RunError
        It changed. Not a `BadFile`, which a run may leave out: what was read before is wrong, too.
    """

    def check(stream: io.FileIO) -> None:
        if stamp_of(stream) != one.stamp:
            raise RunError(
                f"{printable(one.file)}: changed while it was being used: its size, modification "
                "time or status change time is not what it was when its header was read; run again "
                "when nothing writes to the scans"
            )

    with opened(root, one.file) as stream:
        check(stream)
        yield stream
        check(stream)
