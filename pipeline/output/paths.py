"""The names of the output files, and whether they may be written: checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

from ctpatches.files import named_errors
from pipeline.config import Config
from pipeline.output.checkpoint import check_unlocked
from utils import SUBSETS, CallError, quoted

#: What the name of a file ends in until the file is complete.
PARTIAL = ".partial"


def files_of(config: Config) -> dict[str, str]:
    """Return the h5 files that a run creates, by subset: '' without a split."""
    if config.split is None and config.split_file is None:
        return {"": config.output_fname}
    parts = config.split or (1,) * len(SUBSETS)
    subsets = zip(SUBSETS, parts, strict=True)
    return {subset: _subset_path(config, subset) for subset, part in subsets if part}


def _subset_path(config: Config, subset: str) -> str:
    stem, ending = os.path.splitext(config.output_fname)
    return f"{stem}_{subset}{ending}"


def checkpoint_path(config: Config) -> str:
    """Return the path of the checkpoint: one for all files of a run."""
    return config.output_fname + ".checkpoint"


def key_path(config: Config) -> str:
    """Return the path of the key of the pseudonyms."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


def may_resume(config: Config) -> bool:
    """Return whether there is something that `--resume` may continue, or find complete."""
    files = files_of(config).values()
    paths = [checkpoint_path(config), *files, *(fname + PARTIAL for fname in files)]
    return config.resume and any(map(os.path.lexists, paths))


def check(config: Config) -> None:
    """Raise CallError for outputs that cannot or must not be written."""
    files, may_exist = files_of(config), config.overwrite or config.resume
    for fname in files.values():
        _check_file(fname, may_exist)
    paths = [*(fname + PARTIAL for fname in files.values()), checkpoint_path(config)]
    left = [path for path in paths if os.path.lexists(path)]
    for path in left:
        with named_errors(path):
            check_unlocked(path)
    if left and not config.resume:
        raise CallError(
            f"{quoted(left[0])} was left by an interrupted run; add --resume to continue it, or "
            f"remove {' and '.join(map(quoted, left))}"
        )
    key = key_path(config)
    if config.anonymize and os.path.isdir(key):
        raise CallError(
            f"{quoted(key)} is a folder; expected: a file, the key of the pseudonyms; rename the "
            "folder, or name another --output-fname"
        )
    if config.anonymize and os.path.lexists(key) and not may_exist:
        raise CallError(
            f"{quoted(key)}, the key of the pseudonyms, exists; add --overwrite to replace it, or "
            "name another --output-fname"
        )
    for subset in SUBSETS if "" not in files else ():
        path = _subset_path(config, subset)
        if subset not in files and os.path.lexists(path):
            raise CallError(
                f"{quoted(path)} exists, but this split has no {subset}: the same patient could be "
                "in two of the files; remove or rename it"
            )


def _check_file(fname: str, may_exist: bool) -> None:
    path = Path(fname)
    option = f"--output-fname {quoted(path)}"
    if path.is_dir() or os.path.basename(fname) in ("", ".", ".."):
        raise CallError(f"{option} is a folder; expected: the name of a file")
    if path.exists() and not path.is_file():
        raise CallError(f"{option} is not a regular file; name another, it is never replaced")
    if os.path.lexists(path) and not may_exist:
        raise CallError(
            f"{option} exists; add --overwrite to replace it, --resume to complete the run that "
            "made it, or name another"
        )
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise CallError(f"{option}: {quoted(parent)} is not a folder; name another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CallError(f"{option}: the folder {quoted(parent)} is not writable; name another")
