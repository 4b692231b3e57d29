"""The checkpoint of a run: which job it is, and which blocks are in its partial files.

A text file beside the output, locked by the run that writes the output: a line for the job, and a
line for every block, appended when the block has been written. Every line ends in its CRC-32, so
that a damaged tail is recognised and ignored. Nothing is synced: a block counts only if the
checksum of its bytes in the partial file is the recorded one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ctpatches.schema import decoded
from pipeline.config import OPTIONS, Config
from pipeline.model import Difference, Plan
from utils import Affine, CallError, printable, quoted

#: What a run is to write: the configuration as JSON, and lists of what decides the blocks.
Job: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class BlockRecord:
    """What is known of a pair only when its block has been written."""

    input_affine: Affine
    target_affine: Affine
    #: XXH3-64 of the bytes of the block.
    checksum: int
    #: `ctpatches.checksums.pixel_digest` of the input and the target slice.
    digests: tuple[int, int]
    difference: Difference
    #: The largest differences of pixels of the input and the target due to `--dtype`.
    rounding: tuple[float, float]


def job_of(config: Config, plans: Mapping[str, Sequence[Plan]]) -> Job:
    """Return the job of a run, and whether the run may overwrite existing outputs."""
    pairs = []
    for subset, plan in ((subset, plan) for subset, files in plans.items() for plan in files):
        of_subset = f" of {subset}" if subset else ""
        for planned in plan.pairs:
            pair, kept = planned.pair, zlib.crc32(b"".join(planned.windows.kept))
            windows = f"windows {kept:08x} from patch {planned.patches[0]}{of_subset}"
            pairs.append(f"{pair.input.file} with {pair.target.file}, {windows}")
    known = (files[0].pairs[0].fixed for files in plans.values())
    fixed = [list(dataclasses.astuple(affine)) for affine in known if affine]
    return {
        "configuration": config.as_json(),
        "pair": pairs,
        "normalisation (offset, divisor)": fixed,
        "overwrite": config.overwrite,
    }


def difference(then: Job, now: Job) -> str:
    """Return how the job of an earlier run differs from that of this run; '' if it does not."""
    old, new = json.loads(then["configuration"]), json.loads(now["configuration"])
    # An option that the version of that run did not have had the effect of its default.
    old = {name: OPTIONS[name].default for name in new.keys() - old.keys()} | old
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        changes = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]
        return f"the configuration changed: {', '.join(changes)}"
    for name in (name for name, values in now.items() if isinstance(values, list)):
        rows, rows_now = then.get(name, []), now[name]
        for values in zip(rows, rows_now, strict=False):
            was, value = (printable(decoded(v) if isinstance(v, bytes) else v) for v in values)
            if was != value:
                return f"the input changed: {name} was {was}, is {value}"
        if len(rows) != len(rows_now):
            what = "files left out" if name.startswith("left_out") else "pairs"
            return f"the input changed: it was {len(rows)} {what}, is {len(rows_now)}"
    return ""


def changed_pixels(plan: Plan, digests: Mapping[int, tuple[int, ...]]) -> str:
    """Return which slice no longer has the digest recorded for its pair; '' if all have."""
    for index, recorded in digests.items():
        now, pair = plan.pairs[index].digests, plan.pairs[index].pair
        if recorded != now:
            one = pair.target if recorded[:1] == now[:1] else pair.input
            return f"the input changed: other pixel values in {printable(one.file)}"
    return ""


class Checkpoint:
    """The checkpoint file of a run, open and locked.

    On a file system without locks nothing is locked, and only `exclusive` keeps two runs apart.
    """

    def __init__(self, path: str, exclusive: bool) -> None:
        self.path = path
        flags = os.O_CREAT | os.O_APPEND | (os.O_EXCL if exclusive else 0)
        # It contains real names, with --anonymize too: readable by the owner alone.
        self._descriptor = open_locked(path, flags, mode=0o600)
        while not is_at(path, self._descriptor):  # the run that had locked it has just removed it
            os.close(self._descriptor)
            self._descriptor = open_locked(path, flags, mode=0o600)

    def read(self) -> tuple[Job, dict[int, dict[int, BlockRecord]]]:
        """Return the job, empty if there is none, and by number of file and pair the blocks.

        A damaged tail is removed.
        """
        job: Job = {}
        done: dict[int, dict[int, BlockRecord]] = defaultdict(dict)
        intact_bytes = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            for line in file:
                body, _, crc = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
                    break
                intact_bytes += len(line)
                kind, *content = json.loads(body)
                if kind == "job":
                    (job,) = content
                # Earlier versions recorded less of a block: it is created again.
                elif kind == "done" and len(content) == 2 + len(dataclasses.fields(BlockRecord)):
                    number, index, *affines, checksum, digests, measured, rounding = content
                    input_affine, target_affine = (Affine(*affine) for affine in affines)
                    done[number][index] = BlockRecord(
                        input_affine,
                        target_affine,
                        checksum,
                        tuple(digests),
                        Difference(*measured),
                        tuple(rounding),
                    )
        os.ftruncate(self._descriptor, intact_bytes)
        return job, done

    def begin(self, job: Job) -> None:
        """Replace the content by a job without a finished block."""
        os.ftruncate(self._descriptor, 0)
        self._append("job", job)

    def add(self, file: int, index: int, record: BlockRecord) -> None:
        """Append a finished block."""
        self._append("done", file, index, *dataclasses.astuple(record))

    def _append(self, *content: object) -> None:
        body = json.dumps(content)
        data = f"{body} {zlib.crc32(body.encode()):08x}\n".encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self, remove: bool) -> None:
        """Unlock the checkpoint; remove it if there is nothing to resume, or nothing in it."""
        remove |= not os.fstat(self._descriptor).st_size
        if remove and is_at(self.path, self._descriptor):
            os.unlink(self.path)
        os.close(self._descriptor)


def open_locked(path: str, flags: int = 0, mode: int = 0o666) -> int:
    """Open a file to read and write it, and lock it until it is closed; return the descriptor.

    Raises CallError if another run has locked it, or if it must not exist, and does.
    """
    busy = CallError(f"{quoted(path)}: another run is writing it; wait for its end")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, mode)
    except FileExistsError:
        raise busy from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise busy from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def check_unlocked(path: str) -> None:
    """Raise CallError if another run has locked a file."""
    with contextlib.suppress(FileNotFoundError):
        os.close(open_locked(path))


def is_at(path: str, descriptor: int) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
