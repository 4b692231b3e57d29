"""Pixel padding: stored values outside the reconstructed image (PS3.3 C.7.5.1.1.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.compressed import LOSSY
from pipeline.dicom.slice_file import refusal
from pipeline.model import Slice
from utils import AIR_HU

if TYPE_CHECKING:
    from pipeline.dicom.slice_file import Header

#: Padding in lossy files is at most as bright as air, -1000 HU by definition.
MAX_PADDING_HU = -1000.0


def padding_range(
    file: str, dataset: Header, syntax: str, dtype: np.dtype[Any], slope: float, intercept: float
) -> tuple[int, int] | None:
    """Return the range of stored values that mean 'no image here' (PS3.3 C.7.5.1.1.2).

    Lossy compression changes padding, and leaves ringing at its edge. Where padding is no more than
    air, in a file of a lossy transfer syntax or with Lossy Image Compression (0028,2110) 01, the
    range is extended to all values below the lowest of a CT scale, -1024 HU: no tissue has those.
    Padding of higher values cannot be told from tissue then, and the file is refused.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None or limit == "" else limit)]
    # The tag is read as signed or unsigned by its VR, which does not always follow the pixels'.
    bits = 8 * dtype.itemsize
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    high = low + (1 << bits) - 1
    ends = [(end - low) % (1 << bits) + low for end in ends]
    if syntax not in LOSSY and str(dataset.get("LossyImageCompression", "")) != "01":
        return min(ends), max(ends)
    brightest = max(slope * end + intercept for end in ends)
    if brightest > MAX_PADDING_HU:
        raise refusal(
            file,
            f"lossy compression with padding of {brightest:g} HU, which cannot be told from tissue",
            f"padding of at most {MAX_PADDING_HU:g} HU, or lossless compression",
        )
    lowest_stored = (AIR_HU - intercept) / slope
    if slope > 0:
        return low, max(*ends, math.ceil(lowest_stored) - 1)
    return min(*ends, math.floor(lowest_stored) + 1), high


def padding_to_air(stored: NDArray[Any], one: Slice) -> NDArray[np.float32]:
    """Return stored values as float32, those of padding replaced by what air would be stored as."""
    out = stored.astype(np.float32)
    if one.padding:
        low, high = one.padding
        inside = stored == low if low == high else (stored >= low) & (stored <= high)
        if inside.any():
            out[inside] = (AIR_HU - one.intercept) / one.slope
    return out
