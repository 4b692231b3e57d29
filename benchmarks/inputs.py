"""Input folders with any number of pairs, made of links to the few scans that are there."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Where scans are looked for: real ones first.
SOURCES = (ROOT.parent / "shared" / "data" / "ldct", ROOT / "raw_data")


def find_source() -> Path:
    """Return the folder of the scans that the benchmark is made of.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    for folder in SOURCES:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no scans in {' or '.join(map(str, SOURCES))}")


def _series(patient: Path) -> list[Path]:
    return sorted(p for p in patient.iterdir() if p.is_dir())


def link_pairs(source: Path, target: Path, pairs: int) -> None:
    """Make an input folder with exactly that many pairs.

    Every patient of it has the slices of one of the source's, the last only as many as are missing;
    the sources take turns.

    Parameters
    ----------
    source : Path
        A folder of patients, each with two folders whose slices have the same names.
    target : Path
        The folder to make.
    pairs : int
    """
    patients = sorted(p for p in source.iterdir() if p.is_dir() and len(_series(p)) == 2)
    for number, patient in enumerate(itertools.cycle(patients)):
        if not pairs:
            return
        series = _series(patient)
        names = sorted(p.name for p in series[0].iterdir())[:pairs]
        for one in series:
            folder = target / f"bench_{number:04d}" / one.name
            folder.mkdir(parents=True)
            for name in names:
                os.symlink(one / name, folder / name)
        pairs -= len(names)
