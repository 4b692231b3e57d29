"""The partial file that rank 0 has created, as other ranks see it and write to it."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from dataclasses import dataclass, field

from ctpatches.files import Offset, named_errors, write_at
from ctpatches.permutation import Permutation
from ctpatches.schema import REST_BYTES
from pipeline.config import Config
from pipeline.mpi.ranks import Ranks
from utils import RunError, quoted

#: File systems whose clients cache a file without regard to what other hosts write to it: see "Data
#: and metadata coherence" in nfs(5), "Cache coherency" in mount.cifs(8).
INCOHERENT = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs")


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a partial file lie; all that a rank needs to write blocks."""

    path: str
    #: First byte, and bytes per row, of every dataset that blocks are written to, in their order.
    rows: dict[str, tuple[int, int]]
    #: First byte of the checksum of the header.
    checksum: int
    #: Of the rows of patches, in a shuffled file.
    shuffle: Permutation | None = None
    #: Random bytes that the file has in place of its checksum until it is complete: a rank that
    #: reads them sees the file of rank 0. Device numbers differ between hosts.
    token: bytes = field(default_factory=functools.partial(secrets.token_bytes, REST_BYTES))


class PartialFile:
    """The partial file of rank 0, open on another rank."""

    def __init__(self, layout: Layout) -> None:
        """Raises OSError if this rank does not see the file that rank 0 has created."""
        self.path = layout.path
        self.descriptor = os.open(layout.path, os.O_RDWR)
        if os.pread(self.descriptor, REST_BYTES, layout.checksum) != layout.token:
            os.close(self.descriptor)
            raise FileNotFoundError(layout.path)

    def write(self, offset: Offset, data: memoryview) -> None:
        """Write all of `data` there."""
        with named_errors(self.path):
            write_at(self.descriptor, data, offset)

    def sync(self) -> None:
        """Bring what this host has written to the disk."""
        with named_errors(self.path):
            os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file; rank 0 removes or renames it."""
        os.close(self.descriptor)


def open_partial(layout: Layout, config: Config, ranks: Ranks) -> PartialFile | None:
    """Open a file that this rank writes to itself; None where its bytes go through rank 0.

    Raises RunError unless `--hand-over` can be followed.
    """
    direct = config.hand_over == "direct"
    kind = file_system(layout.path) if direct and not ranks.one_host else ""
    if kind in INCOHERENT:
        raise RunError(
            f"{quoted(layout.path)} is on {kind}, which may lose what several hosts write to "
            "one file; use --hand-over auto, or a parallel file system"
        )
    beside = config.hand_over == "auto" and ranks.beside_root and config.compression == "none"
    if ranks.rank and (direct or beside):
        with contextlib.suppress(OSError):
            return PartialFile(layout)
        if direct:
            raise RunError(
                f"{quoted(layout.path)} cannot be opened, or is not the file that rank 0 has "
                "created; --hand-over direct expects a file system that all hosts share: without "
                "one, use --hand-over auto"
            )
    return None


def file_system(path: str) -> str:
    """Return the type of the file system of a file, as mount(8) names it; '' if unknown."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}".encode()
        for fields in map(bytes.split, mounts):
            if fields[2] == number:
                return fields[fields.index(b"-") + 1].decode()
    return ""
