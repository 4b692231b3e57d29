"""The checkpoint of a run: which job it is, and which blocks are in its partial files.

A text file beside the output, locked by the run that writes the output. It has a line for the job,
a line per pair, and a line per finished block, appended when the block has been written. Every line
ends in its CRC-32, so that a damaged tail is recognised and ignored. Nothing is synced: a block
counts only if the checksum of its bytes in the partial file is the recorded one.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.model import Plan
from utils import Affine, printable


@dataclass(frozen=True)
class BlockRecord:
    """What is known of a pair only when its block has been written.

    Attributes
    ----------
    input_affine, target_affine : Affine
        The normalisation of the two images.
    checksum : int
        XXH3-64 of the bytes of the block.
    digests : tuple of int
        `ctpatches.checksums.pixel_digest` of the input and the target slice.
    """

    input_affine: Affine
    target_affine: Affine
    checksum: int
    digests: tuple[int, int]


@dataclass(frozen=True)
class Job:
    """What a run is to write, as far as it is known before any block is made.

    Attributes
    ----------
    configuration : str
        `Config.as_json`.
    pairs : list of str
        A line per pair: its file, its slices, its windows and the place of its block.
    fixed : str
        The normalisation of each file, where it is the same for every image; JSON.
    overwrite : bool
        Whether the run may replace outputs that exist.
    """

    configuration: str
    pairs: list[str]
    fixed: str
    overwrite: bool

    @classmethod
    def of(cls, config: Config, plans: Mapping[str, Plan]) -> Job:
        """Return the job of the plans of a run, by side."""
        pairs: list[str] = []
        for side, plan in plans.items():
            for pair, part, start in zip(plan.pairs, plan.parts, plan.starts, strict=False):
                kept = zlib.crc32(b"".join(part.kept))
                slices = f"{pair.input.file} with {pair.target.file}"
                place = f"from patch {start} of {side}" if side else f"from patch {start}"
                pairs.append(f"{slices}, windows {kept:08x} {place}")
        fixed = json.dumps([_as_hex(plan.fixed) for plan in plans.values()])
        return cls(config.as_json(), pairs, fixed, config.overwrite)

    def difference(self, now: Job) -> str:
        """Return how the job `now` differs from this one; '' if it does not."""
        if changed := configuration_difference(self.configuration, now.configuration):
            return changed
        for then_pair, now_pair in zip(self.pairs, now.pairs, strict=False):
            if then_pair != now_pair:
                return f"the input changed: it was {printable(then_pair)}, is {printable(now_pair)}"
        if len(self.pairs) != len(now.pairs):
            return f"the input changed: it was {len(self.pairs)} pairs, is {len(now.pairs)}"
        if self.fixed != now.fixed:
            return "the input changed: other pixel values, and so another normalisation"
        return ""


def configuration_difference(then: str, now: str) -> str:
    """Return how two configurations, as JSON, differ; '' if they do not."""
    old, new = json.loads(then), json.loads(now)
    names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    changes = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]
    return f"the configuration changed: {', '.join(changes)}" if changes else ""


@dataclass
class Entries:
    """The intact content of a checkpoint.

    Attributes
    ----------
    job : Job or None
        None where the checkpoint does not describe a whole job.
    done : dict of (int, int) to BlockRecord
        The finished blocks, by number of the file and of the pair in it.
    size : int
        Bytes up to the end of the last intact line.
    """

    job: Job | None = None
    done: dict[tuple[int, int], BlockRecord] = field(default_factory=dict)
    size: int = 0


class Checkpoint:
    """The checkpoint file of a run, open and locked.

    Attributes
    ----------
    path : str
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    @classmethod
    def lock(cls, path: str, exclusive: bool) -> Checkpoint | None:
        """Create or open a checkpoint and lock it; return None if another run has locked it.

        On a file system without locks nothing is locked: there `exclusive` has to do.

        Raises
        ------
        FileExistsError
            There is one, with `exclusive`.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if exclusive else 0)
        while True:
            # It holds real names, with --anonymize too: for the owner alone.
            descriptor = os.open(path, flags, 0o600)
            if not try_lock(descriptor):
                os.close(descriptor)
                return None
            if is_at(path, descriptor):
                return cls(path, descriptor)
            os.close(descriptor)  # the run that had locked it has just removed it

    def read(self) -> Entries:
        """Return the content up to the first damaged line."""
        out = Entries()
        head: dict[str, object] = {}
        pairs: list[str] = []
        for kind, *values in self._intact_lines(out):
            if kind == "job" and isinstance(values[0], dict):
                head = values[0]
            elif kind == "pair":
                pairs.append(str(values[0]))
            else:
                file, index, record = _record(values)
                out.done[file, index] = record
        if head and head.pop("pairs") == len(pairs):
            out.job = Job(pairs=pairs, **head)  # type: ignore[arg-type]
        return out

    def _intact_lines(self, out: Entries) -> Iterator[list[object]]:
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                body, _, checksum = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
                    return
                out.size += len(line)
                yield json.loads(body)

    def begin(self, job: Job) -> None:
        """Replace the content by a job without a finished block."""
        self.truncate(0)
        head = {"configuration": job.configuration, "fixed": job.fixed, "overwrite": job.overwrite}
        lines = [_line("job", head | {"pairs": len(job.pairs)})]
        self._append(b"".join([*lines, *(_line("pair", pair) for pair in job.pairs)]))

    def truncate(self, size: int) -> None:
        """Remove what follows the first `size` bytes, and append there from now on."""
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)

    def add(self, file: int, index: int, record: BlockRecord) -> None:
        """Append a finished block."""
        affines = _as_hex(record.input_affine), _as_hex(record.target_affine)
        self._append(_line("done", file, index, record.checksum, record.digests, *affines))

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self, remove: bool) -> None:
        """Unlock the checkpoint, and remove it if there is nothing to resume."""
        if remove and is_at(self.path, self._descriptor):
            os.unlink(self.path)
        os.close(self._descriptor)


def is_locked(path: str) -> bool:
    """Return whether another run has locked a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; return whether no other run has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def is_at(path: str, descriptor: int) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _line(*parts: object) -> bytes:
    body = json.dumps(parts)
    return f"{body} {zlib.crc32(body.encode()):08x}\n".encode()


def _as_hex(affine: Affine | None) -> list[str] | None:
    """Return an affine map exactly: floats as hexadecimal text."""
    return [float(v).hex() for v in (affine.offset, affine.divisor)] if affine else None


def _record(values: Sequence[object]) -> tuple[int, int, BlockRecord]:
    file, index, checksum, digests, *affines = values
    maps = [Affine(*map(float.fromhex, affine)) for affine in affines]  # type: ignore[call-overload]
    record = BlockRecord(maps[0], maps[1], int(str(checksum)), tuple(digests))  # type: ignore[arg-type]
    return int(str(file)), int(str(index)), record
