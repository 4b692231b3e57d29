"""Patches and orientations as whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import augment
from patching import Block
from utils import Image


def patches_of(block: Block, role: str) -> Image:
    """Return all patches of the input or the target, shape (n, p, p)."""
    pieces = [block.cut(role, piece) for piece in block.pieces()]
    return np.concatenate([np.empty((0, block.size, block.size), np.float32), *pieces])


def oriented(image: Any, code: int) -> Image:
    """Return an image in an orientation."""
    image = np.asarray(image, np.float32)
    shape = image.shape[::-1] if code in (1, 3) else image.shape
    out = np.empty(shape, np.float32)
    call, argument = augment.OPERATIONS[code]
    call(image, argument, out)
    return out
