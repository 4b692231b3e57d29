#!/usr/bin/env python3
"""Measures how long ranks are idle where one patient has far more slices than another.

    python benchmarks/balance.py                31 and 396 slices, 2, 3 and 4 ranks

Counted is what `--profile` tells: the part of the shared work in which ranks wait for a task, which
does not hang on how fast the machine is at the time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pydicom

from benchmarks import contestants, inputs


def make_patient(source: Path, target: Path, slices: int) -> None:
    """Make a patient with that many slices, each of another position and with other pixels.

    Parameters
    ----------
    source : Path
        A patient with two series, whose slices are taken in turns and shifted.
    target : Path
        The folder to make.
    slices : int
    """
    for series in sorted(p for p in source.iterdir() if p.is_dir()):
        folder = target / series.name
        folder.mkdir(parents=True)
        paths = sorted(series.iterdir())
        for number in range(slices):
            scan = pydicom.dcmread(paths[number % len(paths)])
            shifted = np.roll(scan.pixel_array, 3 * (number // len(paths)), axis=1)
            scan.PixelData = shifted.tobytes()
            x, y, _ = scan.ImagePositionPatient
            scan.ImagePositionPatient = [x, y, 3.0 * number]
            scan.SOPInstanceUID = f"{scan.SOPInstanceUID}.{number}"[-64:].lstrip(".")
            scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID
            scan.InstanceNumber = number + 1
            scan.save_as(folder / f"{number:04d}.dcm")


def idle(folder: Path, output: Path, ranks: int) -> tuple[str, str]:
    """Return the profile of a run, and the part of the shared work in which ranks were idle."""
    job = ["--input-folder", str(folder), "--output-fname", str(output), *contestants.JOB]
    output.unlink(missing_ok=True)
    command = [*contestants.mpiexec(), "-n", str(ranks), sys.executable, str(contestants.MAIN)]
    done = subprocess.run(
        [*command, *job, "--mpi_run", "--profile"],
        cwd=output.parent,
        env=os.environ | contestants.OPEN_MPI,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^idle in shared work +(\S+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise RuntimeError(f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout[done.stdout.index("seconds") :], found[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--slices", nargs="+", type=int, default=[31, 396], metavar="N")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 3, 4], metavar="N")
    options = parser.parse_args(argv)
    patients = sorted(p for p in inputs.find_source().iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        for number, slices in enumerate(options.slices):
            make_patient(patients[number % len(patients)], scans / f"bench_{number}", slices)
        for ranks in options.ranks:
            profile, part = idle(scans, Path(folder, "x.h5"), ranks)
            print(f"{ranks} ranks: idle {part}\n{profile}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
