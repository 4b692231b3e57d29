"""What of a run is safely on the disk, so that a run that was ended can go on.

A text file beside the partial file: a line for the configuration, a line for each pair that the
partial file is made for, and then a line for each finished block, written only when the block's
bytes are on the disk. Every line ends in a checksum, so one that was cut short is told from a whole
one.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from utils import Affine, RunError, quoted, shown

ENDING = ".journal"
#: What the name of a journal ends in until it is whole.
NEW = ".new"


@dataclass(frozen=True)
class Written:
    """What is known of a pair only when its block has been written."""

    input_affine: Affine
    target_affine: Affine
    checksum: int


@dataclass
class Entries:
    """What a journal says.

    Attributes
    ----------
    configuration : str
        As JSON.
    pairs : list of str
        What each pair was when the partial file was made.
    done : dict of int to Written
        The finished blocks, by number of their pair.
    whole : int
        Bytes up to the end of the last whole line.
    """

    configuration: str = ""
    pairs: list[str] = field(default_factory=list)
    done: dict[int, Written] = field(default_factory=dict)
    whole: int = 0


def _line(*parts: object) -> bytes:
    body = json.dumps(parts)
    return f"{body} {zlib.crc32(body.encode()):08x}\n".encode()


def begin(path: str, configuration: str, pairs: Iterable[str]) -> None:
    """Make a journal in which no block is finished yet, and have it on the disk."""
    # Under another name first: a journal that is there tells of all pairs.
    new = path + NEW
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    # It has real names, with --anonymize too: for the owner alone.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(_line("configuration", configuration))
        file.writelines(_line("pair", pair) for pair in pairs)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _whole_lines(path: str, out: Entries) -> Iterator[list[object]]:
    with open(path, "rb") as file:
        for line in file:
            body, _, checksum = line.rstrip(b"\n").rpartition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
                return
            out.whole += len(line)
            yield json.loads(body)


def read(path: str) -> Entries:
    """Read a journal up to its last whole line."""
    out = Entries()
    for kind, *values in _whole_lines(path, out):
        if kind == "configuration":
            out.configuration = str(values[0])
        elif kind == "pair":
            out.pairs.append(str(values[0]))
        else:
            index, checksum = int(str(values[0])), int(str(values[1]))
            offset_in, divisor_in, offset, divisor = (float.fromhex(str(v)) for v in values[2:])
            affines = Affine(offset_in, divisor_in), Affine(offset, divisor)
            out.done[index] = Written(*affines, checksum)
    return out


def difference(entries: Entries, configuration: str, pairs: Sequence[str]) -> str:
    """Return in what this job differs from the one of the journal; '' if in nothing."""
    if entries.configuration != configuration:
        then, now = json.loads(entries.configuration or "{}"), json.loads(configuration)
        names = sorted(n for n in {*then, *now} if then.get(n) != now.get(n))
        told = (f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in names)
        return f"the configuration changed: {', '.join(told)}"
    for then_pair, now_pair in zip(entries.pairs, pairs, strict=False):
        if then_pair != now_pair:
            return f"the input changed: it was {shown(then_pair)}, is {shown(now_pair)}"
    if len(entries.pairs) != len(pairs):
        return f"the input changed: it was {len(entries.pairs)} pairs, is {len(pairs)}"
    return ""


class Journal:
    """Takes note of finished blocks, and writes the note when their bytes are on the disk.

    A thread of its own waits for the disk now and then, so that the work need not.

    Parameters
    ----------
    path : str
        The journal; `begin` has made it.
    data : str
        The partial file.
    seconds : float
        How often.
    whole : int
        Where to go on in the journal; what lies behind was cut short.
    """

    def __init__(self, path: str, data: str, seconds: float, whole: int) -> None:
        self.path = path
        self.file = open(path, "r+b")  # noqa: SIM115 - open as long as the journal is
        self.file.truncate(whole)
        self.file.seek(whole)
        self.data = os.open(data, os.O_RDONLY)
        self.seconds = seconds
        self.pending: list[tuple[int, Written]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.error: OSError | None = None
        self.thread = threading.Thread(target=self._keep_up, name="journal", daemon=True)
        self.thread.start()

    def note(self, index: int, written: Written) -> None:
        """Take note of a finished block.

        Raises
        ------
        RunError
            The disk failed since.
        """
        self.check()
        with self.lock:
            self.pending.append((index, written))

    def check(self) -> None:
        """Raise RunError if the disk has failed."""
        if self.error:
            reason = self.error.strerror
            raise RunError(f"cannot write {quoted(self.path)}: {reason}") from self.error

    def _keep_up(self) -> None:
        while not self.closing.wait(self.seconds):
            self._write()

    def _write(self) -> None:
        with self.lock:
            ready, self.pending = self.pending, []
        if not ready or self.error:
            return
        try:
            os.fdatasync(self.data)
            for index, one in ready:
                figures = (
                    figure.hex()
                    for affine in (one.input_affine, one.target_affine)
                    for figure in (float(affine.offset), float(affine.divisor))
                )
                self.file.write(_line("done", index, one.checksum, *figures))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """End the thread, and write what is still to be noted; `check` tells whether it could."""
        self.closing.set()
        self.thread.join()
        self._write()
        try:
            self.file.close()
        except OSError as error:  # it tries once more to write what could not be written
            self.error = self.error or error
        os.close(self.data)
