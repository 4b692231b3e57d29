#!/usr/bin/env python3
"""Measures random batches through a PyTorch DataLoader, from the h5 file and from a memory map.

    python benchmarks/loader.py FILE

Both read the same patches in the same order, with the same DataLoader, in turns. The memory map is
what a user would make without this tool's file: one `.npy` file for the inputs and one for the
targets.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from ctpatches.torch import PatchDataset
from ctpatches.validation import opened


class MapDataset:
    """Patches of two `.npy` files, mapped; each worker maps them for itself.

    Parameters
    ----------
    folder : Path
        Holds `input.npy` and `target.npy`.
    whole_batches : bool
        Whether a batch is gathered in one go, as `PatchDataset` does, and not patch by patch.
    """

    def __init__(self, folder: Path, whole_batches: bool) -> None:
        self.folder = folder
        self.maps: list[NDArray[np.float32]] = []
        self.size = len(self._open()[0])
        self.maps = []
        if whole_batches:
            self.__getitems__ = self._batch

    def _open(self) -> list[NDArray[np.float32]]:
        if not self.maps:
            paths = [self.folder / f"{name}.npy" for name in ("input", "target")]
            self.maps = [np.load(path, mmap_mode="r") for path in paths]
        return self.maps

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        torch: Any = importlib.import_module("torch")
        return tuple(torch.from_numpy(np.array(one[index])) for one in self._open())

    def _batch(self, indices: list[int]) -> list[tuple[Any, ...]]:
        torch: Any = importlib.import_module("torch")
        parts = [torch.from_numpy(one[indices]) for one in self._open()]
        return list(zip(*parts, strict=True))


def save_maps(file: Path, folder: Path) -> None:
    """Copy inputs and targets of an h5 file into `.npy` files, piece by piece."""
    with opened(file) as handle:
        for name in ("input", "target"):
            source = handle[name]
            path = folder / f"{name}.npy"
            out = np.lib.format.open_memmap(path, "w+", source.dtype, source.shape)
            for first in range(0, len(source), 4096):
                out[first : first + 4096] = source[first : first + 4096]
            out.flush()


def patches_a_second(dataset: Any, batches: int, workers: int, seed: int) -> float:
    """Return the rate of random batches of 64, without the start of the workers."""
    data: Any = importlib.import_module("torch.utils.data")
    order = np.random.default_rng(seed).integers(0, len(dataset), 64 * (batches + workers))
    loader = data.DataLoader(dataset, batch_size=64, sampler=order.tolist(), num_workers=workers)
    seen = 0
    began = 0.0
    for number, (inputs, _) in enumerate(loader):
        if number == workers:  # by now every worker has started and opened its files
            began = time.perf_counter()
        elif number > workers:
            seen += len(inputs)
    return seen / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path, help="an h5 file of the tool")
    parser.add_argument("--batches", type=int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.file.absolute().parent) as folder:
        save_maps(options.file, Path(folder))
        sets: dict[str, Any] = {
            "memory map, patch by patch": MapDataset(Path(folder), whole_batches=False),
            "memory map, whole batches": MapDataset(Path(folder), whole_batches=True),
            "h5 file": PatchDataset(options.file),
        }
        rates: dict[str, list[float]] = {name: [] for name in sets}
        for number in range(options.rounds):
            for name, dataset in sets.items():
                rates[name].append(
                    patches_a_second(dataset, options.batches, options.workers, number)
                )
    print("| from | patches/s, best | median | h5 file / it |\n| --- | --- | --- | --- |")
    for name, values in rates.items():
        ratio = max(rates["h5 file"]) / max(values)
        print(f"| {name} | {max(values):.0f} | {statistics.median(values):.0f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
