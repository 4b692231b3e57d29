"""The order of patches in a shuffled file: a permutation that is computed, not stored.

A Feistel network on pairs of numbers below `side` permutes 0 to side^2 - 1, and cycle walking
restricts it to 0 to n - 1: what lies outside is permuted again (Black and Rogaway, Ciphers with
arbitrary finite domains, 2002). It takes no memory, and any process knows the place of any patch.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 to n - 1: of the rows of a file, by seed and name of its first input."""

    n: int
    seed: int
    name: bytes

    def forward(self, index: NDArray[Any]) -> Indices:
        """Return the place of each of some numbers, shape (k,)."""
        return self._walk(index, self._encrypt)

    def inverse(self, index: NDArray[Any]) -> Indices:
        """Return the number at each of some places, shape (k,)."""
        return self._walk(index, self._decrypt)

    def _walk(self, index: NDArray[Any], step: Any) -> Indices:
        out = step(index.astype(np.uint64))
        while (outside := np.flatnonzero(out >= np.uint64(self.n))).size:
            out[outside] = step(out[outside])
        return np.asarray(out, np.int64)

    @functools.cached_property
    def _keys(self) -> tuple[int, ...]:  # four, of 64 bits
        return struct.unpack("<4Q", hashlib.sha256(b"%d %b" % (self.seed, self.name)).digest())

    @functools.cached_property
    def _side(self) -> np.uint64:  # the smallest number whose square is at least n
        return np.uint64(math.isqrt(max(self.n, 1) - 1) + 1)

    def _encrypt(self, index: _Words) -> _Words:
        side = self._side
        left, right = np.divmod(index, side)
        for key in self._keys:
            left, right = right, (left + split_mix(right, key) % side) % side
        return left * side + right

    def _decrypt(self, index: _Words) -> _Words:
        side = self._side
        left, right = np.divmod(index, side)
        for key in reversed(self._keys):
            left, right = (right + side - split_mix(left, key) % side) % side, left
        return left * side + right


def split_mix(words: _Words, key: int) -> _Words:
    """Return the finalizer of SplitMix64 (Steele et al., 2014) of words plus a key."""
    out = words + np.uint64(key)
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))
