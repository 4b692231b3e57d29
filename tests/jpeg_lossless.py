"""A plain JPEG Lossless encoder (ITU-T T.81, process 14), for DICOM files of that syntax."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import UID


def encode(samples: NDArray[Any], precision: int) -> bytes:
    """Return a JPEG Lossless stream of an image, each sample predicted by the one to its left.

    Parameters
    ----------
    samples : ndarray of integers, shape (rows, columns)
        Each from 0 to 2^precision - 1.
    precision : int
        Bits a sample, 2 to 16.
    """
    rows, columns = samples.shape
    values = samples.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = []
    for difference in (values - predicted).ravel().tolist():
        wrapped = (difference + 32767) % 65536 - 32767  # -32767 to 32768
        size = abs(wrapped).bit_length()
        bits.append(f"{size:05b}")  # the table below: every size has a code of five bits
        if 0 < size < 16:
            extra = wrapped if wrapped > 0 else wrapped + (1 << size) - 1
            bits.append(f"{extra:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HBHHB3B", 11, precision, rows, columns, 1, 1, 0x11, 0)
    lengths = [0] * 16
    lengths[4] = 17  # the sizes 0 to 16
    table = struct.pack(">HB16B17B", 2 + 17 + 17, 0, *lengths, *range(17))
    start = struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0)
    parts = [b"\xff\xd8", b"\xff\xc3", frame, b"\xff\xc4", table, b"\xff\xda", start, scan]
    return b"".join([*parts, b"\xff\xd9"])


def compress(path: Path, syntax: UID) -> Path:
    """Turn a native file of one slice into one of a JPEG Lossless transfer syntax, in place."""
    dataset = pydicom.dcmread(path)
    bits = int(dataset.BitsStored)
    samples = dataset.pixel_array.astype(np.int64) % (1 << bits)
    dataset.PixelData = encapsulate([encode(samples, bits)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path
