"""The names of the output files, and whether they may be written: checked before any work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.output import checkpoint
from pipeline.output.blocks import named_errors
from utils import SUBSETS, CallError, quoted

PARTIAL = ".partial"


def files_of(config: Config) -> dict[str, str]:
    """Return the files that a run creates, by subset: '' without a split."""
    if config.split is None and config.split_file is None:
        return {"": config.output_fname}
    stem, ending = os.path.splitext(config.output_fname)
    parts = config.split or (1,) * len(SUBSETS)
    return {
        subset: f"{stem}_{subset}{ending}"
        for subset, part in zip(SUBSETS, parts, strict=True)
        if part
    }


def partial_path(fname: str) -> str:
    """Return the name of a file until it is complete, next to its final one."""
    return fname + PARTIAL


def checkpoint_path(config: Config) -> str:
    """Return the checkpoint of a run: one for all its files."""
    return config.output_fname + ".checkpoint"


def key_path(config: Config) -> str:
    """Return the path of the key of the pseudonyms."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


def check(config: Config) -> None:
    """Reject outputs that cannot or may not be written, before any work is done.

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
    """Reject a file of a subset that this run does not write: a patient of it may be in another."""
    every = files_of(dataclasses.replace(config, split=None, split_file=""))
    for subset in every.keys() - files_of(config).keys():
        if os.path.lexists(every[subset]):
            raise CallError(
                f"{quoted(every[subset])} exists, but this split has no {subset}: the same patient "
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
