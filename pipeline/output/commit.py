"""All output files of a run: creating, resuming and committing them together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Config
from pipeline.model import Plan
from pipeline.output import file_header
from pipeline.output.blocks import named_errors
from pipeline.output.checkpoint import (
    BlockRecord,
    Checkpoint,
    being_written,
    changed_pixels,
    difference,
    is_locked,
    job_of,
)
from pipeline.output.output_file import OutputFile, reserve
from pipeline.output.paths import PARTIAL, checkpoint_path, files_of, key_path
from pipeline.output.pseudonyms import key_text, write_key
from utils import RunError, quoted


class Output:
    """All files of a run, from their partial files to their final names; on rank 0 alone.

    Creates the partial files. With `--resume` it continues those of an interrupted run of the same
    job, and leaves files alone that are complete. If the files cannot be created, there is no space
    for them, or existing ones are of another job, RunError is raised, and what this run has created
    is removed again.
    """

    def __init__(self, plans: Mapping[str, Plan], config: Config) -> None:
        self.config = config
        self.files = [OutputFile(plans[subset], path) for subset, path in files_of(config).items()]
        self._key = key_text(plans.values()) if config.anonymize else b""
        self._key_path = key_path(config)
        self._new_key = self._key_path + PARTIAL
        self._checkpoint: Checkpoint | None = None
        #: Whether the partial files and the checkpoint are of this run.
        self._owned = False
        #: Whether some files may have their final names already.
        self._committing = False
        self._may_replace = config.overwrite
        parents = Path(config.output_fname).absolute().parents
        missing = [folder for folder in parents if not os.path.lexists(folder)]
        try:
            with named_errors(config.output_fname):
                parents[0].mkdir(parents=True, exist_ok=True)
                path = checkpoint_path(config)
                self._checkpoint = Checkpoint(path, exclusive=not config.resume)
                self._open(self._checkpoint, plans)
        except BaseException:
            self.release()
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def _open(self, checkpoint: Checkpoint, plans: Mapping[str, Plan]) -> None:
        """Open the partial files of an interrupted run of this job, and create the others."""
        then, done = checkpoint.read()
        job = job_of(self.config, plans)
        changed = difference(then, job) if then else ""
        for number, file in enumerate(self.files):
            digests = {index: record.digests for index, record in done[number].items()}
            changed = changed or changed_pixels(file.plan, digests)
        if changed and not self.config.overwrite:
            raise RunError(
                f"{quoted(checkpoint.path)}: the interrupted run was another job; undo the change "
                f"to continue it, or add --overwrite to start over: {changed}"
            )
        same = bool(then) and not changed
        self._may_replace |= same and then["overwrite"]
        headers = [file_header.header(file.plan, self.config) for file in self.files]
        for number, (file, header) in enumerate(zip(self.files, headers, strict=True)):
            if same:
                file.resume(header, done[number])
            self._check_final(file)
        self._check_key()
        self._owned = True
        for path in [*(file.partial for file in self.files if not file.layout), self._new_key]:
            if os.path.lexists(path):  # an interrupted run left it, and this one does not need it
                if is_locked(path):
                    raise being_written(path)
                os.unlink(path)
        if same:
            checkpoint.resume()
        else:
            checkpoint.begin(job | {"overwrite": self.config.overwrite})
        files = zip(self.files, headers, strict=True)
        new = [(file, header) for file, header in files if not (file.complete or file.layout)]
        for file, header in new:
            file.create(header)
        if new:
            reserve([file for file, _ in new])
        for file, header in new:
            file.write_header(header)

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

    def _check_key(self) -> None:
        may_exist = self._may_replace or not self._key or not os.path.lexists(self._key_path)
        if not may_exist and Path(self._key_path).read_bytes() != self._key:
            raise RunError(
                f"{quoted(self._key_path)} exists and is the key of another job; add --overwrite "
                "to replace it, or choose another name"
            )

    @property
    def pairs(self) -> int:
        """Number of pairs in all files."""
        return sum(len(file.plan.pairs) for file in self.files)

    @property
    def pairs_done(self) -> int:
        """Number of pairs whose blocks are in the files."""
        return sum(file.pairs_done for file in self.files)

    def add(self, number: int, index: int, record: BlockRecord) -> None:
        """Record that the block of a pair is in the file of that number."""
        file = self.files[number]
        file.check()
        file.done[index] = record
        assert self._checkpoint
        with named_errors(self._checkpoint.path):
            self._checkpoint.add(number, index, record)

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
            with named_errors(self._key_path):
                os.replace(self._new_key, self._key_path)
        for file in files:
            file.close()
        with named_errors(self.config.output_fname):
            folder = os.open(Path(self.config.output_fname).absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._checkpoint.close(remove=True)
        self._checkpoint = None

    def release(self) -> str:
        """Unlock the output; return what can be resumed, for a message.

        Where no block is finished everything is removed: there is nothing to resume.
        """
        if not self._checkpoint:
            return ""
        resumable = self._committing or any(
            file.layout and file.done and not file.problem() for file in self.files
        )
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
        names = [quoted(one.final if one.complete else one.partial) for one in self.files]
        done = f"{self.pairs_done} of {self.pairs} pairs are complete in {', '.join(names)}"
        return f"{done}; --resume continues"
