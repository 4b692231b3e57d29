#!/usr/bin/env python3
"""What a competent user writes in an hour: patches of paired CT scans, in one process.

The rival of the benchmark. It makes as many patches as

    main.py --patch-size p55 --rot_augment --ds_augment --air_threshold

of the same windows in the same order, float32, into datasets of one piece; only the turns and flips
are drawn otherwise. It does nothing else: it pairs by file name, and checks no header, no anatomy
and no byte.

With `--check FILE`, the tool's own output for the same folder, it says whether both hold the same
patches, those apart that were turned or flipped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import h5py
import numpy as np
import pydicom
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SIZE, STRIDE = 55, 47
SCALES = (1.0, 0.8, 0.6)
#: Stored values: a pixel above the first is tissue; air has few of those, or a low mean.
TISSUE, MEAN, PART = 200, 100, 0.1
#: A window gives a patch as it is, one turned and one flipped.
TIMES = 3

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def find_pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return the input and the target file of every pair, patient by patient."""
    pairs = []
    for patient in sorted(p for p in root.iterdir() if p.is_dir()):
        (low,) = patient.glob("quarter*")
        (full,) = patient.glob("full*")
        pairs += list(zip(sorted(low.iterdir()), sorted(full.iterdir()), strict=True))
    return pairs


def views(path: Path) -> list[Image]:
    """Return the stored values of a slice at each scale."""
    image = np.asarray(pydicom.dcmread(path).pixel_array, np.float32)
    return [resize(image, scale) for scale in SCALES]


def resize(image: Image, scale: float) -> Image:
    """Return the image at a scale."""
    if scale == 1:
        return image
    rows, columns = (int(n * scale) for n in image.shape)
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def starts(length: int) -> list[int]:
    """Return where windows begin along an axis; the last is moved inward."""
    out = list(range(0, length - SIZE + 1, STRIDE))
    return out if out[-1] + SIZE == length else [*out, length - SIZE]


def windows(view: Image, mask: Mask | None = None) -> Image:
    """Return all windows of a view, or those of the mask, shape (n, p, p)."""
    rows, columns = (w.ravel() for w in np.meshgrid(*map(starts, view.shape), indexing="ij"))
    if mask is not None:
        rows, columns = rows[mask], columns[mask]
    return np.asarray(sliding_window_view(view, (SIZE, SIZE))[rows, columns])


def not_air(patches: Image) -> Mask:
    """Tell the patches of the target that hold more than air."""
    tissue = np.count_nonzero(patches > TISSUE, axis=(1, 2)) > int(PART * SIZE**2)
    return np.asarray(tissue & (patches.mean(axis=(1, 2)) > MEAN))


def fill(out: Image, patches: Image, turns: NDArray[np.int64], flips: NDArray[np.int64]) -> None:
    """Put each patch as it is, turned and flipped into `out`, shape (n, 3, p, p)."""
    out[:, 0] = patches
    for turn in (1, 2, 3):
        out[turns == turn, 1] = np.rot90(patches[turns == turn], turn, axes=(1, 2))
    for axis in (1, 2):
        out[flips == axis, 2] = np.flip(patches[flips == axis], axis)


def make(root: Path, output: Path) -> int:
    """Write the patches of all pairs below `root`; return how many."""
    pairs = find_pairs(root)
    # The targets twice: a dataset of one piece needs its size, and keeping all of them the memory.
    masks = [[not_air(windows(view)) for view in views(full)] for _, full in pairs]
    counts = [TIMES * int(sum(mask.sum() for mask in masks_of)) for masks_of in masks]
    rng = np.random.default_rng(0)
    block = np.empty((2, max(counts), 1, SIZE, SIZE), np.float32)
    with h5py.File(output, "w") as file:
        shape = (sum(counts), 1, SIZE, SIZE)
        datasets = [file.create_dataset(name, shape, np.float32) for name in ("input", "target")]
        first = 0
        for pair, masks_of, count in zip(pairs, masks, counts, strict=True):
            done = 0
            for low, full, mask in zip(*map(views, pair), masks_of, strict=True):
                n = int(mask.sum())
                turns, flips = rng.integers(1, 4, n), rng.integers(1, 3, n)
                for part, view in zip(block, (low, full), strict=True):
                    here = part[done : done + TIMES * n].reshape(n, TIMES, SIZE, SIZE)
                    fill(here, windows(view, mask), turns, flips)
                done += TIMES * n
            for dataset, part in zip(datasets, block, strict=True):
                dataset[first : first + count] = part[:count]
            first += count
    return first


def check(output: Path, other: Path) -> list[str]:
    """Return how the script's patches differ from those in the tool's output; nothing if not."""
    problems = []
    with h5py.File(output) as ours, h5py.File(other) as theirs:
        if len(ours["input"]) != len(theirs["input"]):
            return [f"{len(ours['input'])} patches, not {len(theirs['input'])}"]
        as_it_is = theirs["patch/orientation"][:] == 0
        for name in ("input", "target"):
            one = np.sort([hash(patch.tobytes()) for patch in ours[name][::TIMES]])
            two = np.sort([hash(patch.tobytes()) for patch in theirs[name][as_it_is]])
            if not np.array_equal(one, two):
                problems.append(f"{name}: not the same patches")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="one sub-folder a patient, as for main.py")
    parser.add_argument("output", type=Path, help="the h5 file to make")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with this h5 file")
    options = parser.parse_args(argv)
    print(f"{make(options.folder, options.output)} patches")
    with open(options.output, "rb") as file:
        os.fsync(file.fileno())
    if options.check:
        problems = check(options.output, options.check)
        print("\n".join(problems) or "the same patches")
        return int(bool(problems))
    return 0


if __name__ == "__main__":
    sys.exit(main())
