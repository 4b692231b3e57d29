"""Conversion of pixels to the type of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import DTYPES


def limits_of(dtype: str) -> Any:
    """Return `min` and `max` of a type of `ctpatches.schema.DTYPES`."""
    kind = np.dtype(DTYPES[dtype])
    return np.iinfo(kind) if kind.kind == "i" else np.finfo(kind)


def cast(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], float]:
    """Return pixels as the type of a file, and the largest difference that this makes.

    Of two equally near numbers a fraction becomes the even one. ValueError is raised for a value
    that, once rounded, does not fit; the message has the lowest or the highest.

    >>> cast(np.array([-1024.0, 0.5, 1.5], np.float32), "int16")
    (array([-1024,     0,     2], dtype=int16), 0.5)
    """
    if dtype == "float32":
        return values, 0.0
    kind, limits = np.dtype(DTYPES[dtype]), limits_of(dtype)
    rounded = np.rint(values) if kind.kind == "i" else values
    ends = np.array([rounded.min(initial=0), rounded.max(initial=0)], np.float32)
    with np.errstate(over="ignore"):  # to infinity, which is beyond the limits
        low, high = ends if kind.kind == "i" else ends.astype(kind)
    if not (limits.min <= low and high <= limits.max):
        found = f"value {ends[int(limits.min <= low)]:.9g} does not fit {dtype}"
        raise ValueError(f"{found}; expected: {float(limits.min):g} to {float(limits.max):g}")
    out = rounded.astype(kind)
    return out, float(np.abs(out - values).max(initial=0))
