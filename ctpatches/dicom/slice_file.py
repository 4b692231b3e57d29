"""A slice and its file: reasons to refuse it, opening it, and whether it changed during a run."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ctpatches.files import Invalid, open_regular
from ctpatches.messages import RunError, printable, quoted

MAX_FILE_BYTES = 64 << 20

#: Size, modification time and status change time (ctime) of a file, ns.
#:
#: The latter also reveals a rewritten file whose modification time was set back, as nothing can set
#: it; new access rights or hard links change it, too, which seldom happens during a run. It comes
#: from the file server, so all hosts see the same. The inode number is left out: some network file
#: systems number files anew on every host or mount.
Stamp: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Slice:
    """The header of one CT slice; no pixels."""

    file: str  # path below the input folder, with / between its parts
    rows: int
    columns: int
    position_mm: float | None  # along the slice normal, from Image Position (Patient) (0020,0032)
    in_plane_mm: tuple[float, ...]  # the same along the row and the column direction
    orientation: tuple[float, ...]  # six direction cosines (0020,0037)
    spacing_mm: tuple[float, ...]  # Pixel Spacing (0028,0030): between rows, between columns
    thickness_mm: float | None
    instance: int | None  # Instance Number (0020,0013)
    slope: float  # HU = slope * stored value + intercept (0028,1053), (0028,1052)
    intercept: float
    pixel_offset: int | None  # byte at which native pixels begin; None where they must be decoded
    dtype: str  # of native stored values, such as '<u2'
    bits_stored: int
    padding: tuple[int, int] | None = None  # lowest, highest stored value (0028,0120), (0028,0121)
    persons: tuple[str, ...] = ()  # digests of what identifies the person; empty in a `Pair`
    stamp: Stamp = (0, 0, 0)
    kernel: str = ""
    exposure_mas: float | None = None
    ctdi_mgy: float | None = None


class BadFile(RunError):
    """A file that cannot be used, and why; its name is added where it was opened or decoded."""

    def __init__(self, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.reason, self.file = reason, file

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.reason}"


def require(condition: bool, found: str, expected: object) -> None:
    if not condition:
        raise BadFile(f"{found}; expected: {expected}")


@contextlib.contextmanager
def opened(root: str, file: str) -> Iterator[tuple[int, Stamp]]:
    """Open a slice, yield its descriptor and stamp; errors of the system become a `BadFile`."""
    try:
        descriptor = open_regular(os.path.join(root, file))
        try:
            yield descriptor, _stamp_of(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", file) from None
    except Invalid as error:
        raise BadFile(f"{error.reason}; expected: a CT slice", file) from None
    except BadFile as error:
        error.file = file
        raise


@contextlib.contextmanager
def parsing(file: str, problem: str) -> Iterator[None]:
    """Turn whatever a parser or a decoder meets in a damaged file into a `BadFile`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many files break rules where it does not matter here
            yield
    except BadFile as error:
        error.file = file
        raise
    except Exception as error:
        # Its words stay out: they may quote any tag, names among them.
        raise BadFile(f"{problem} ({type(error).__name__})", file) from None


def check_size(size: int) -> None:
    """Refuse a file that is too large to be read whole."""
    found = f"{size} bytes exceeds the limit"
    require(size <= MAX_FILE_BYTES, found, f"at most {MAX_FILE_BYTES}")


def _stamp_of(descriptor: int) -> Stamp:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_part(root: str, one: Slice, offset: int, size: int) -> bytes:
    """Return `size` bytes of a slice's file.

    Raises `RunError` if the file changed since its header was read: not a `BadFile`, which a run
    may leave out, as what was read before is wrong, too.
    """
    with opened(root, one.file) as (descriptor, stamp):
        data = os.pread(descriptor, size, offset)
        if not stamp == one.stamp == _stamp_of(descriptor):
            raise RunError(
                f"{printable(one.file)}: changed while it was being used: its size, modification "
                "time or status change time is not what it was when its header was read; run again "
                "when nothing writes to the scans"
            )
        require(len(data) == size, f"only {len(data)} bytes could be read", size)
    return data


def check_position(one: Slice, position_mm: float) -> None:
    """Refuse a slice that does not lie at the position of a pair, where both are known."""
    # The tolerance is that of input and target of a pair, see `pairing.tolerance_mm`.
    near = max(0.01, 0.1 * (one.thickness_mm or 0))
    if one.position_mm is not None and abs(one.position_mm - position_mm) > near:
        raise RunError(
            f"{quoted(one.file)} lies at {one.position_mm:g} mm, the pair at {position_mm:g} mm; "
            "expected: the slice that the patches were cut from"
        )
