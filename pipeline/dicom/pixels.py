"""Pixels of slices: stored values, HU, and samples for the anatomy check."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.slice_file import read_parts
from pipeline.model import Slice
from utils import AIR_HU

#: Image of every nth row and column, about 64 x 64 pixels, HU rounded.
Sample: TypeAlias = NDArray[np.int16]
SAMPLE_SIZE = 64


def read_pixels(root: str, one: Slice) -> NDArray[np.float32]:
    """Read the stored values of a slice, exact (none has more than 16 bits); padding becomes air.

    Raises `RunError` if the file is gone, damaged, or changed since its header was read.
    """
    if one.pixel_offset is None:
        from pipeline.dicom.compressed import decode

        stored = decode(read_parts(root, one, [0], one.stamp[0]), one)
    else:
        size = one.rows * one.columns * np.dtype(one.dtype).itemsize
        stored = _native(read_parts(root, one, [one.pixel_offset], size), one)
    return _padding_to_air(stored.reshape(one.rows, one.columns), one)


def _native(data: bytes, one: Slice) -> NDArray[Any]:
    """Return native stored values without the bits above those stored (once used for overlays)."""
    stored = np.frombuffer(data, one.dtype)
    if unused := 8 * stored.dtype.itemsize - one.bits_stored:
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        return (stored << unused) >> unused  # keeps the sign
    return stored


def _padding_to_air(stored: NDArray[Any], one: Slice) -> NDArray[np.float32]:
    """Return stored values as float32, those of padding replaced by what air would be stored as."""
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


def read_sample(root: str, one: Slice) -> Sample:
    """Read a sample of a slice; of native pixels only the rows that are in it."""
    if one.pixel_offset is None:
        return sample_of(to_hu(read_pixels(root, one), one))
    width = one.columns * np.dtype(one.dtype).itemsize
    rows = range(one.rows)[:: _step(one.rows)]
    data = read_parts(root, one, [one.pixel_offset + row * width for row in rows], width)
    stored = _native(data, one).reshape(len(rows), -1)[:, :: _step(one.columns)]
    return _rounded(to_hu(_padding_to_air(stored, one), one))


def sample_of(hu: NDArray[np.float32]) -> Sample:
    """Return the sample of an image in HU, equal to that of `read_sample`."""
    return _rounded(hu[:: _step(hu.shape[0]), :: _step(hu.shape[1])])


def _step(pixels: int) -> int:
    return max(1, pixels // SAMPLE_SIZE)


def _rounded(hu: NDArray[np.float32]) -> Sample:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


class Reader:
    """Reads the images of one pair in HU, each at most once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.images: dict[str, NDArray[np.float32]] = {}

    def hu(self, one: Slice) -> NDArray[np.float32]:
        """Return a slice in HU; not to be changed."""
        if one.file not in self.images:
            self.images[one.file] = to_hu(read_pixels(self.root, one), one)
        return self.images[one.file]

    def sample(self, one: Slice) -> Sample:
        if one.file in self.images:
            return sample_of(self.images[one.file])
        return read_sample(self.root, one)
