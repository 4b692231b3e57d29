"""The names of the output files, and whether they may be written: checked before any work."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from ctpatches.files import named_errors
from pipeline.config import Config
from pipeline.output.checkpoint import check_unlocked
from utils import SUBSETS, CallError, quoted

#: What the name of a file ends in until the file is complete.
PARTIAL = ".partial"


def subsets_of(config: Config) -> list[str]:
    """Return the subsets that have patients: '' alone without a split."""
    parts = config.split or (1,) * len(SUBSETS)
    subsets = [subset for subset, part in zip(SUBSETS, parts, strict=True) if part]
    return subsets if config.has_subsets else [""]


def files_of(config: Config) -> dict[str, list[str]]:
    """Return the h5 files that a run creates, by subset."""
    stem, ending = os.path.splitext(config.output_fname)
    n = str(config.nsplit)
    # Zeros in front: a list of names in alphabetical order is in the order of the patches.
    parts = [f"_{i:0{len(n)}}of{n}" for i in range(1, config.nsplit + 1)] if n != "1" else [""]
    stems = {subset: f"{stem}_{subset}" if subset else stem for subset in subsets_of(config)}
    return {subset: [one + part + ending for part in parts] for subset, one in stems.items()}


def all_files(config: Config) -> list[str]:
    """Return the h5 files that a run creates, in the order of the patches."""
    return list(itertools.chain.from_iterable(files_of(config).values()))


def other_files(config: Config, ending: str = "") -> list[str]:
    """Return existing files that another `--split` or `--nsplit` has given to the same output."""
    folder, name = os.path.split(config.output_fname)
    stem, h5 = map(re.escape, os.path.splitext(name))
    subset = f"_({'|'.join(SUBSETS)})" if config.has_subsets else ""
    pattern = re.compile(f"{stem}{subset}(_[0-9]+of[0-9]+)?{h5}{re.escape(ending)}")
    mine = {os.path.basename(path) + ending for path in all_files(config)}
    try:
        found = sorted(os.listdir(folder or "."))
    except OSError:  # the folder is created, or `_check_file` has the reason
        return []
    return [os.path.join(folder, o) for o in found if pattern.fullmatch(o) and o not in mine]


def checkpoint_path(config: Config) -> str:
    """Return the path of the checkpoint: one for all files of a run."""
    return config.output_fname + ".checkpoint"


def key_path(config: Config) -> str:
    """Return the path of the key of the pseudonyms."""
    return os.path.splitext(config.output_fname)[0] + "_key.csv"


def may_resume(config: Config) -> bool:
    """Return whether there is something that `--resume` may continue, or find complete."""
    files = all_files(config)
    paths = [checkpoint_path(config), *files, *(fname + PARTIAL for fname in files)]
    return config.resume and any(map(os.path.lexists, paths))


def check(config: Config) -> None:
    """Raise CallError for outputs that cannot or must not be written."""
    files, may_exist = all_files(config), config.overwrite or config.resume
    for fname in files:
        _check_file(fname, f"--output-fname {quoted(Path(fname))}", may_exist)
    paths = [*(fname + PARTIAL for fname in files), checkpoint_path(config)]
    left = [path for path in paths if os.path.lexists(path)]
    left += other_files(config, PARTIAL) if left else []  # of the same run, divided otherwise
    for path in left:
        with named_errors(path):
            check_unlocked(path)
    if left and not config.resume:
        raise CallError(
            f"{quoted(left[0])} was left by an interrupted run; add --resume to continue it, or "
            f"remove {' and '.join(map(quoted, left))}"
        )
    if config.anonymize:
        key = key_path(config)
        _check_file(key, f"the key of the pseudonyms {quoted(key)}", may_exist)
    if others := other_files(config):
        what = "patient" if config.has_subsets else "patch"
        raise CallError(
            f"{quoted(others[0])} exists, but this run has no such file: the same {what} could be "
            "in two of the files; remove or rename it, or name another --output-fname"
        )


def _check_file(fname: str, what: str, may_exist: bool) -> None:
    path = Path(fname)
    if path.is_dir() or os.path.basename(fname) in ("", ".", ".."):
        raise CallError(f"{what} is a folder; expected: a file; rename the folder, or name another")
    if path.exists() and not path.is_file():
        raise CallError(f"{what} is not a regular file; name another, it is never replaced")
    if os.path.lexists(path) and not may_exist:
        raise CallError(
            f"{what} exists; add --overwrite to replace it, --resume to complete the run that "
            "made it, or name another"
        )
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise CallError(f"{what}: {quoted(parent)} is not a folder; name another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CallError(f"{what}: the folder {quoted(parent)} is not writable; name another")
