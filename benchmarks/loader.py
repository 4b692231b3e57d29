#!/usr/bin/env python3
"""Measures random batches of 64 through a PyTorch DataLoader with two workers.

    python benchmarks/loader.py PATCHES.h5 OTHER.h5 ...

All files hold the same patches, in any store, type and compression; the first one holds them as
they are (`--store patches --compression none`), and is read through a NumPy memory map as well.
They take turns, each in a process of its own: with nothing of the file in memory (cold), with all
of it (warm), and with the memory of all processes limited to parts of the size of the first file,
after the file was read once. Limits need root and control groups of Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ctpatches.torch import PatchDataset
from ctpatches.validation import opened

BATCH, WORKERS = 64, 2
MAP = "memory map of the patches"
#: Where control groups are limited, of versions 1 and 2, and the file with the limit.
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


class MapDataset:
    """Patches of a file with contiguous datasets, through `numpy.memmap`, a batch at once."""

    def __init__(self, file: Path) -> None:
        self.maps: list[NDArray[np.float32]] = []
        with opened(file) as source:
            datasets = [source[role] for role in ("input", "target")]
            self.layouts: list[Any] = [
                (file, d.dtype, "r", d.id.get_offset(), d.shape) for d in datasets
            ]

    def __len__(self) -> int:
        return int(self.layouts[0][-1][0])

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, ...]]:
        self.maps = self.maps or [np.memmap(*layout) for layout in self.layouts]
        parts = [torch.from_numpy(one[indices]) for one in self.maps]
        return list(zip(*parts, strict=True))


def read_through(file: Path) -> None:
    """Read a file from its beginning to its end, so that it is in memory as far as it fits."""
    buffer = bytearray(1 << 20)
    with open(file, "rb", buffering=0) as raw:
        while raw.readinto(buffer):
            pass


def measure(dataset: Any, batches: int, seed: int, limit_s: float) -> float:
    """Return patches per second, without the start of the workers.

    Measuring ends after that many batches or seconds.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))[: BATCH * (batches + WORKERS)]
    loader: Any = DataLoader(dataset, BATCH, sampler=order.tolist(), num_workers=WORKERS)
    seen, began, took = 0, 0.0, 0.0
    for number, (inputs, _) in enumerate(loader):
        if number < WORKERS:  # by then every worker has started and opened its files
            began = time.perf_counter()
            continue
        seen, took = seen + len(inputs), time.perf_counter() - began
        if took > limit_s:
            break
    return seen / took


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[Path | None]:
    """Yield the file to which a process writes its number to be limited to so many bytes."""
    if limit is None:
        yield None
        return
    folder, name = next(group for group in GROUPS if (group[0] / "cgroup.procs").exists())
    group = folder / f"loader_{os.getpid()}"
    group.mkdir()
    try:
        (group / name).write_text(str(limit))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def run(file: Path, mapped: bool, state: str, seed: int, options: argparse.Namespace) -> float:
    """Measure in a process of its own; `state` is cold, warm or per cent of the first file."""
    part = int(state) / 100 if state.isdigit() else None
    size = options.files[0].stat().st_size
    with open(file, "rb") as raw:
        os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with limited(None if part is None else int(part * size)) as group:
        command = [sys.executable, __file__, str(file), "--batches", str(options.batches)]
        command += ["--limit-s", str(options.limit_s), "--one", str(seed), state]
        command += ["map" if mapped else "file", str(group or os.devnull)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def run_one(options: argparse.Namespace) -> None:
    """Print what was measured in this process."""
    seed, state, way, group = options.one
    Path(group).write_text(str(os.getpid()))
    (file,) = options.files
    if state != "cold":
        read_through(file)
    torch.set_num_threads(1)
    dataset: Any = MapDataset(file) if way == "map" else PatchDataset(file)
    print(measure(dataset, options.batches, int(seed), options.limit_s))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="h5 files of the tool")
    parser.add_argument("--batches", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--limits", nargs="*", type=int, default=[40, 25], metavar="PERCENT")
    parser.add_argument("--limit-s", type=float, default=60, help="seconds of a measurement")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        run_one(options)
        return 0
    if options.limits and os.geteuid():
        print("memory is not limited: only root can", file=sys.stderr)
        options.limits = []
    states = ["cold", "warm", *map(str, options.limits)]
    ways = [(file, False) for file in options.files]
    ways.insert(1, (options.files[0], True))
    rates: dict[Any, list[float]] = {each: [] for each in itertools.product(ways, states)}
    for seed, ((file, mapped), state) in itertools.product(range(options.rounds), rates):
        rate = run(file, mapped, state, seed, options)
        rates[(file, mapped), state].append(rate)
        name = MAP if mapped else file.name
        print(f"round {seed + 1}, {name}, {state}: {rate:.0f}/s", file=sys.stderr, flush=True)
    print_table(ways, states, rates)
    return 0


def print_table(
    ways: Sequence[tuple[Path, bool]], states: Sequence[str], rates: dict[Any, list[float]]
) -> None:
    """Print the median of each rate, and how many times that of the first file it is."""
    heads = [f"memory {state} %" if state.isdigit() else state for state in states]
    print("| read from | MB | " + " | ".join(heads) + " |")
    print("| --- " * (2 + len(heads)) + "|")
    for way in ways:
        file, mapped = way
        cells = [MAP if mapped else file.name, f"{file.stat().st_size / 1e6:.0f}"]
        for state in states:
            rate, first = (statistics.median(rates[one, state]) for one in (way, ways[0]))
            cells.append(f"{rate:.0f} ({rate / first:.2f} x)")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
