"""Checks an h5 file against the DICOM files that it names, read by pydicom alone."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pydicom
from numpy.typing import NDArray

from tests import naive

Windows = dict[tuple[int, float, int, int], list[int]]


def stored_pixels(path: Path) -> NDArray[np.float32]:
    """Return the stored values of a DICOM file."""
    return pydicom.dcmread(path).pixel_array.astype(np.float32)


def squeezed(dataset: Any) -> NDArray[np.float32]:
    """Return patches of shape (n, p, p), of either tensor format."""
    values: NDArray[np.float32] = dataset[...]
    p = values.shape[2]
    return values.reshape(-1, p, p)


def windows(path: Path) -> Windows:
    """Return the orientations found of each window: (pair, scale, row, column)."""
    found: Windows = defaultdict(list)
    with h5py.File(path) as file:
        table = [file[f"patch/{name}"][...].tolist() for name in ("pair", "row", "col")]
        scales = [round(float(s), 6) for s in file["patch/scale"][...]]
        codes = file["patch/orientation"][...].tolist()
    for pair, row, col, scale, code in zip(*table, scales, codes, strict=True):
        found[pair, scale, row, col].append(code)
    return dict(found)


def expected_windows(pairs: list[tuple[Path, Path]], **how: Any) -> Windows:
    """Return the windows that those pairs of files give, by the naive reference."""
    found: Windows = {}
    for index, (low, full) in enumerate(pairs):
        for patch in naive.patches_of_pair(stored_pixels(low), stored_pixels(full), **how):
            found[index, patch.scale, patch.row, patch.col] = []
    return found


def wrong_patches(path: Path, root: Path) -> list[str]:
    """Return what of a file is not the pixels of the slices that it names.

    Every patch is turned back and compared, bit for bit. Of noisy input images only the size of the
    difference is looked at.
    """
    wrong = []
    with h5py.File(path) as file:
        pair = {name: file[f"pair/{name}"][...] for name in file["pair"]}
        patch = {name: file[f"patch/{name}"][...] for name in file["patch"]}
        images = {side: squeezed(file[side]) for side in ("input", "target")}
    size = images["input"].shape[-1]

    @cache
    def view(side: str, index: int, scale: float) -> NDArray[np.float32]:
        image = stored_pixels(root / pair[f"{side}_file"][index].decode())
        by = (
            np.float32(pair[f"{side}_offset"][index]),
            np.float32(pair[f"{side}_divisor"][index]),
        )
        air = (-1024 - pair[f"{side}_intercept"][index]) / pair[f"{side}_slope"][index]
        image = np.asarray(naive.downscale(naive.normalise(image, by), scale), np.float32)
        if side == "input" and pair["degradation"][index] == b"blur":
            image = np.asarray(cv2.blur(image, (3, 3)), np.float32)
        fill = naive.normalise(np.array([air], np.float32), by)[0]
        out = np.full((image.shape[0] + size, image.shape[1] + size), fill, np.float32)
        out[: image.shape[0], : image.shape[1]] = image
        return out

    for side, patches in images.items():
        for i, turned in enumerate(patches):
            index, row, col = (int(patch[name][i]) for name in ("pair", "row", "col"))
            scale = round(float(patch["scale"][i]), 6)
            whole = view(side, index, scale)
            there = naive.BACK[int(patch["orientation"][i])](turned)
            window = whole[row : row + size, col : col + size]
            if side == "input" and pair["degradation"][index] == b"noise":
                level = 8 / (pair["input_slope"][index] * pair["input_divisor"][index])
                same = bool(np.abs(there - window).max() < 10 * level)
            else:
                same = np.array_equal(there, window)
            if not same:
                wrong.append(f"{side} {i}: pair {index}, scale {scale}, at ({row}, {col})")
    return wrong
