"""The output files of a run: created or resumed together, and given their final names together."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctpatches.blocks import CHUNKS, CHUNKS_STRIDE, block_ranges
from ctpatches.checksums import block_digest
from ctpatches.file import abbreviated
from ctpatches.files import Offset, named_errors, reserve, sync_folder, write_at
from ctpatches.header import Header
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.output import checkpoint, file_header
from pipeline.output.checkpoint import BlockRecord, Checkpoint
from pipeline.output.partial_file import Layout
from pipeline.output.paths import PARTIAL, all_files, checkpoint_path, key_path, other_files
from pipeline.profile import step
from utils import RunError, quoted

#: What makes a spreadsheet read a cell as a formula: such names get an apostrophe before them.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
#: Longer lists of files are abbreviated in messages.
MAX_NAMES = 8
#: How long an interrupted run waits until the block that is being recorded is in the checkpoint.
RECORD_S = 1.0


@dataclass
class OutputFile:
    """One file of a run; it has a `layout` while its partial file is open."""

    plan: Plan
    final: str
    #: Of the file while it is not complete.
    header: Header
    #: Whether it grows by the chunks of its blocks, which follow each other in order.
    compressed: bool
    layout: Layout | None = None
    #: The blocks that are in the file, by number of their pair.
    done: dict[int, BlockRecord] = field(default_factory=dict)
    #: Of a compressed file, blocks that were finished before an earlier one, and the chunks of
    #: blocks that are not in the file: `pipeline.filling.MAX_AHEAD` bounds their number.
    early: dict[int, BlockRecord] = field(default_factory=dict)
    chunks: defaultdict[int, list[memoryview]] = field(default_factory=lambda: defaultdict(list))
    #: Whether it has its final name, given by this run or an earlier one.
    complete: bool = False
    descriptor: int = -1
    #: Bytes of the whole file; of a compressed one, of the blocks that it has so far.
    size: int = 0

    @property
    def partial(self) -> str:
        """The name until the file is complete."""
        return self.final + PARTIAL

    def open(self, flags: int = 0) -> None:
        """Open and lock the partial file, which may be one of another `--output-fname`."""
        self.descriptor = checkpoint.open_locked(self.partial, flags)
        path, checksum = os.path.abspath(self.partial), self.header.extents[-1][0]
        self.layout = Layout(path, self.header.rows, checksum, self.header.shuffle)
        self.size = self.header.size

    def create(self) -> None:
        """Create the partial file in its full size; a compressed one grows by its blocks."""
        self.open(os.O_CREAT | os.O_EXCL)
        os.ftruncate(self.descriptor, self.size)

    def resume(self, records: Mapping[int, BlockRecord]) -> None:
        """Open the partial file of an interrupted run, if it is there in its full size.

        A block counts only if its bytes are there: not all that was written may be on the disk.
        """
        with contextlib.suppress(FileNotFoundError):
            self.open()
        if not self.layout or self.problem():
            self.close()
            return
        header = self.header
        chunks = header.chunks(self.descriptor, self.plan.starts) if self.compressed else None
        for index, record in sorted(records.items()):
            place = self.plan.pairs[index].place
            ranges = block_ranges(header.rows, place, header.shuffle, chunks, index)
            if block_digest(self.descriptor, ranges) == record.checksum:
                self.done[index] = record
            elif chunks:
                break  # nothing is known of the places of those after it
        if chunks:
            self.size = int(chunks.blocks[len(self.done)])
        os.ftruncate(self.descriptor, self.size)

    def write(self, offset: Offset, data: memoryview) -> None:
        """Write bytes; keep chunks, whose place is known when all blocks before are in the file."""
        with named_errors(self.partial):
            if isinstance(offset, list) or offset < CHUNKS:
                write_at(self.descriptor, data, offset)
                return
            block = (offset - CHUNKS) // CHUNKS_STRIDE
            self.chunks[block].append(data)
            self._append_chunks()

    def _append_chunks(self) -> None:
        """Write the chunks of the first block that is not complete in the file."""
        for data in self.chunks.pop(len(self.done), ()):
            write_at(self.descriptor, data, self.size)
            self.size += len(data)

    def add(self, index: int, record: BlockRecord) -> Iterator[tuple[int, BlockRecord]]:
        """Yield the blocks that are in the file now that all bytes of another were passed."""
        self.early[index] = record
        while (block := len(self.done) if self.compressed else index) in self.early:
            self.done[block] = self.early.pop(block)
            yield block, self.done[block]
            with named_errors(self.partial), step("write"):
                self._append_chunks()

    def problem(self) -> str:
        """Return what another process has done to the partial file; '' if nothing."""
        if not checkpoint.is_at(self.partial, self.descriptor):
            return "was removed or replaced by another process"
        size = os.fstat(self.descriptor).st_size
        if size < self.size:
            return f"has {size} bytes, expected {self.size}: another process changed it"
        return ""

    def check(self) -> None:
        """Raise RunError if another process has removed, replaced or truncated the partial file."""
        if problem := self.problem():
            raise RunError(f"{quoted(self.partial)} {problem}; run again")

    def close(self, remove: bool = False) -> None:
        """Close the partial file, and remove it unless another file has its name now."""
        if remove and self.layout and checkpoint.is_at(self.partial, self.descriptor):
            os.unlink(self.partial)
        if self.layout:
            os.close(self.descriptor)
        self.descriptor, self.layout = -1, None


def reserve_all(files: Sequence[OutputFile]) -> None:
    """Reserve the disk space of all files, so that a full disk is found before the work."""
    size = sum(file.size for file in files)
    free = shutil.disk_usage(files[0].partial).free
    if size > free:
        names = abbreviated([quoted(file.final) for file in files], MAX_NAMES)
        raise RunError(
            f"no space left for {names}: needed {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB"
        )
    for file in files:
        reserve(file.descriptor, file.size)


def key_text(plans: Iterable[Plan]) -> bytes:
    """Return the key of the pseudonyms of `--anonymize`: names as CSV."""
    key: dict[str, str] = {}
    for plan in plans:
        for planned in plan.pairs:
            pair = planned.pair
            real = (pair.patient, pair.input.file, pair.target.file)
            key |= dict(zip(planned.names, real, strict=True))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("pseudonym", "name"))
    for pseudonym, name in key.items():
        rows.writerow((pseudonym, "'" * name.startswith(FORMULA) + name))
    return text.getvalue().encode("utf-8", "surrogateescape")


class Output:
    """All files of a run, from their partial files to their final names; on rank 0 alone.

    Creates the partial files. With `--resume` it continues those of an interrupted run of the same
    job, and leaves complete files alone. If the files cannot be created, or existing ones are of
    another job, RunError is raised, and what this run has created is removed again.
    """

    def __init__(self, plans: Mapping[str, Sequence[Plan]], config: Config) -> None:
        self.config = config
        all_plans = itertools.chain.from_iterable(plans.values())
        compressed = config.compression != "none"
        self.files = [
            OutputFile(plan, final, file_header.header(plan, config), compressed)
            for plan, final in zip(all_plans, all_files(config), strict=True)
        ]
        self._key = key_text(file.plan for file in self.files) if config.anonymize else b""
        self._key_path = key_path(config)
        self._new_key = self._key_path + PARTIAL
        self._checkpoint: Checkpoint | None = None
        #: Whether the partial files and the checkpoint are of this run.
        self._owned = False
        #: Whether some files may have their final names already.
        self._committing = False
        #: Held while a block is recorded, and for good by `release`, perhaps in another thread:
        #: what an interrupted run counts is what is resumed.
        self._recording = threading.Lock()
        self._may_replace = config.overwrite
        parents = Path(config.output_fname).absolute().parents
        missing = [folder for folder in parents if not os.path.lexists(folder)]
        try:
            with named_errors(config.output_fname):
                parents[0].mkdir(parents=True, exist_ok=True)
                path = checkpoint_path(config)
                self._checkpoint = Checkpoint(path, exclusive=not config.resume)
                self._open(self._checkpoint, checkpoint.job_of(config, plans))
        except BaseException:
            self.release()
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def _open(self, record: Checkpoint, job: checkpoint.Job) -> None:
        """Open the partial files of an interrupted run of this job, and create the others."""
        then, done = record.read()
        changed = checkpoint.difference(then, job) if then else ""
        for number, file in enumerate(self.files):
            digests = {index: one.digests for index, one in done[number].items()}
            changed = changed or checkpoint.changed_pixels(file.plan, digests)
        if changed and not self.config.overwrite:
            raise RunError(
                f"{quoted(record.path)}: the interrupted run was another job; undo the change to "
                f"continue it, or add --overwrite to start over: {changed}"
            )
        same = bool(then) and not changed
        self._may_replace |= same and then["overwrite"]
        for number, file in enumerate(self.files if same else ()):
            file.resume(done[number])
        self._check_existing()
        self._owned = True
        left = [file.partial for file in self.files if not file.layout]
        left += other_files(self.config, PARTIAL) if changed else []
        for path in [*left, self._new_key]:
            checkpoint.check_unlocked(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # an interrupted run left it, and this one does not continue it
        if not same:
            record.begin(job)
        new = [file for file in self.files if not (file.complete or file.layout)]
        for file in new:
            file.create()
        if new:
            reserve_all(new)
        for file in new:
            file.header.write(file.descriptor)
        for file in self.files:
            file.header.writes.clear()  # as large as all names; `finish` builds another header
            if file.layout:
                write_at(file.descriptor, file.layout.token, file.layout.checksum)
                if self.config.hand_over == "direct":  # other hosts read it
                    os.fsync(file.descriptor)

    def _check_existing(self) -> None:
        """Find files that are complete already, and refuse to replace those of another job."""
        changes = {}
        for file in self.files:
            if os.path.lexists(file.final):
                changes[file.final] = "it exists"
                if self.config.resume and not file.layout:
                    found = file_header.difference(file.final, file.plan, self.config)
                    changes[file.final] = found
                file.complete = not changes[file.final]
        if self._key and not self._may_replace and os.path.lexists(self._key_path):
            same = Path(self._key_path).read_bytes() == self._key
            changes[self._key_path] = "" if same else "it contains other names"
        for path, changed in changes.items():
            if changed and not self._may_replace:
                raise RunError(
                    f"{quoted(path)} exists and is of another job; add --overwrite to replace it, "
                    f"or choose another name: {changed}"
                )

    @property
    def pairs_done(self) -> str:
        """How many pairs have all their blocks in the files: 'n of N pairs'."""
        pairs, missing = set(), set()  # with `--nsplit`, two files may have parts of one pair
        for file in self.files:
            for planned in file.plan.pairs:
                pairs.add(planned.pair.identity)
                if not file.complete and planned.index not in file.done:
                    missing.add(planned.pair.identity)
        return f"{len(pairs) - len(missing)} of {len(pairs)} pairs"

    def add(self, number: int, index: int, record: BlockRecord) -> None:
        """Record a block, all bytes of which were passed to the file of that number."""
        assert self._checkpoint
        with self._recording, named_errors(self._checkpoint.path):
            self.files[number].check()
            for block in self.files[number].add(index, record):
                self._checkpoint.add(number, *block)

    def finish(self) -> None:
        """Complete all files, and give them and the key their final names.

        The order makes a killed run leave the final names alone: all bytes are on the disk before
        the first rename, and the renames before the checkpoint is removed.
        """
        assert self._checkpoint
        files = [file for file in self.files if not file.complete]
        for file in files:
            with named_errors(file.partial):
                file.check()
                records = [file.done[i] for i in range(len(file.plan.pairs))]
                header = file_header.header(file.plan, self.config, records)
                os.ftruncate(file.descriptor, file.size)  # if another process has appended to it
                header.write(file.descriptor, file.plan.starts)
                os.fsync(file.descriptor)
        if self._key:
            with named_errors(self._new_key):
                private = functools.partial(os.open, mode=0o600)  # for the owner alone
                with open(self._new_key, "xb", opener=private) as key_file:
                    key_file.write(self._key)
                    key_file.flush()
                    os.fsync(key_file.fileno())
        for file in files:
            file.check()
            if os.path.lexists(file.final) and not self._may_replace:
                raise RunError(f"{quoted(file.final)} was made by another run meanwhile")
        self._committing = True
        for file in files:
            with named_errors(file.final):
                os.replace(file.partial, file.final)
            file.complete = True
            file.close()
        if self._key:
            with named_errors(self._key_path):
                os.replace(self._new_key, self._key_path)
        with named_errors(self.config.output_fname):
            sync_folder(self.config.output_fname)
            self._checkpoint.close(remove=True)
        self._checkpoint = None

    def release(self) -> str:
        """Unlock the output; return what can be resumed, for a message.

        Where no block is finished everything is removed: there is nothing to resume.
        """
        self._recording.acquire(timeout=RECORD_S)
        if not self._checkpoint:
            return ""
        intact = [file for file in self.files if file.layout and not file.problem()]
        resumable = self._committing or any(file.done for file in intact)
        remove = self._owned and not resumable
        for file in self.files:
            file.close(remove)
        if self._owned and not self._committing:
            with contextlib.suppress(OSError):
                os.unlink(self._new_key)
        self._checkpoint.close(remove)
        self._checkpoint = None
        if not resumable:
            return ""
        names = [quoted(file.final if file.complete else file.partial) for file in self.files]
        files = abbreviated(names, MAX_NAMES)
        return f"{self.pairs_done} are complete in {files}; --resume continues"
