"""The checkpoint of a run: which job it is, and which blocks are in its partial files.

A text file beside the output, locked by the run that writes the output: a line for the job, and a
line for every block, appended when the block has been written. Every line ends in its CRC-32, so
that a damaged tail is recognised and ignored. Nothing is synced: a block counts only if the
checksum of its bytes in the partial file is the recorded one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctpatches.schema import decoded
from pipeline.config import Config
from pipeline.model import Plan
from utils import Affine, RunError, printable, quoted


@dataclass(frozen=True)
class BlockRecord:
    """What is known of a pair only when its block has been written."""

    input_affine: Affine
    target_affine: Affine
    #: XXH3-64 of the bytes of the block.
    checksum: int
    #: `ctpatches.checksums.pixel_digest` of the input and the target slice.
    digests: tuple[int, int]


def job_of(config: Config, plans: Mapping[str, Plan]) -> dict[str, Any]:
    """Return what a run is to write, by what decides the bytes of its blocks; for JSON."""
    pairs = []
    for subset, plan in plans.items():
        for pair, part, start in zip(plan.pairs, plan.parts, plan.starts, strict=False):
            windows = f"windows {zlib.crc32(b''.join(part.kept)):08x} from patch {start}"
            place = f"{windows} of {subset}" if subset else windows
            pairs.append(f"{pair.input.file} with {pair.target.file}, {place}")
    fixed = [dataclasses.astuple(plan.fixed) for plan in plans.values() if plan.fixed]
    return {"configuration": config.as_json(), "pairs": pairs, "normalisation": fixed}


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how the job of an earlier run differs from that of this run; '' if it does not.

    Both have the configuration as JSON, and lists of what else has to be the same.
    """
    old, new = json.loads(then["configuration"]), json.loads(now["configuration"])
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        changes = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]
        return f"the configuration changed: {', '.join(changes)}"
    for name in [name for name in now if name != "configuration"]:
        for values in zip(then[name], now[name], strict=False):
            was, value = (printable(decoded(v) if isinstance(v, bytes) else v) for v in values)
            if was != value:
                return f"the input changed: {name} was {was}, is {value}"
        if len(then[name]) != len(now[name]):
            rows = "files left out" if name.startswith("left_out") else "pairs"
            return f"the input changed: it was {len(then[name])} {rows}, is {len(now[name])}"
    return ""


def changed_pixels(plan: Plan, digests: Mapping[int, tuple[int, ...]]) -> str:
    """Return which slice no longer has the digest recorded for its pair; '' if all have."""
    for index, recorded in digests.items():
        now = plan.digests[index]
        if recorded != now:
            pair = plan.pairs[index]
            one = pair.target if recorded[:1] == now[:1] else pair.input
            return f"the input changed: other pixel values in {printable(one.file)}"
    return ""


class Checkpoint:
    """The checkpoint file of a run, open and locked.

    On a file system without locks nothing is locked, and only `exclusive` keeps two runs apart.
    """

    def __init__(self, path: str, exclusive: bool) -> None:
        self.path = path
        self._intact_bytes = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if exclusive else 0)
        while True:
            try:
                # It contains real names, with --anonymize too: readable by the owner alone.
                self._descriptor = os.open(path, flags, 0o600)
            except FileExistsError:
                raise being_written(path) from None
            if not try_lock(self._descriptor):
                os.close(self._descriptor)
                raise being_written(path)
            if is_at(path, self._descriptor):
                break
            os.close(self._descriptor)  # the run that had locked it has just removed it

    def read(self) -> tuple[dict[str, Any], dict[int, dict[int, BlockRecord]]]:
        """Return the job, empty if there is none, and by number of file and pair the blocks."""
        job: dict[str, Any] = {}
        done: dict[int, dict[int, BlockRecord]] = defaultdict(dict)
        for content in self._intact_lines():
            if not job:
                job = content
                continue
            file, index, input_affine, target_affine, checksum, digests = content
            affines = Affine(*input_affine), Affine(*target_affine)
            done[file][index] = BlockRecord(*affines, checksum, tuple(digests))
        return job, done

    def _intact_lines(self) -> Iterator[Any]:
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                body, _, checksum = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
                    return
                self._intact_bytes += len(line)
                yield json.loads(body)[1]

    def begin(self, job: Mapping[str, Any]) -> None:
        """Replace the content by a job without a finished block."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._append("job", job)

    def resume(self) -> None:
        """Append behind what has been read from now on; a damaged tail is removed."""
        os.ftruncate(self._descriptor, self._intact_bytes)
        os.lseek(self._descriptor, self._intact_bytes, os.SEEK_SET)

    def add(self, file: int, index: int, record: BlockRecord) -> None:
        """Append a finished block."""
        self._append("done", [file, index, *dataclasses.astuple(record)])

    def _append(self, kind: str, content: object) -> None:
        body = json.dumps((kind, content))
        data = f"{body} {zlib.crc32(body.encode()):08x}\n".encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self, remove: bool) -> None:
        """Unlock the checkpoint, and remove it, if only because it is empty."""
        remove |= not os.fstat(self._descriptor).st_size
        if remove and is_at(self.path, self._descriptor):
            os.unlink(self.path)
        os.close(self._descriptor)


def being_written(path: str) -> RunError:
    """Return the error that another run has locked a file."""
    return RunError(f"{quoted(path)}: another run is writing it")


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
