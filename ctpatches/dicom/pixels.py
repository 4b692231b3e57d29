"""Pixels of slices: stored values and HU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctpatches.dicom.slice_file import Slice, read_part
from ctpatches.normalisation import AIR_HU


def read_pixels(root: str, one: Slice) -> NDArray[np.float32]:
    """Read the stored values of a slice, exact (none has more than 16 bits); padding becomes air.

    Raises `RunError` if the file is gone, damaged, or changed since its header was read.
    """
    if one.pixel_offset is None:
        from ctpatches.dicom.compressed import decode  # here: needs pydicom

        stored = decode(read_part(root, one, 0, one.stamp[0]), one)
    else:
        size = one.rows * one.columns * np.dtype(one.dtype).itemsize
        data = read_part(root, one, one.pixel_offset, size)
        stored = np.frombuffer(data, one.dtype).reshape(one.rows, one.columns)
        if unused := 8 * stored.dtype.itemsize - one.bits_stored:  # once used for overlays
            stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
            stored = (stored << unused) >> unused  # keeps the sign
    out = stored.astype(np.float32)
    if one.padding:
        low, high = one.padding
        inside = stored == low if low == high else (stored >= low) & (stored <= high)
        out[inside] = (AIR_HU - one.intercept) / one.slope
    return out


def to_hu(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    """Return stored values in HU: slope x value + intercept (PS3.3 C.11.1.1.2), float32."""
    scaled = stored if one.slope == 1 else stored * np.float32(one.slope)
    return scaled + np.float32(one.intercept)


def read_hu(root: str, one: Slice) -> NDArray[np.float32]:
    """Read a slice in HU, see `read_pixels`."""
    return to_hu(read_pixels(root, one), one)
