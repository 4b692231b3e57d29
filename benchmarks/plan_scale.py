#!/usr/bin/env python3
"""Measures what the plan of very many pairs costs rank 0, with made-up headers.

    python benchmarks/plan_scale.py                      a million pairs
    python benchmarks/plan_scale.py --pairs 10000 100000

No scan is read and no patch is made: the headers, and what a look at the pixels would have shown,
are made up; pairing, choosing, planning and the tables of the file are the tool's own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from ctpatches.dicom.slice_file import Slice
from pipeline import plan
from pipeline.cohort.pairing import pair_slices
from pipeline.cohort.patients import Patient
from pipeline.cohort.selection import Cohort, choose_pairs
from pipeline.config import Config
from pipeline.model import Plan, Windows
from pipeline.output import file_header
from pipeline.survey import Survey, plan_pairs

#: As in the larger series of TCIA.
SLICES_A_PATIENT = 400
CONFIG = Config("input", rot_augment=True, ds_augment=True, air_threshold=True, anatomy_check="off")

Result = TypeVar("Result")


def slice_of(patient: int, side: str, number: int) -> Slice:
    """Return a made-up header. Nothing in it is shared with another, as when it was read."""
    return Slice(
        file=f"patient_{patient:06d}/{side}_3mm_sharp_sorted/{number:06d}.IMA",
        rows=512,
        columns=512,
        position_mm=3.0 * number,
        in_plane_mm=(-170.0 + patient, -170.0 - patient),
        orientation=tuple(map(float, (1, 0, 0, 0, 1, 0))),
        spacing_mm=(0.664 + patient * 1e-9, 0.664 + patient * 1e-9),
        thickness_mm=float("3.0"),
        instance=number,
        slope=float("1"),
        intercept=float("-1024"),
        pixel_offset=4004 + number,
        dtype="<u2",
        bits_stored=12,
        stamp=(528300 + number, *(1_700_000_000_000_000_000 + number,) * 2),
    )


def patient_pairs(patient: int, pairs: int) -> Patient:
    """Pair the made-up slices of a patient as the tool does."""
    sides = [[slice_of(patient, side, i) for i in range(pairs)] for side in ("quarter", "full")]
    out = Patient(f"patient_{patient:06d}", persons={f"PatientID {patient}"})
    pair_slices(out, sides[0], sides[1])
    return out


def find(pairs: int) -> list[Patient]:
    """Return what was found of as many patients as it takes."""
    starts = range(0, pairs, SLICES_A_PATIENT)
    return [
        patient_pairs(patient, min(SLICES_A_PATIENT, pairs - first))
        for patient, first in enumerate(starts)
    ]


def survey(cohort: Cohort) -> dict[int, Survey]:
    """Return a made-up survey of every pair, in which one window is kept."""
    (whole,) = plan_pairs((512, 512), CONFIG, [None])
    first = bytes([128])
    surveys = {}
    for task in cohort.tasks:
        # New bytes for each pair, as when they came from another rank.
        kept = (first + bytes(len(whole.kept[0]) - 1), *(bytes(len(k)) for k in whole.kept[1:]))
        surveys[task.index] = Survey(task.index, Windows(whole.numbers, kept, 1))
    return surveys


def tables(plan: Plan) -> int:
    """Build the header of the file with all its tables; return how large it is."""
    return sum(len(data) for _, data in file_header.header(plan, CONFIG).writes)


def step(name: str, work: Callable[[], Result]) -> Result:
    """Do one step and print what it took, and the most memory until now."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |", flush=True)
    return result


def measure(pairs: int) -> None:
    """Print a table of the steps for that many pairs."""
    print(f"\n{pairs} pairs in {-(-pairs // SLICES_A_PATIENT)} patients\n")
    print("| step | s | CPU, s | peak until here, MB |\n| --- | --- | --- | --- |")
    step("start", lambda: np.zeros(1))
    found = step("make up headers and pair them", lambda: find(pairs))
    cohort = step("choose pairs", lambda: choose_pairs(found, CONFIG))
    found.clear()
    surveys = step("make up surveys", lambda: survey(cohort))
    plans = step("plan", lambda: plan.plan_files(cohort, surveys, CONFIG))
    step("tables of the file", lambda: tables(plans[""]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--pairs", nargs="+", type=int, default=[1_000_000], metavar="N")
    options = parser.parse_args(argv)
    if len(options.pairs) == 1:
        measure(options.pairs[0])
        return 0
    for pairs in options.pairs:  # each in a process of its own, with a peak of its own
        subprocess.run([sys.executable, __file__, "--pairs", str(pairs)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
