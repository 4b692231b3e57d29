"""Kills runs at random moments and resumes them: `soak.py --runs 100 --ranks 0 2 3`.

A chain is one output: begun, killed some times, each time gone on with by any number of ranks, and
then left to finish. It must end in the bytes of a run that nobody killed; on the way the final name
holds nothing, or already these bytes. Ranks get SIGKILL, launchers now and then SIGTERM. Half of
the moments are drawn from the time that a whole run takes, half from the blocks that it makes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults import Run, argv, command, finished_blocks, no_process_left, processes_of, run
from tests.running import Ended
from tests.scans import write_tree

PATIENTS = {"A": 12, "B": 9, "C": 15}
OPTIONS = ("--overlap", "14", "--rot_augment", "--air_threshold")
#: Seconds from the blow to the end of the last process.
SOON = 10


def ranks_of(output: Path) -> list[int]:
    """Return the processes of a run that are Python: its ranks, without launchers."""
    found = []
    for pid in processes_of(str(output)):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if name == sys.executable:
            found.append(pid)
    return found


class Soak:
    """The chains, and what was seen on the way."""

    def __init__(self, folder: Path, seed: int, ranks: list[int]) -> None:
        self.folder, self.ranks = folder, ranks
        self.rng = random.Random(seed)
        self.killed = self.chains = self.kept = self.late = 0
        self.problems: list[str] = []
        write_tree(folder / "scans", PATIENTS, shape=(96, 96))
        self.whole = b""
        self.seconds: dict[int, float] = {}
        for n in set(ranks):
            output = folder / f"whole_{n}.h5"
            began = time.monotonic()
            ended = run(self.words(n, output), folder)
            self.seconds[n] = time.monotonic() - began
            assert ended.status == 0, ended.err
            self.whole = self.whole or output.read_bytes()
            assert output.read_bytes() == self.whole, f"{n} ranks make other bytes"

    def words(self, n: int, output: Path, *more: str) -> list[str]:
        return command(n, argv(self.folder / "scans", output, *OPTIONS, *more))

    def kill(self, n: int, output: Path, resume: bool) -> Ended:
        """Begin or go on with an output, and kill the run at a random moment, if it still runs."""
        rng, checkpoint = self.rng, Path(f"{output}.checkpoint")
        before = finished_blocks(checkpoint)
        self.kept += before
        with Run(self.words(n, output, *["--resume"] * resume), self.folder) as running:
            latest = time.monotonic() + rng.uniform(0, 1.1 * self.seconds[n])
            if rng.random() < 0.5:
                blocks = before + rng.randrange(sum(PATIENTS.values()))
                latest += 2 * self.seconds[n]
                while (
                    running.process.poll() is None
                    and finished_blocks(checkpoint) <= blocks
                    and time.monotonic() < latest
                ):
                    time.sleep(0.001)
                latest = time.monotonic() + rng.choice((0, rng.uniform(0, 0.05)))
            try:
                running.process.wait(max(0.0, latest - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.strike(running, n, output)
                self.killed += 1
            ended = running.ended(SOON)
            no_process_left(output)
        return ended

    def strike(self, running: Run, n: int, output: Path) -> None:
        """Send the signal."""
        if n and self.rng.random() < 0.2:
            running.process.send_signal(signal.SIGTERM)
            return
        ranks = ranks_of(output) or [running.process.pid]
        try:
            os.kill(self.rng.choice(ranks), signal.SIGKILL)
        except ProcessLookupError:
            self.late += 1

    def chain(self) -> None:
        """Begin an output, kill it some times, and let it finish."""
        self.chains += 1
        output = self.folder / f"made_{self.chains}.h5"
        resume = False
        blows = self.rng.randint(1, 4)
        while not output.exists():
            n = self.rng.choice(self.ranks)
            killed = blows > 0
            if killed:
                blows -= 1
                ended = self.kill(n, output, resume)
            else:
                ended = run(self.words(n, output, *["--resume"] * resume), self.folder)
            if ended.status and not killed:
                self.problems.append(f"{output}: {n} ranks: {ended.err}")
                return
            resume = True
        if output.read_bytes() != self.whole:
            self.problems.append(f"{output}: other bytes than the unbroken run's")
            return
        for path in self.folder.glob(f"{output.name}*"):
            path.unlink()


def main() -> int:
    """Run chains until enough runs were killed; return 1 if any did not end as it must."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=100, help="how many runs are to be killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[0, 2, 3], help="numbers of ranks; 0: serial"
    )
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    soak = Soak(folder, told.seed, told.ranks)
    while soak.killed < told.runs and len(soak.problems) < 5:
        try:
            soak.chain()
        except AssertionError as error:
            soak.problems.append(str(error))
    print(
        f"{soak.killed} runs killed in {soak.chains} chains (ranks {told.ranks}, "
        f"seed {told.seed}), {soak.kept} finished blocks found when going on, "
        f"{soak.late} killed too late: "
        f"{len(soak.problems)} problems"
    )
    for problem in soak.problems:
        print(problem)
    if soak.problems:
        print(f"what is left: {folder}")
    else:
        shutil.rmtree(folder)
    return int(bool(soak.problems))


if __name__ == "__main__":
    sys.exit(main())
