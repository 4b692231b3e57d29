"""Augmentation of whole images: downscaling, orientations, blur and noise."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils import key, sum_of

Image = NDArray[np.float32]

#: Codes of `ctpatches.schema.ORIENTATIONS`.
TURNS = (1, 2, 3)
FLIPS = (4, 5)
#: Part of all input images that `--blurr_n_noise` blurs, and that it makes noisy.
BLUR_PART = NOISE_PART = 0.4
#: Standard deviation of the noise, in root mean squares of the image.
NOISE_LEVEL = 0.01


_IMPORT = threading.Lock()


@functools.cache
def opencv() -> ModuleType:
    """Import OpenCV where it is used: whoever only reads a file needs none."""
    with _IMPORT:  # where its import fails in one thread, another would get a part of the module
        import cv2

    # The ranks are the parallelism: threads in each of them would only fight for the cores.
    cv2.setNumThreads(1)
    return cv2


def view_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return rows and columns of an image of that shape at that scale: int(length x scale)."""
    return int(shape[0] * scale), int(shape[1] * scale)


def downscale(image: Image, scale: float) -> Image:
    """Return the image at a scale, by area interpolation (OpenCV's INTER_AREA).

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns) or (rows, columns, n)
        With a third axis: n images, each pixel of one beside those of the others.
    scale : float
        At most 1; at 1 the image itself is returned.

    Returns
    -------
    ndarray of float32, shape (int(rows x scale), int(columns x scale)) or with the third axis
    """
    if scale == 1:
        return image
    rows, columns = view_shape((image.shape[0], image.shape[1]), scale)
    if not rows or not columns:  # OpenCV would refuse
        return np.empty((rows, columns, *image.shape[2:]), np.float32)
    cv2 = opencv()
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def downscale_all(images: Sequence[Image], scales: Sequence[float]) -> list[list[Image]]:
    """Return every image at every scale, bit for bit as `downscale` returns it.

    Two of one shape together take OpenCV two thirds of the time that they take one by one: a sum of
    one does not wait for the last sum of the other.
    """
    alike = len(images) == 2 and images[0].shape == images[1].shape
    smaller = [view_shape(images[0].shape[:2], s) for s in scales if s != 1] if alike else []
    if not smaller or not all(map(all, smaller)):
        return [[downscale(image, scale) for scale in scales] for image in images]
    cv2 = opencv()
    both = cv2.merge(images)
    views = [images if scale == 1 else cv2.split(downscale(both, scale)) for scale in scales]
    return [list(of_one) for of_one in zip(*views, strict=True)]


def orient(image: NDArray[Any], code: int) -> NDArray[Any]:
    """Return an image (or a patch) in the orientation of that code, contiguous.

    Parameters
    ----------
    image : ndarray, shape (rows, columns)
    code : int
        Index into `ctpatches.schema.ORIENTATIONS`.
    """
    if code in FLIPS:
        image = np.flipud(image) if code == FLIPS[0] else np.fliplr(image)
    elif code:
        image = np.rot90(image, code)
    return np.ascontiguousarray(image)


@functools.cache
def operations() -> tuple[tuple[Callable[..., object], int] | None, ...]:
    """Return, by code, what `orient` does as a call of OpenCV's and its second argument.

    ``call(image, argument, out)`` writes into `out`, which must be contiguous: into anything else
    OpenCV would not write, without an error. None stands for a plain copy.
    """
    cv2 = opencv()
    return (
        None,
        (cv2.rotate, cv2.ROTATE_90_COUNTERCLOCKWISE),
        (cv2.rotate, cv2.ROTATE_180),
        (cv2.rotate, cv2.ROTATE_90_CLOCKWISE),
        (cv2.flip, 0),
        (cv2.flip, 1),
    )


def draw_degradations(identities: Sequence[str], seed: int) -> list[str]:
    """Choose which input images are blurred and which get noise.

    The choice depends on the set of pairs and the seed, not on the order of the pairs.

    Parameters
    ----------
    identities : sequence of str
        One for each pair of the plan.
    seed : int

    Returns
    -------
    list of str
        ``'blur'`` for 40 %, ``'noise'`` for 40 % and ``''`` for the rest, in the pairs' order.
    """
    lots = [key(seed, "degradation", name) for name in identities]
    n = len(lots)
    blurred, noisy = round(BLUR_PART * n), round(NOISE_PART * n)
    kinds = ["blur"] * blurred + ["noise"] * noisy + [""] * (n - blurred - noisy)
    out = [""] * n
    for kind, index in zip(kinds, sorted(range(n), key=lots.__getitem__), strict=True):
        out[index] = kind
    return out


def degrade(image: Image, kind: str, rng: np.random.Generator) -> Image:
    """Blur an image or add noise to it.

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
    kind : {'', 'blur', 'noise'}
        ``blur`` is a 3x3 mean; ``noise`` is Gaussian, with a standard deviation of 1 % of the
        image's root mean square.
    rng : numpy.random.Generator
        Where the noise is drawn from.
    """
    if kind == "blur":
        return np.asarray(opencv().blur(image, (3, 3)), np.float32)
    if kind == "noise":
        squares = sum_of(lambda part: np.square(part, dtype=np.float64), image)
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= np.float32(NOISE_LEVEL * np.sqrt(squares / image.size))
        noise += image
        return noise
    return image
