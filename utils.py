"""What the modules share: errors, message formatting, normalisation, random generators."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ctpatches.messages import (
    CallError,
    RunError,
    did_you_mean,
    join_lines,
    printable,
    quoted,
)
from ctpatches.normalisation import AIR_HU, Affine, affine_of

#: What both packages use is defined in `ctpatches`, which imports nothing from here.
__all__ = [
    "AIR_HU",
    "Affine",
    "CallError",
    "RunError",
    "did_you_mean",
    "join_lines",
    "printable",
    "quoted",
]

Image = NDArray[np.float32]

SUBSETS = ("train", "val", "test")


def img_pair_normalization(
    input_image: Image, target_image: Image, kind: str, fixed: Affine | None = None
) -> tuple[Image, Image, Affine, Affine]:
    """Normalise the two whole images of a pair.

    Parameters
    ----------
    input_image, target_image : ndarray of float32, shape (rows, columns)
        The low-dose and the full-dose image; HU for ``hu_window`` and ``dataset_...``.
    kind : str
        One of `pipeline.config.NORMALIZATIONS`.
    fixed : Affine, optional
        For ``hu_window`` and ``dataset_...``: the normalisation of all images of the run.

    Returns
    -------
    input_image, target_image : ndarray of float32, shape (rows, columns)
        A constant image gives zeros, never NaN.
    input_affine, target_affine : Affine
        What was applied, and undoes it.
    """
    if kind == "None":
        input_affine = target_affine = Affine()
    elif fixed is not None:
        input_affine = target_affine = fixed
        if kind == "hu_window":
            low, high = fixed.offset, fixed.offset + fixed.divisor
            input_image, target_image = input_image.clip(low, high), target_image.clip(low, high)
    else:
        input_affine = target_affine = affine_of(input_image, kind)
        if kind.endswith("_independent"):
            target_affine = affine_of(target_image, kind)
    images = input_affine.apply(input_image), target_affine.apply(target_image)
    return *images, input_affine, target_affine


def key(seed: int, purpose: str, identity: str = "") -> int:
    """Return 128 random bits that depend only on the three arguments of `generator`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(seed), purpose, identity):
        # Lengths before the parts: ('ab', 'c') and ('a', 'bc') are two keys. Names that are not
        # UTF-8 come from the file system as lone surrogates.
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def generator(seed: int, purpose: str, identity: str = "") -> np.random.Generator:
    """Return a random generator that depends only on its three arguments.

    Parameters
    ----------
    seed : int
        `--seed`.
    purpose : str
        What is drawn, so that two kinds of draw for one pair are independent.
    identity : str
        What it is drawn for: a pair, a patient, or nothing for the whole run.
    """
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, identity)))
