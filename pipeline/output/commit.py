"""All output files of a run: creating, resuming and committing them together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.model import Plan
from pipeline.output import checkpoint, file_header
from pipeline.output.blocks import named_errors
from pipeline.output.checkpoint import BlockRecord, Checkpoint, Entries, Job
from pipeline.output.file_header import Header
from pipeline.output.output_file import OutputFile, reserve
from pipeline.output.paths import PARTIAL, checkpoint_path, files_of, key_path, partial_path
from pipeline.output.pseudonyms import key_text, write_key
from utils import RunError, printable, quoted


class Output:
    """All files of a run, from their partial files to their final names; on rank 0 alone.

    Creates the partial files. With `--resume` it continues those of an interrupted run of the same
    job, and leaves files alone that are complete.

    Parameters
    ----------
    plans : dict of str to Plan
        By subset.
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
        self.files = [OutputFile(plans[subset], path) for subset, path in files_of(config).items()]
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
                name = printable(plan.pairs[index].identity)
                return f"the input changed: other pixel values in {name} or its target"
        return ""

    def _check_final(self, file: OutputFile) -> None:
        """Find out whether a file is already complete, and refuse to replace another job's."""
        if not os.path.lexists(file.final):
            return
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
