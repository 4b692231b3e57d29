"""Conversion of pixels to the type of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import DTYPES


def cast(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], float]:
    """Return pixels as the type of a file, and the largest difference that this makes.

    Parameters
    ----------
    values : ndarray of float32
    dtype : str
        A key of `ctpatches.schema.DTYPES`. Fractions become the nearest number, of two equally near
        ones the even one.

    Raises
    ------
    ValueError
        A value does not fit; the message has it.

    Examples
    --------
    >>> cast(np.array([-1024.0, 0.5, 1.5], np.float32), "int16")
    (array([-1024,     0,     2], dtype=int16), 0.5)
    """
    if dtype == "float32":
        return values, 0.0
    kind = np.dtype(DTYPES[dtype])
    limits: Any = np.iinfo(kind) if kind.kind == "i" else np.finfo(kind)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    # Beyond the limits by less than half a step, a value is rounded to the limit.
    rounded = (
        np.rint(np.array([low, high], np.float32))
        if kind.kind == "i"
        else np.array([low, high], np.float32).astype(kind)
    )
    if not (limits.min <= rounded[0] and rounded[1] <= limits.max):
        beyond = low if rounded[0] < limits.min else high
        found = f"value {beyond:g} does not fit {dtype}"
        raise ValueError(f"{found}; expected: {float(limits.min):g} to {float(limits.max):g}")
    out = np.rint(values).astype(kind) if kind.kind == "i" else values.astype(kind)
    return out, float(np.abs(out.astype(np.float32) - values).max(initial=0))
