"""An overview of a file in a few lines."""

from __future__ import annotations

import os

import numpy as np

from ctpatches.messages import printable
from ctpatches.validation import opened

#: Longer lists of patients and of slice shapes are abbreviated.
MAX_PATIENTS, MAX_SHAPES = 8, 3


def overview(path: str | os.PathLike[str]) -> list[str]:
    """Return what a file contains and how it was created, one line each.

    `OSError` is raised if it cannot be read, `ValueError` if it is not a valid file of ctpatches.
    """
    with opened(path, complete=False) as source:
        attributes, image = source.attributes, source["input"]
        complete = "complete" if attributes["complete"] else "NOT complete"
        shapes = [f"{rows} x {columns}" for rows, columns in np.unique(source.shapes, axis=1).T]
        patients = _abbreviated(source.patients, MAX_PATIENTS)
        given = {n: v for n, v in source.configuration.items() if v not in (None, False)}
        facts = {
            "file": f"{path}, {os.path.getsize(path) / 1e6:.1f} MB",
            "format": f"version {source.version}, {complete}",
            "patches": f"{source.patches} in input and target, {image.dtype}, "
            f"shape {image.shape[1:]}",
            "pairs": f"{source.pairs}, slices of {_abbreviated(shapes, MAX_SHAPES)} pixels",
            "patients": f"{len(source.patients)}: {patients}",
            "left out": f"{len(source['left_out/reason'])} entries",
            "scales": ", ".join(f"{scale:g}" for scale in source.scales),
            "unit": "HU" if attributes["unit"] == b"hu" else "stored values",
            "options": ", ".join(n if v is True else f"{n} {v}" for n, v in given.items()),
            "seed": str(int(attributes["seed"])),
        }
    return [f"{name:10} {printable(fact)}" for name, fact in facts.items()]


def _abbreviated(values: list[str], limit: int) -> str:
    return ", ".join([*values[:limit], "..."] if len(values) > limit else values)
