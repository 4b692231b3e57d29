#!/usr/bin/env python3
"""Measures the tool against a plain copy of as many bytes and against a good script by hand.

    python benchmarks/run.py            all of it: about an hour
    python benchmarks/run.py --quick    16 pairs, one round: a minute

All contestants take turns within a round, each round begins with another one, and the best round of
each counts: a shared machine is not equally fast at all times, and ratios say more than seconds.
All of them return when their file is on the disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import contestants, inputs, results


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", nargs="+", type=int, default=[160, 640], metavar="N", help="sizes of jobs")
    add("--ranks", nargs="*", type=int, default=[1, 2, 4], metavar="N", help="besides serial")
    choice: dict[str, Any] = {"nargs": "*", "choices": contestants.VARIANTS, "metavar": "NAME"}
    add("--variants", **choice, default=list(contestants.VARIANTS), help="with one and two ranks")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each contestant")
    add(
        "--output",
        type=Path,
        default=Path("results", "benchmark"),
        metavar="DIR",
        help="folder for table.md, table.json and plot.png",
    )
    add("--quick", action="store_true", help="16 pairs, one round: to see that it runs")
    return parser


def measure_job(
    source: Path, pairs: int, folder: Path, names: Sequence[str], rounds: int
) -> list[results.Row]:
    """Let all contestants do one job, in turns.

    Parameters
    ----------
    source : Path
        The input folder.
    pairs : int
        How many it holds.
    folder : Path
        Where they write.
    names : sequence of str
        The contestants.
    rounds : int
    """
    patches = contestants.count_patches(source, folder)
    rows = [results.Row(pairs, name, patches, []) for name in names]
    for number in range(rounds):
        first = number % len(rows)
        for row in [*rows[first:], *rows[:first]]:
            with tempfile.TemporaryDirectory() as work:
                run = contestants.start(row.who, source, folder, patches, Path(work))
            row.runs.append(run)
            line = f"{pairs} pairs, round {number + 1}: {row.who} {run.wall:.2f} s"
            print(line, file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # Ended from outside, it takes what it wrote, and the contestant at work, along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = build_parser()
    options = parser.parse_args(argv)
    if not importlib.util.find_spec("matplotlib"):
        parser.error("the plot needs matplotlib: pip install -r requirements-dev.txt")
    if options.quick:
        options.pairs, options.rounds = [16], 1
    names = contestants.names(options.ranks, options.variants)
    source = inputs.find_source()
    near = os.environ.get("TMPDIR") or inputs.ROOT
    text = f"{results.machine()}; scans: {source.name}; rounds: {options.rounds}"
    rows: list[results.Row] = []
    with tempfile.TemporaryDirectory(prefix=".bench_", dir=near) as scratch:
        for pairs in options.pairs:
            folder = Path(scratch, f"pairs_{pairs}")
            inputs.link_pairs(source, folder, pairs)
            rows += measure_job(folder, pairs, Path(scratch), names, options.rounds)
    rows.sort(key=lambda row: row.pairs)
    shown = f"{text}\n\n{results.table(rows)}\n\n{results.slopes(rows)}\n"
    print(shown, end="")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "table.md").write_text(shown, "utf-8")
    data = json.dumps(results.as_data(rows, text), indent=1)
    (options.output / "table.json").write_text(data + "\n", "utf-8")
    results.draw(rows, text, options.output / "plot.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
