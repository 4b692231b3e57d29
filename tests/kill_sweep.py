"""Kills a run at many points in time and resumes it: `kill_sweep.py --points 200 --ranks 0 2`.

The points are spread over the whole duration of a run, twice as densely over its first and its last
tenth. After each kill the same command with `--resume` must end with status 0, with the bytes of
the uninterrupted run in every file, and with nothing else left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults import Run, argv, command, no_process_left, processes_of, run
from tests.scans import write_tree

PATIENTS = {"A": 8, "B": 5, "C": 7}
SPLIT = ("--split", "0.4", "0.3", "0.3")
#: Options of the runs that are killed; with `--overwrite` there are outputs of another job before.
JOBS: tuple[tuple[str, ...], ...] = (
    (),
    ("--overwrite",),
    SPLIT,
    ("--anonymize",),
    ("--store", "views", "--dtype", "int16", "--ds_augment"),
    ("--overwrite", "--anonymize", *SPLIT),
    ("--compression", "lz4", "--nsplit", "2"),
)


def points(number: int) -> list[float]:
    """Return points from 0 to 1, twice as dense in the first and the last tenth."""
    ends = number // 6
    middle = number - 2 * ends
    first = [0.1 * (i + 0.5) / ends for i in range(ends)]
    return [
        *first,
        *(0.1 + 0.8 * (i + 0.5) / middle for i in range(middle)),
        *(1 - point for point in reversed(first)),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Sweep:
    """One job on one number of ranks, killed at every point."""

    def __init__(self, scans: Path, folder: Path, options: Sequence[str], ranks: int) -> None:
        self.scans, self.out = scans, folder / "out"
        self.options, self.ranks = list(options), ranks
        self.earlier = folder / "earlier"
        self.earlier.mkdir()
        self.prepare()
        if "--overwrite" in options:
            self.run("--seed", "5")
            shutil.copytree(self.out, self.earlier, dirs_exist_ok=True)
        seconds = []
        for _ in range(3):
            self.prepare()
            began = time.monotonic()
            self.run()
            seconds.append(time.monotonic() - began)
        self.seconds = statistics.median(seconds)
        self.expected = contents(self.out)

    def prepare(self) -> None:
        """Put the outputs of the earlier job in place."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.earlier, self.out)

    def words(self, *more: str) -> list[str]:
        options = [*self.options, "--rot_augment", *more]
        return command(self.ranks, argv(self.scans, self.out / "x.h5", *options))

    def run(self, *more: str) -> None:
        ended = run(self.words(*more), self.out)
        assert ended.status == 0, ended.err

    def kill_at(self, point: float) -> None:
        """Kill all processes of a run at a point, and resume it."""
        self.prepare()
        with Run(self.words(), self.out) as running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(point * self.seconds)
            for process in [running.process.pid, *processes_of(str(self.out))]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            running.process.wait()
            no_process_left(self.out)
        left = sorted(path.name for path in self.out.iterdir())
        self.run("--resume")
        found = contents(self.out)
        wrong = [n for n in {*found, *self.expected} if found.get(n) != self.expected.get(n)]
        assert not wrong, f"differ: {wrong}; left by the kill: {left}"


def main() -> int:
    """Run all sweeps; return 1 if any run did not end as it must."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 2], help="0: serial")
    options = parser.parse_args()
    problems = 0
    with tempfile.TemporaryDirectory(prefix="sweep_") as name:
        write_tree(Path(name) / "scans", PATIENTS)
        for number, job in enumerate(JOBS):
            for ranks in options.ranks:
                folder = Path(name) / f"{number}_{ranks}"
                folder.mkdir()
                sweep = Sweep(Path(name) / "scans", folder, job, ranks)
                failed = 0
                for point in points(options.points):
                    try:
                        sweep.kill_at(point)
                    except AssertionError as error:
                        failed += 1
                        print(f"at {point:.4f}: {error}", flush=True)
                problems += failed
                what = " ".join(job) or "no option"
                print(
                    f"{what}, {ranks or 'no'} ranks, {sweep.seconds:.2f} s: "
                    f"{options.points} killed, {failed} problems",
                    flush=True,
                )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
