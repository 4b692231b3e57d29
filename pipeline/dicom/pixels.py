"""Pixels of slices: stored values, HU, and samples for the anatomy check."""

from __future__ import annotations

import io
import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.compressed import decode
from pipeline.dicom.padding import padding_to_air
from pipeline.dicom.slice_file import opened_unchanged, refusal
from pipeline.model import Slice

#: Image of every nth row and column, about 64 x 64 pixels, HU rounded.
Sample: TypeAlias = NDArray[np.int16]

#: Pixels a side of a sample.
SAMPLE_SIDE = 64


def read_pixels(root: str, one: Slice) -> NDArray[np.float32]:
    """Read the stored values of a slice.

    Parameters
    ----------
    root : str
        The input folder.
    one : Slice

    Returns
    -------
    ndarray of float32, shape (rows, columns)
        Exact: no stored value has more than 16 bits. Padding has become air.

    Raises
    ------
    RunError
        The file is gone or damaged, changed since its header was read, or no decoder reads its
        transfer syntax.
    """
    with opened_unchanged(root, one) as stream:
        if one.pixel_offset is None:
            data = stream.read()
        else:
            size = one.rows * one.columns * np.dtype(one.dtype).itemsize
            data = _bytes_at(stream, one, one.pixel_offset, size)
    if one.pixel_offset is None:
        stored = decode(data, one)
    else:
        stored = _without_unused_bits(np.frombuffer(data, one.dtype), one.bits_stored)
    return padding_to_air(stored.reshape(one.rows, one.columns), one)


def _bytes_at(stream: io.FileIO, one: Slice, offset: int, size: int) -> bytes:
    """Return that many bytes of a slice's file."""
    data = os.pread(stream.fileno(), size, offset)
    if len(data) != size:
        raise refusal(one.file, f"only {len(data)} bytes could be read at {offset}", f"{size}")
    return data


def _without_unused_bits(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Clear the bits above those stored (overlays once lay there), keeping the sign."""
    unused = stored.dtype.itemsize * 8 - bits
    if not unused:
        return stored
    if stored.dtype.kind == "u":
        masked: NDArray[Any] = stored & stored.dtype.type((1 << bits) - 1)
        return masked
    native = stored.astype(stored.dtype.newbyteorder("="))
    return (native << unused) >> unused


def to_hu(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    """Return stored values in HU: slope x value + intercept (PS3.3 C.11.1.1.2), float32."""
    return _to_hu_in_place(stored.copy(), one)


def _to_hu_in_place(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    if one.slope != 1:
        stored *= np.float32(one.slope)
    stored += np.float32(one.intercept)
    return stored


def read_sample(root: str, one: Slice) -> Sample:
    """Read a sample of a slice, for the anatomy check.

    Returns
    -------
    ndarray of int16, shape (about 64, about 64)
    """
    if one.pixel_offset is None:
        return sample_of(read_pixels(root, one), one)
    down, right = _sample_steps(one.rows, one.columns)
    width = np.dtype(one.dtype).itemsize * one.columns
    rows = range(0, one.rows, down)
    with opened_unchanged(root, one) as stream:
        raw = b"".join(
            _bytes_at(stream, one, one.pixel_offset + row * width, width) for row in rows
        )
    flat = _without_unused_bits(np.frombuffer(raw, one.dtype), one.bits_stored)
    few = flat.reshape(len(rows), one.columns)[:, ::right]
    return _rounded(to_hu(padding_to_air(few, one), one))


def sample_of(stored: NDArray[np.float32], one: Slice) -> Sample:
    """Return the sample of an image whose pixels have been read, equal to that of `read_sample`."""
    down, right = _sample_steps(one.rows, one.columns)
    return _rounded(to_hu(stored[::down, ::right], one))


def _sample_steps(rows: int, columns: int) -> tuple[int, int]:
    """Return the steps between the rows and between the columns of a sample."""
    return max(1, rows // SAMPLE_SIDE), max(1, columns // SAMPLE_SIDE)


def _rounded(hu: NDArray[np.float32]) -> Sample:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


class Reader:
    """Reads the images of one pair, each at most once.

    Parameters
    ----------
    root : str
        The input folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.images: dict[str, NDArray[np.float32]] = {}

    def stored(self, one: Slice) -> NDArray[np.float32]:
        """Return the stored values of a slice."""
        if one.file not in self.images:
            self.images[one.file] = read_pixels(self.root, one)
        return self.images[one.file]

    def hu(self, one: Slice) -> NDArray[np.float32]:
        """Return a slice in HU."""
        return to_hu(self.stored(one), one)

    def last_hu(self, one: Slice) -> NDArray[np.float32]:
        """Return a slice in HU, as the last of the pair: no image is kept."""
        stored = self.stored(one)
        self.images.clear()
        return _to_hu_in_place(stored, one)

    def sample(self, one: Slice) -> Sample:
        """Return the sample of a slice."""
        if one.file in self.images:
            return sample_of(self.images[one.file], one)
        return read_sample(self.root, one)
