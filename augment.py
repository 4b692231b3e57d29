"""Augmentation of whole images: downscaling, orientations, blur and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from utils import Image, key

#: Codes of `ctpatches.schema.ORIENTATIONS`.
TURNS = (1, 2, 3)
FLIPS = (4, 5)
#: By code: what writes an image into an array of that orientation, called with (image, argument,
#: array), and the argument. Into an array that is not contiguous OpenCV does not write, without an
#: error.
OPERATIONS: tuple[tuple[Callable[..., Any], int | None], ...] = (
    (cv2.copyTo, None),
    (cv2.rotate, cv2.ROTATE_90_COUNTERCLOCKWISE),
    (cv2.rotate, cv2.ROTATE_180),
    (cv2.rotate, cv2.ROTATE_90_CLOCKWISE),
    (cv2.flip, 0),
    (cv2.flip, 1),
)
#: Fractions of all input images that `--blurr_n_noise` blurs, and adds noise to.
BLUR_FRACTION = NOISE_FRACTION = 0.4
#: Standard deviation of the noise, the same for every normalisation and scale.
NOISE_HU = 8.0

# The ranks are the parallelism: threads in each of them would compete for the cores.
cv2.setNumThreads(1)


def view_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return rows and columns of an image of that shape at that scale: int(length x scale)."""
    return int(shape[0] * scale), int(shape[1] * scale)


def downscale(image: Image, scale: float) -> Image:
    """Return an image at a scale of at most 1, by area interpolation (OpenCV's INTER_AREA).

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
    scale : float
        With 1 the image itself is returned.

    Returns
    -------
    ndarray of float32, shape (int(rows x scale), int(columns x scale))
    """
    if scale == 1:
        return image
    rows, columns = view_shape(image.shape, scale)
    if not rows or not columns:  # OpenCV would refuse
        return np.empty((rows, columns), np.float32)
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def downscale_all(images: Sequence[Image], scales: Sequence[float]) -> Iterator[Sequence[Any]]:
    """Yield images of one shape at every scale, bit for bit as `downscale` returns each.

    OpenCV scales two interleaved images in two thirds of the time: 6 % of the time of a run.
    """
    interleaved: Any = cv2.merge(images) if min(scales, default=1) < 1 else None
    for scale in scales:
        yield images if scale == 1 else cv2.split(downscale(interleaved, scale))


def draw_degradations(identities: Sequence[str], seed: int) -> list[str]:
    """Choose which input images are blurred and which receive noise.

    Parameters
    ----------
    identities : sequence of str
        The pairs: the choice depends on them and the seed, not on their order.
    seed : int

    Returns
    -------
    list of str
        ``'blur'`` for 40 %, ``'noise'`` for 40 % and ``''`` for the rest, in the pairs' order.
    """
    keys = [key(seed, "degradation", name) for name in identities]
    drawn = sorted(range(len(keys)), key=keys.__getitem__)
    blurred, noisy = round(BLUR_FRACTION * len(keys)), round(NOISE_FRACTION * len(keys))
    kinds = [""] * len(keys)
    for place, index in enumerate(drawn[: blurred + noisy]):
        kinds[index] = "blur" if place < blurred else "noise"
    return kinds


def degrade(image: Image, kind: str, rng: np.random.Generator, noise_std: float) -> Image:
    """Blur an image or add noise to it.

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
    kind : {'', 'blur', 'noise'}
        ``blur`` is a 3x3 mean, ``noise`` is Gaussian.
    rng : numpy.random.Generator
        Source of the noise.
    noise_std : float
        Standard deviation of the noise, in the unit of the image.
    """
    if kind == "blur":
        return np.asarray(cv2.blur(image, (3, 3)), np.float32)
    if kind == "noise":
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= np.float32(noise_std)
        noise += image
        return noise
    return image
