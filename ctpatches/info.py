"""An overview of a file in a few lines."""

from __future__ import annotations

import os

import numpy as np

from ctpatches.file import patients_of
from ctpatches.messages import printable
from ctpatches.validation import ValidatedFile, opened

#: Longer lists of patients are abbreviated.
MAX_PATIENTS = 8


def overview(path: str | os.PathLike[str]) -> list[str]:
    """Return what a file contains and how it was created, one line each.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a valid file of ctpatches.
    """
    with opened(path, complete=False) as source:
        config = source.configuration
        complete = "complete" if source.attributes["complete"] else "NOT complete"
        facts = {
            "file": f"{path}, {os.path.getsize(path) / 1e6:.1f} MB",
            "format": f"version {source.version}, {complete}",
            "patches": f"{source.patches} in input and target, {source['input'].dtype}, "
            f"shape {source['input'].shape[1:]}",
            "pairs": f"{source.pairs}, slices of {_slice_shapes(source)} pixels",
            "patients": _patients(patients_of(source)),
            "left out": f"{source['left_out/reason'].shape[0]} entries",
            "scales": ", ".join(f"{scale:g}" for scale in source.scales),
            "unit": "HU" if source.in_hu else "stored values",
            "options": _options(config),
            "seed": str(int(source.attributes["seed"])),
        }
    return [f"{name:10} {printable(fact)}" for name, fact in facts.items()]


def _slice_shapes(source: ValidatedFile) -> str:
    shapes = np.unique(source.windows.shapes, axis=1).T.tolist()
    first = [f"{rows} x {columns}" for rows, columns in shapes[:3]]
    return ", ".join([*first, "..."] if len(shapes) > len(first) else first)


def _patients(names: list[str]) -> str:
    there = [*names[:MAX_PATIENTS], "..."] if len(names) > MAX_PATIENTS else names
    return f"{len(names)}: {', '.join(there)}"


def _options(config: dict[str, object]) -> str:
    """Return the options that are not off, as `name value`."""
    given = {name: value for name, value in config.items() if value not in (None, False)}
    return ", ".join(n if value is True else f"{n} {value}" for n, value in given.items())
