#!/usr/bin/env python3
"""Measures random crops of TorchIO and MONAI from the same scans, in batches of 64, two workers.

    pip install torchio monai pydicom torch
    python benchmarks/other_loaders.py FOLDER

TorchIO's Queue reads slices while it crops; MONAI's CacheDataset holds all of them in memory. Both
crop at random: without fixed patches, an air threshold, further scales and provenance.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray

from benchmarks.hand_script import SIZE, find_pairs

# Without types, and not among the requirements.
monai: Any = importlib.import_module("monai")
torchio: Any = importlib.import_module("torchio")

BATCH, WORKERS = 64, 2


def read(path: str | Path) -> NDArray[np.float32]:
    """Return the stored values of a slice, shape (1, rows, columns)."""
    return np.asarray(pydicom.dcmread(path).pixel_array[None], np.float32)


def read_image(path: Path) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Return a slice as a volume of TorchIO, and its affine."""
    return torch.from_numpy(read(path))[..., None], np.eye(4)


def torchio_queue(pairs: Sequence[tuple[Path, Path]], crops: int) -> Any:
    """Return batches; every slice that is read gives so many crops."""
    subjects = [
        torchio.Subject(
            low=torchio.ScalarImage(low, reader=read_image),
            full=torchio.ScalarImage(full, reader=read_image),
        )
        for low, full in pairs
    ]
    queue = torchio.Queue(
        torchio.SubjectsDataset(subjects),
        max_length=16 * crops,
        samples_per_volume=crops,
        sampler=torchio.UniformSampler((SIZE, SIZE, 1)),
        num_workers=WORKERS,
    )
    return torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)


def monai_cache(pairs: Sequence[tuple[Path, Path]], crops: int) -> Any:
    """Return batches; every slice of a batch gives so many crops."""
    data = [{"low": read(low), "full": read(full)} for low, full in pairs]
    crop = monai.transforms.RandSpatialCropSamplesd(
        ("low", "full"), (SIZE, SIZE), crops, random_size=False
    )
    dataset = monai.data.CacheDataset(data, crop, progress=False)
    options = {"batch_size": BATCH // crops, "shuffle": True, "num_workers": WORKERS}
    return monai.data.DataLoader(dataset, **options)


def rate(batches: Iterable[Any], seconds: float) -> float:
    """Return patches per second, without the first batches, in which workers start."""
    seen, began, took = 0, 0.0, 0.0
    passes = itertools.chain.from_iterable(itertools.repeat(batches))
    for number, batch in enumerate(passes):
        if number <= WORKERS:
            began = time.perf_counter()
            continue
        low = batch["low"]
        seen += len(low["data"] if isinstance(low, dict) else low)
        took = time.perf_counter() - began
        if took > seconds:
            break
    return seen / took


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="scans, one folder per patient")
    parser.add_argument("--seconds", type=float, default=20, help="of a measurement; default: 20")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pairs = find_pairs(options.folder)
    print("| loader | crops per slice | patches/s |\n| --- | --- | --- |")
    for crops, (name, make) in itertools.product(
        (8, 64),
        (
            (f"TorchIO {torchio.__version__} Queue", torchio_queue),
            (f"MONAI {monai.__version__} CacheDataset", monai_cache),
        ),
    ):
        found = rate(make(pairs, crops), options.seconds)
        print(f"| {name} | {crops} | {found:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
