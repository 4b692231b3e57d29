"""The fate of the output files: their names, who may write them, going on with them, finishing."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import journal
from blocks import Layout, block_ranges, named_errors
from h5_read import block_digest
from journal import Journal, Written
from utils import SIDES, CallError, Config, Plan, RunError, quoted

PARTIAL = ".partial"


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


def key_path(config: Config) -> str:
    """Return where `--anonymize` keeps what the pseudonyms stand for."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


# --- may it be written? ----------------------------------------------------------------------


def check(config: Config) -> None:
    """Refuse outputs that cannot or may not be written, before any work is done.

    Raises
    ------
    CallError
        One exists and `--overwrite` is not given, is a folder, lies in a folder that is none or
        that may not be written, or another run is at it, or was.
    """
    files = files_of(config).values()
    stale = [fname for fname in files if os.path.lexists(partial_path(fname))]
    for fname in files:
        # A split run that was ended among its last renames has some files complete already.
        ready = config.resume and bool(stale) and fname not in stale
        _check_file(fname, config.overwrite or ready)
    for fname in stale:
        _check_partial(fname, config)
    key = key_path(config)
    if config.anonymize and os.path.lexists(key) and not (config.overwrite or stale):
        raise CallError(
            f"{quoted(key)}, the key of the pseudonyms, exists; add --overwrite to replace it, or "
            "name another --output-fname"
        )


def _check_file(fname: str, replace: bool) -> None:
    path = Path(fname)
    told = f"--output-fname {quoted(path)}"
    if path.is_dir() or os.path.basename(fname) in ("", ".", ".."):
        raise CallError(f"{told} is a folder; wanted: the name of a file")
    if path.exists() and not path.is_file():
        raise CallError(f"{told} is no regular file; it is never replaced")
    if os.path.lexists(path) and not replace:
        raise CallError(f"{told} exists; add --overwrite to replace it, or name another")
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise CallError(f"{told}: {quoted(parent)} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CallError(f"{told}: the folder {quoted(parent)} is not writable")


def _check_partial(fname: str, config: Config) -> None:
    partial = partial_path(fname)
    with named_errors(partial):
        lock = _lock(partial)
    if lock is None:
        raise CallError(f"{quoted(partial)}: another run is writing it; wait for it to end")
    os.close(lock)
    if not config.resume:
        raise CallError(
            f"{quoted(partial)} was left by a run that was ended; add --resume to go on with it, "
            f"or remove it and {quoted(fname + journal.ENDING)}"
        )


def _lock(path: str) -> int | None:
    """Return the file, open and locked against other runs, or None where one has locked it.

    HDF5's own locks would be held only while HDF5 has the file open.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # a file system without locks: that the name exists has to do
    return descriptor


# --- from the partial file to the final name -------------------------------------------------


class Claim:
    """Rank 0's hold on one output, from the start of its partial file to its final name.

    It alone needs the HDF5 library: the other ranks need not load it.

    Makes the partial file, or with `--resume` goes on with the one that is there.

    Attributes
    ----------
    layout : Layout
    done : dict of int to Written
        The finished blocks, by number of their pair.
    complete : bool
        Whether the output has its final name.

    Raises
    ------
    RunError
        The file cannot be made, the disk has no space for it, or the partial file is of another
        job. What this run has made is removed again.
    """

    def __init__(self, plan: Plan, final: str, config: Config) -> None:
        self.plan, self.config, self.final = plan, config, final
        self.partial = partial_path(final)
        self.done: dict[int, Written] = {}
        self.complete = False
        #: Whether the partial file is ours to remove if nothing is in it.
        self._ours = False
        self._lock: int | None = None
        self._journal: Journal | None = None
        folders = _missing_folders(self.partial)
        try:
            with named_errors(self.partial):
                self.layout = self._open()
        except BaseException:
            self.release()
            for folder in folders:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    def _open(self) -> Layout:
        import h5_store

        if self.config.resume and os.path.lexists(self.partial):
            return self._resume()
        if self.config.resume and os.path.lexists(self.final):
            self.complete = True
            if h5_store.configuration(self.final) != self.config.as_json():
                raise RunError(f"{quoted(self.final)} is of another job; remove it to go on")
            return h5_store.layout_of(self.final)
        return self._begin()

    def _begin(self) -> Layout:
        import h5_store

        Path(self.partial).parent.mkdir(parents=True, exist_ok=True)
        try:
            made = h5_store.make(self.partial)
        except FileExistsError:
            raise RunError(f"{quoted(self.partial)}: another run has begun to write it") from None
        except OSError as error:
            self._ours = error.errno in (errno.ENOSPC, errno.EDQUOT)  # it is there, but empty
            raise
        self._ours = True
        with made:
            h5_store.create_contents(made, self.plan, self.config)
        self._lock = _lock(self.partial)
        # Before the space, which some file systems can only reserve by writing all of it.
        path = self.final + journal.ENDING
        journal.begin(path, self.config.as_json(), _pair_lines(self.plan))
        h5_store.reserve(self.partial)
        self._take_notes(path, os.path.getsize(path))
        return h5_store.layout_of(self.partial)

    def _resume(self) -> Layout:
        import h5_store

        path = self.final + journal.ENDING
        self._lock = _lock(self.partial)
        if self._lock is None:
            raise RunError(f"{quoted(self.partial)}: another run is writing it")
        try:
            entries = journal.read(path)
        except FileNotFoundError:
            raise RunError(
                f"{quoted(self.partial)} has no {quoted(path)} to go on from; remove it"
            ) from None
        changed = journal.difference(entries, self.config.as_json(), _pair_lines(self.plan))
        if changed:
            raise RunError(
                f"{quoted(self.partial)} is of another job; to go on, undo it: {changed}"
            )
        layout = h5_store.layout_of(self.partial)
        for index, one in entries.done.items():
            # The disk may have lied: a block counts only if its bytes are there.
            ranges = block_ranges(self.plan, layout, index, self.config)
            if block_digest(self._lock, ranges) == one.checksum:
                self.done[index] = one
        self._take_notes(path, entries.whole)
        return layout

    def _take_notes(self, path: str, whole: int) -> None:
        self._journal = Journal(path, self.partial, self.config.journal_seconds, whole)

    def note(self, index: int, written: Written) -> None:
        """Take note that the block of a pair is in the file."""
        self.done[index] = written
        if self._journal:
            self._journal.note(index, written)

    def _end_notes(self) -> None:
        if self._journal:
            self._journal.close()
            self._journal = None

    def finish(self) -> None:
        """Write what was learned on the way, mark the file complete, and have it on the disk."""
        if self.complete:
            return
        import h5_store

        notes = self._journal
        self._end_notes()
        if notes:
            notes.check()
        with named_errors(self.partial):
            h5_store.complete(self.layout, [self.done[i] for i in range(len(self.plan.pairs))])
            _sync(self.partial)
        if os.path.lexists(self.final) and not self.config.overwrite:
            raise RunError(f"{quoted(self.final)} was made by another run meanwhile")

    def rename(self) -> None:
        """Give the complete file its final name."""
        if self.complete:
            return
        with named_errors(self.final):
            os.replace(self.partial, self.final)
            self.complete = True
            _sync(os.path.dirname(os.path.abspath(self.final)))
            os.unlink(self.final + journal.ENDING)

    def release(self) -> str:
        """Let go of the output; return what is kept of it, for a message.

        A partial file without a finished block is removed: there is nothing to go on with.
        """
        self._end_notes()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self.complete:
            return ""
        if self.done or not self._ours:
            return self.partial if self.done else ""
        journals = (self.final + journal.ENDING, self.final + journal.ENDING + journal.NEW)
        for path in (self.partial, *journals):
            with contextlib.suppress(OSError):
                os.unlink(path)
        return ""


def finish(claims: Sequence[Claim]) -> None:
    """Complete all files, and then give them their final names.

    The order makes a killed run leave the final names alone: data, checksums and marks are on the
    disk before the first rename, and the renames are before the return.
    """
    for claim in claims:
        claim.finish()
    for claim in claims:
        claim.rename()
        claim.release()


def _missing_folders(path: str) -> list[str]:
    """Return the folders above a path that are not there, the innermost first."""
    return [str(p) for p in Path(path).absolute().parents if not os.path.lexists(p)]


def _pair_lines(plan: Plan) -> list[str]:
    """Return a line for each pair that tells whether it is still the same."""
    lines = []
    for pair, part, start in zip(plan.pairs, plan.parts, plan.starts, strict=False):
        files = " with ".join(
            f"{one.file} ({one.stamp[0]} bytes, changed at {one.stamp[1]} ns)"
            for one in (pair.input, pair.target)
        )
        kept = zlib.crc32(b"".join(part.kept))
        lines.append(f"{files}, windows {kept:08x} from patch {start}")
    return lines


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_key(names: dict[str, str], config: Config) -> None:
    """Write what the pseudonyms stand for, readable by nobody but the owner.

    Parameters
    ----------
    names : dict of str to str
        Real names by pseudonym.
    config : Config
    """
    path = key_path(config)
    with named_errors(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + PARTIAL)
        # The mode at creation, not afterwards: nobody may read it in between.
        descriptor = os.open(path + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("pseudonym", "name"))
            rows.writerows(names.items())
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + PARTIAL, path)
