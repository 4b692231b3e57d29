"""What a run would make, told before it makes anything: `--dry-run`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline import filling, prefetch
from pipeline.cohort.selection import Findings
from pipeline.config import Config
from pipeline.model import Pair, Plan
from pipeline.output import paths
from pipeline.tally import Tally, print_tally
from utils import printable, quoted

#: Memory of a rank with all libraries loaded, before its first block, MB: measured.
BASE_MB = 160
#: What drawing the report takes, MB: measured.
REPORT_MB = 90
#: Images (float32, of the largest size) that a rank holds at most while it works on a pair, and how
#: many more for every thread that prefetches in a serial run: measured, 512 to 4096 pixels a side.
MAX_IMAGES_PER_RANK = 9
MAX_IMAGES_PER_THREAD = 11
#: What is kept of where a patch comes from, while its pair is at work, bytes.
PLACE_BYTES = 32
#: Pairs that are made on trial, to tell how long all of them take.
TRIALS = 3


def show(
    plans: dict[str, Plan], findings: Findings, config: Config, ranks: int, tally: Tally
) -> None:
    """Print what a run with this plan would make.

    Parameters
    ----------
    plans : dict of str to Plan
        By side.
    findings : Findings
    config : Config
    ranks : int
        Number of ranks that share the work.
    tally : Tally
    """
    print_tally(tally, config)
    show_plan(plans, findings, config)
    _show_needs(plans, config, ranks)


def show_plan(plans: dict[str, Plan], findings: Findings, config: Config) -> None:
    """Print what the headers tell, and the patches of each patient."""
    print()
    _show_headers(findings.pairs)
    if config.dry_run:
        _show_ranges(findings)
    print()
    for side, plan in plans.items():
        _show_patients(side, plan, config)


def _values(found: Iterable[str]) -> str:
    return ", ".join(sorted({printable(value) for value in found})) or "not told"


def _range(values: Iterable[float | None], unit: str) -> str:
    there = sorted(value for value in values if value is not None)
    if not there:
        return "not told"
    low, high = there[0], there[-1]
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def _show_headers(pairs: Sequence[Pair]) -> None:
    """Print what the headers tell of kernel, thickness and dose, of both sides."""
    print(f"{'':28} {'input':24} target")
    sides = [[p.input for p in pairs], [p.target for p in pairs]]
    rows = {
        "kernel": [_values(s.kernel for s in side if s.kernel) for side in sides],
        "slice thickness": [_range((s.thickness_mm for s in side), "mm") for side in sides],
        "exposure": [_range((s.exposure_mas for s in side), "mAs") for side in sides],
        "CTDIvol": [_range((s.ctdi_mgy for s in side), "mGy") for side in sides],
        "pixels": [_values(f"{s.rows} x {s.columns}" for s in side) for side in sides],
    }
    for name, (one, two) in rows.items():
        print(f"{name:28} {one:24} {two}")


def _show_ranges(findings: Findings) -> None:
    """Print the lowest and the highest pixel of both sides."""
    told = []
    for side in (0, 1):
        ends = [ranges[side] for ranges in findings.ranges if ranges]
        told.append(_range([e for pair in ends for e in pair], "HU"))
    print(f"{'intensity':28} {told[0]:24} {told[1]}")


def _show_patients(side: str, plan: Plan, config: Config) -> None:
    """Print how many windows are kept, and how many are air, by patient."""
    title = f"patient ({side})" if side else "patient"
    print(f"{title:28} {'pairs':>8} {'kept':>10} {'air':>10} {'patches':>10}")
    counts: dict[str, list[int]] = {}
    for names, part in zip(plan.names, plan.parts, strict=True):
        row = counts.setdefault(names.patient, [0, 0, 0, 0])
        kept = part.kept_windows
        for i, number in enumerate((1, kept, sum(part.windows) - kept, kept * config.orientations)):
            row[i] += number
    for patient, row in counts.items():
        print(f"{printable(patient):28} {row[0]:8} {row[1]:10} {row[2]:10} {row[3]:10}")
    print()


def _show_needs(plans: dict[str, Plan], config: Config, ranks: int) -> None:
    """Print what the run needs: space, memory, time."""
    patches = sum(plan.patches for plan in plans.values())
    size = patches * config.bytes_per_patch
    folder = os.path.dirname(os.path.abspath(config.output_fname))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    largest = max(part.kept_windows for plan in plans.values() for part in plan.parts)
    # Patches are cut and written a piece at a time: what counts is images and where to cut.
    everything = [pair for plan in plans.values() for pair in plan.pairs]
    image = 4 * max(pair.input.rows * pair.input.columns for pair in everything)
    threads = 0 if config.mpi_run else prefetch.threads_for(everything)
    held = image * (MAX_IMAGES_PER_RANK + MAX_IMAGES_PER_THREAD * threads)
    held += largest * config.orientations * PLACE_BYTES * (1 + threads)
    memory = BASE_MB + REPORT_MB * (not config.no_report) + held / 1e6
    seconds = _seconds_a_pair(next(iter(plans.values())), config)
    pairs = sum(len(plan.pairs) for plan in plans.values())
    files = ", ".join(quoted(path) for path in paths.files_of(config).values())
    lack = "" if size <= free else "  NOT ENOUGH"
    print(f"{'would write':28} {size / 1e6:.1f} MB to {files}")
    print(f"{'free there':28} {free / 1e6:.1f} MB{lack}")
    print(f"{'memory':28} up to {memory:.0f} MB a rank")
    print(
        f"{'time':28} about {max(1.0, pairs * seconds / ranks):.0f} s on {ranks} "
        f"rank{'s' * (ranks > 1)}, if the disk keeps up"
    )


def _seconds_a_pair(plan: Plan, config: Config) -> float:
    """Make a few blocks, write them nowhere, and return how long one takes."""
    few = min(TRIALS, len(plan.pairs))
    begin = time.perf_counter()
    for task in filling.pair_tasks(0, plan, range(few, len(plan.pairs))):
        block, _ = filling.prepare_block(task, config)
        most = max((piece.stop - piece.start for piece in block.pieces()), default=0)
        room = np.empty((most, block.size, block.size), np.float32)
        for side, piece in itertools.product(block.views, block.pieces()):
            block.cut(side, piece, room[: piece.stop - piece.start])
    return (time.perf_counter() - begin) / few
