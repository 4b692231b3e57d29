"""The output files of a run: their names, who may write them, resuming them, committing them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ctpatches.checksums import block_digest
from pipeline.output import checkpoint
from pipeline.output.blocks import NO_SPACE, Layout, block_ranges, named_errors
from pipeline.output.checkpoint import BlockRecord, Checkpoint, Entries, Job
from utils import SIDES, CallError, Config, Plan, RunError, quoted, shown

if TYPE_CHECKING:
    from pipeline.output.file_header import Header

PARTIAL = ".partial"
#: What a spreadsheet takes for a formula, at the beginning of a cell.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def files_of(config: Config) -> dict[str, str]:
    """Return the files that a run makes, by side: '' without a split."""
    if config.split is None and config.split_file is None:
        return {"": config.output_fname}
    stem, ending = os.path.splitext(config.output_fname)
    parts = config.split or (1,) * len(SIDES)
    return {side: f"{stem}_{side}{ending}" for side, part in zip(SIDES, parts, strict=True) if part}


def partial_path(fname: str) -> str:
    """Return the name that a file has until it is complete, beside its final one."""
    return fname + PARTIAL


def checkpoint_path(config: Config) -> str:
    """Return the checkpoint of a run: one for all its files."""
    return config.output_fname + ".checkpoint"


def key_path(config: Config) -> str:
    """Return where `--anonymize` keeps what the pseudonyms stand for."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


# --- may it be written? ----------------------------------------------------------------------


def check(config: Config) -> None:
    """Refuse outputs that cannot or may not be written, before any work is done.

    Raises
    ------
    CallError
        One exists and neither `--overwrite` nor `--resume` is given, is a folder, lies in a folder
        that is none or that may not be written, or another run is writing it, or was.
    """
    files = files_of(config).values()
    for fname in files:
        _check_file(fname, config.overwrite or config.resume)
    _check_earlier_run([checkpoint_path(config), *map(partial_path, files)], config)
    if config.anonymize:
        _check_key(key_path(config), config.overwrite or config.resume)
    if "" not in files_of(config):
        _check_other_subsets(config)


def _check_key(key: str, may_exist: bool) -> None:
    if os.path.isdir(key):
        raise CallError(f"{quoted(key)} is a folder; expected a file, the key of the pseudonyms")
    if os.path.lexists(key) and not may_exist:
        raise CallError(
            f"{quoted(key)}, the key of the pseudonyms, exists; add --overwrite to replace it, or "
            "name another --output-fname"
        )


def _check_other_subsets(config: Config) -> None:
    """Refuse a file of a subset that this run does not write: a patient of it may be in another."""
    every = files_of(dataclasses.replace(config, split=(1.0, 1.0, 1.0)))
    for side in every.keys() - files_of(config).keys():
        if os.path.lexists(every[side]):
            raise CallError(
                f"{quoted(every[side])} exists, but this split has no {side}: the same patient "
                "could be in two of the files; remove or rename it"
            )


def _check_file(fname: str, may_exist: bool) -> None:
    path = Path(fname)
    option = f"--output-fname {quoted(path)}"
    if path.is_dir() or os.path.basename(fname) in ("", ".", ".."):
        raise CallError(f"{option} is a folder; expected the name of a file")
    if path.exists() and not path.is_file():
        raise CallError(f"{option} is not a regular file; it is never replaced")
    if os.path.lexists(path) and not may_exist:
        raise CallError(
            f"{option} exists; add --overwrite to replace it, --resume to complete the run that "
            "made it, or name another"
        )
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise CallError(f"{option}: {quoted(parent)} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CallError(f"{option}: the folder {quoted(parent)} is not writable")


def _check_earlier_run(paths: Sequence[str], config: Config) -> None:
    left = [path for path in paths if os.path.lexists(path)]
    for path in left:
        with named_errors(path):
            if checkpoint.is_locked(path):
                raise CallError(f"{quoted(left[-1])}: another run is writing it; wait for its end")
    if left and not config.resume:
        raise CallError(
            f"{quoted(left[-1])} was left by an interrupted run; add --resume to continue it, or "
            f"remove {' and '.join(map(quoted, left))}"
        )


def may_resume(config: Config) -> bool:
    """Return whether there is something that `--resume` may continue, or find complete."""
    files = files_of(config).values()
    paths = [checkpoint_path(config), *files, *map(partial_path, files)]
    return config.resume and any(map(os.path.lexists, paths))


# --- from the partial files to the final names -----------------------------------------------


@dataclass
class OutputFile:
    """One file of a run.

    Attributes
    ----------
    plan : Plan
    final : str
        The name that it gets when it is complete.
    size : int
        Bytes of the whole file.
    layout : Layout or None
        None before the partial file is open, and for a file that was complete before this run.
    done : dict of int to BlockRecord
        The finished blocks, by number of their pair.
    complete : bool
        Whether the file has its final name.
    """

    plan: Plan
    final: str
    size: int = 0
    layout: Layout | None = None
    done: dict[int, BlockRecord] = field(default_factory=dict)
    complete: bool = False
    _descriptor: int = -1

    @property
    def partial(self) -> str:
        """The name until it is complete."""
        return partial_path(self.final)

    @property
    def pairs_done(self) -> int:
        """Number of pairs whose blocks are in the file."""
        return len(self.plan.pairs) if self.complete else len(self.done)

    def open(self, header: Header, flags: int = 0) -> None:
        """Open the partial file, and note where its bytes lie."""
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)
        if not checkpoint.try_lock(self._descriptor):  # as a file of another --output-fname
            self.close()
            raise RunError(f"{quoted(self.partial)}: another run is writing it")
        status = os.fstat(self._descriptor)
        self.size = header.size
        path = os.path.abspath(self.partial)
        self.layout = Layout(path, status.st_dev, status.st_ino, header.offsets)

    def resume(self, header: Header, records: Mapping[int, BlockRecord], config: Config) -> None:
        """Open the partial file of an interrupted run, if it is there in its full size."""
        with contextlib.suppress(FileNotFoundError):
            self.open(header)
            if self.problem():
                self.close()
                return
            assert self.layout is not None
            for index, record in records.items():
                # The disk may have lied: a block counts only if its bytes are there.
                ranges = block_ranges(self.plan, self.layout, index, config)
                if block_digest(self._descriptor, ranges) == record.checksum:
                    self.done[index] = record

    def create(self, header: Header) -> None:
        """Create the partial file in its full size."""
        self.open(header, os.O_CREAT | os.O_EXCL)
        os.ftruncate(self._descriptor, self.size)

    def reserve(self) -> None:
        """Take the disk space of the whole file, where the file system can."""
        try:
            os.posix_fallocate(self._descriptor, 0, self.size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise

    def write_header(self, header: Header) -> None:
        """Write everything but the blocks."""
        header.write(self._descriptor)

    def sync(self) -> None:
        """Have all bytes on the disk."""
        os.fsync(self._descriptor)

    def problem(self) -> str:
        """Return what another process has done to the partial file; '' if nothing."""
        if not checkpoint.is_at(self.partial, self._descriptor):
            return "was removed or replaced by another process"
        size = os.fstat(self._descriptor).st_size
        if size != self.size:
            return f"has {size} bytes, expected {self.size}: another process changed it"
        return ""

    def check(self) -> None:
        """Raise RunError if another process has removed, replaced or truncated the partial file."""
        if problem := self.problem():
            raise RunError(f"{quoted(self.partial)} {problem}; run again")

    def commit(self) -> None:
        """Give the complete file its final name."""
        with named_errors(self.final):
            os.replace(self.partial, self.final)
        self.complete = True

    def remove(self) -> None:
        """Remove the partial file, unless another one has taken its name."""
        if self.layout and checkpoint.is_at(self.partial, self._descriptor):
            os.unlink(self.partial)

    def close(self) -> None:
        """Close the partial file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self.layout = -1, None

    def is_resumable(self) -> bool:
        """Return whether the open partial file has finished blocks and is intact."""
        return self.layout is not None and bool(self.done) and not self.problem()


class Output:
    """All files of a run, from their partial files to their final names; on rank 0 alone.

    Creates the partial files. With `--resume` it continues those of an interrupted run of the same
    job, and leaves files alone that are complete.

    Parameters
    ----------
    plans : dict of str to Plan
        By side.
    config : Config

    Attributes
    ----------
    files : list of OutputFile

    Raises
    ------
    RunError
        The files cannot be created, the disk has no space for them, or what is there is of another
        job. What this run has created is removed again.
    """

    def __init__(self, plans: Mapping[str, Plan], config: Config) -> None:
        self.config = config
        self.files = [OutputFile(plans[side], path) for side, path in files_of(config).items()]
        self._key = key_text(plans.values()) if config.anonymize else b""
        self._checkpoint: Checkpoint | None = None
        #: Whether the partial files and the checkpoint are of this run.
        self._owned = False
        #: Whether some files may have their final names already.
        self._committing = False
        self._may_replace = config.overwrite
        folders = _missing_folders(config.output_fname)
        try:
            with named_errors(config.output_fname):
                Path(config.output_fname).parent.mkdir(parents=True, exist_ok=True)
                self._checkpoint = _locked_checkpoint(config)
                self._open(self._checkpoint)
        except BaseException:
            self.release()
            for folder in folders:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    def _open(self, checkpoint: Checkpoint) -> None:
        plans = dict(zip(files_of(self.config), (file.plan for file in self.files), strict=True))
        job = Job.of(self.config, plans)
        entries = checkpoint.read()
        changed = self._difference(entries, job)
        if entries.job and changed and not self.config.overwrite:
            raise RunError(
                f"{quoted(checkpoint.path)}: the interrupted run was another job; undo the change "
                f"to continue it, or add --overwrite to start over: {changed}"
            )
        if entries.job and not changed:
            self._may_replace |= entries.job.overwrite
        from pipeline.output import file_header  # here, as other ranks need no HDF5

        headers = [file_header.header(file.plan, self.config) for file in self.files]
        for number, (file, header) in enumerate(zip(self.files, headers, strict=True)):
            if not changed:
                records = {i: record for (one, i), record in entries.done.items() if one == number}
                file.resume(header, records, self.config)
            self._check_final(file)
        self._check_key_is_ours()
        self._owned = True
        self._remove_stale()
        if changed:
            checkpoint.begin(job)
        else:
            checkpoint.truncate(entries.size)
        pairs = zip(self.files, headers, strict=True)
        if new := [(file, header) for file, header in pairs if not (file.complete or file.layout)]:
            self._create(new)

    def _difference(self, entries: Entries, job: Job) -> str:
        """Return how the interrupted run differs from this one; '' if it is of the same job."""
        if not entries.job:
            return "there is none"
        if changed := entries.job.difference(job):
            return changed
        for (number, index), record in entries.done.items():
            plan = self.files[number].plan
            if plan.digests[index] != record.digests:
                name = shown(plan.pairs[index].identity)
                return f"the input changed: other pixel values in {name} or its target"
        return ""

    def _check_final(self, file: OutputFile) -> None:
        """Find out whether a file is complete already, and refuse to replace another job's."""
        if not os.path.lexists(file.final):
            return
        from pipeline.output import file_header

        changed = "it exists"
        if self.config.resume and not file.layout:
            changed = file_header.difference(file.final, file.plan, self.config)
        if not changed:
            file.complete = True
        elif not self._may_replace:
            raise RunError(
                f"{quoted(file.final)} exists and is of another job; add --overwrite to replace "
                f"it, or choose another name: {changed}"
            )

    def _check_key_is_ours(self) -> None:
        path = key_path(self.config)
        if self._key and not self._may_replace and os.path.lexists(path):
            with open(path, "rb") as file:
                if file.read() != self._key:
                    raise RunError(
                        f"{quoted(path)} exists and is the key of another job; add --overwrite to "
                        "replace it, or choose another name"
                    )

    def _remove_stale(self) -> None:
        """Remove what an interrupted run left and this one does not continue."""
        for path in [*(file.partial for file in self.files if not file.layout), self._new_key]:
            if os.path.lexists(path):
                if checkpoint.is_locked(path):
                    raise RunError(f"{quoted(path)}: another run is writing it")
                os.unlink(path)

    def _create(self, new: Sequence[tuple[OutputFile, Header]]) -> None:
        """Create partial files, all of them in their full size before the first byte is written."""
        for file, header in new:
            file.create(header)
        reserve([file for file, _ in new])
        for file, header in new:
            file.write_header(header)

    @property
    def pairs(self) -> int:
        """Number of pairs in all files."""
        return sum(len(file.plan.pairs) for file in self.files)

    @property
    def pairs_done(self) -> int:
        """Number of pairs whose blocks are in the files."""
        return sum(file.pairs_done for file in self.files)

    def add(self, number: int, index: int, record: BlockRecord) -> None:
        """Record that the block of a pair is in the file of that number.

        Raises
        ------
        RunError
            Another process has removed or truncated the partial file, or the checkpoint cannot be
            written.
        """
        file = self.files[number]
        file.check()
        file.done[index] = record
        assert self._checkpoint is not None
        with named_errors(self._checkpoint.path):
            self._checkpoint.add(number, index, record)

    def finish(self) -> None:
        """Complete all files, and give them and the key their final names.

        The order makes a killed run leave the final names alone: all bytes are on the disk before
        the first rename, and the renames before the checkpoint is removed.
        """
        from pipeline.output import file_header

        assert self._checkpoint is not None
        files = [file for file in self.files if not file.complete]
        for file in files:
            with named_errors(file.partial):
                file.check()
                records = [file.done[i] for i in range(len(file.plan.pairs))]
                file.write_header(file_header.header(file.plan, self.config, records))
                file.sync()
        if self._key:
            write_key(self._new_key, self._key)
        for file in files:
            file.check()
            if os.path.lexists(file.final) and not self._may_replace:
                raise RunError(f"{quoted(file.final)} was made by another run meanwhile")
        self._committing = True
        for file in files:
            file.commit()
        if self._key:
            with named_errors(key_path(self.config)):
                os.replace(self._new_key, key_path(self.config))
        for file in files:
            file.close()
        with named_errors(self.config.output_fname):
            _sync(os.path.dirname(os.path.abspath(self.config.output_fname)))
            self._checkpoint.close(remove=True)
        self._checkpoint = None

    @property
    def _new_key(self) -> str:
        return key_path(self.config) + PARTIAL

    def release(self) -> str:
        """Unlock the output; return what can be resumed, for a message.

        Where no block is finished everything is removed: there is nothing to resume.
        """
        if not self._checkpoint:
            return ""
        resumable = self._committing or any(file.is_resumable() for file in self.files)
        for file in self.files:
            if self._owned and not resumable:
                file.remove()
            file.close()
        if self._owned and not self._committing:
            with contextlib.suppress(OSError):
                os.unlink(self._new_key)
        empty = not self._owned and not self._checkpoint.read().size
        self._checkpoint.close(remove=empty or (self._owned and not resumable))
        self._checkpoint = None
        if not resumable:
            return ""
        names = [quoted(one.final if one.complete else one.partial) for one in self.files]
        done = f"{self.pairs_done} of {self.pairs} pairs are complete in {', '.join(names)}"
        return f"{done}; --resume continues"


def reserve(files: Sequence[OutputFile]) -> None:
    """Take the disk space of all files now, so that a full disk is met before the work."""
    size = sum(file.size for file in files)
    disk = os.statvfs(files[0].partial)
    free = disk.f_bavail * disk.f_frsize
    if size > free:
        names = ", ".join(quoted(file.final) for file in files)
        raise RunError(
            f"no space left for {names}: needed {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB"
        )
    for file in files:
        file.reserve()


def _locked_checkpoint(config: Config) -> Checkpoint:
    path = checkpoint_path(config)
    with named_errors(path):
        try:
            found = Checkpoint.lock(path, exclusive=not config.resume)
        except FileExistsError:
            found = None
    if found is None:
        raise RunError(f"{quoted(partial_path(config.output_fname))}: another run is writing it")
    return found


def _missing_folders(path: str) -> list[str]:
    """Return the folders above a path that are not there, the innermost first."""
    return [str(p) for p in Path(path).absolute().parents if not os.path.lexists(p)]


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the key of the pseudonyms ---------------------------------------------------------------


def key_text(plans: Iterable[Plan]) -> bytes:
    """Return what the pseudonyms stand for, as CSV.

    A name that a spreadsheet would take for a formula has an apostrophe before it.
    """
    key: dict[str, str] = {}
    for plan in plans:
        for pair, names in zip(plan.pairs, plan.names, strict=True):
            real = (pair.patient, pair.input.file, pair.target.file)
            key |= dict(zip(names, real, strict=True))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("pseudonym", "name"))
    for pseudonym, name in key.items():
        rows.writerow((pseudonym, "'" * name.startswith(FORMULA) + name))
    return text.getvalue().encode("utf-8", "surrogateescape")


def write_key(path: str, text: bytes) -> None:
    """Write the key and sync it, readable by nobody but the owner."""
    with named_errors(path):
        # The mode at creation, not afterwards: nobody may read it in between.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
