"""What every module shares: errors, message formatting, normalisation, random generators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctpatches import __version__
from ctpatches.files import atomic_write
from ctpatches.messages import CallError, RunError, ToolError, printable, quoted

if TYPE_CHECKING:  # numpy is heavy: --help answers without it
    import numpy as np
    from numpy.typing import NDArray


#: What both packages use is defined in `ctpatches`, which imports nothing from here.
__all__ = [
    "CallError",
    "RunError",
    "ToolError",
    "__version__",
    "atomic_write",
    "printable",
    "quoted",
]

NORMALIZATIONS = (
    "None",
    "unity_independent",
    "unity_wrt_ld",
    "std_independent",
    "std_wrt_ld",
    "hu_window",
    "dataset_unity",
    "dataset_std",
)
#: Those by the same figures for every image of the run; always of HU.
FIXED_NORMALIZATIONS = ("hu_window", "dataset_unity", "dataset_std")
SUBSETS = ("train", "val", "test")

#: What lies outside the patient and outside the image: the lowest value of a CT scale, in HU.
AIR_HU = -1024.0
#: Pixels of an image that are summed at once.
SUM_PIXELS = 512 * 512
#: Bytes of patches cut at once: with their view they fit into the second cache of a core, so that
#: summing up and writing them need not fetch them again.
PIECE_BYTES = 512 << 10


def join_lines(headline: str, problems: Iterable[str]) -> str:
    """Return one message: the headline alone with one problem, else a line for each below it."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{headline}: {lines[0]}"
    return "\n".join([f"{headline}:", *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class Affine:
    """A normalisation of one image: ``(pixels - offset) / divisor``, zeros where divisor is 0."""

    offset: float = 0.0
    divisor: float = 1.0

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the normalised image, float32, of the same shape."""
        import numpy as np

        if self == Affine():
            return image
        if self.divisor == 0:
            return np.zeros_like(image)
        out: NDArray[np.float32] = image - np.float32(self.offset)
        out /= np.float32(self.divisor)
        return out

    def undo(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the pixels before normalisation, float32, to float32 accuracy."""
        import numpy as np

        out: NDArray[np.float32] = image * np.float32(self.divisor) + np.float32(self.offset)
        return out


def sum_of(
    function: Callable[[NDArray[np.float32]], NDArray[Any]], image: NDArray[np.float32]
) -> float:
    """Return the sum of a function of every pixel, in float64.

    A part of the image at a time, so that the memory does not depend on its size: as much as 512
    rows of 512 pixels, which are summed at once.
    """
    import numpy as np

    rows = max(1, SUM_PIXELS // image.shape[1])
    parts = (image[start : start + rows] for start in range(0, image.shape[0], rows))
    return math.fsum(float(function(part).sum(dtype=np.float64)) for part in parts)


def _unity(image: NDArray[np.float32]) -> Affine:
    low, high = float(image.min()), float(image.max())
    return Affine(low, high - low)


def _standard(image: NDArray[np.float32]) -> Affine:
    import numpy as np

    mean = image.mean(dtype=np.float64)
    # A constant image has a deviation of rounding errors, not always of exactly 0.
    deviation = 0.0 if image.min() == image.max() else float(image.std(dtype=np.float64))
    return Affine(float(np.float32(mean)), float(np.float32(deviation)))


def img_pair_normalization(
    input_image: NDArray[np.float32],
    target_image: NDArray[np.float32],
    kind: str,
    fixed: Affine | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Affine, Affine]:
    """Normalise the two whole images of a pair.

    Parameters
    ----------
    input_image, target_image : ndarray of float32, shape (rows, columns)
        The low-dose and the full-dose image.
    kind : str
        One of `NORMALIZATIONS`.
    fixed : Affine, optional
        The figures of `FIXED_NORMALIZATIONS`, which are the same for every image of a run.

    Returns
    -------
    input_image, target_image : ndarray of float32
        Of the same shapes. A constant image gives zeros, never NaN.
    input_affine, target_affine : Affine
        What undoes it.
    """
    if kind == "None":
        input_affine = target_affine = Affine()
    elif kind in FIXED_NORMALIZATIONS:
        assert fixed is not None, kind
        input_affine = target_affine = fixed
        if kind == "hu_window":
            low, high = fixed.offset, fixed.offset + fixed.divisor
            input_image, target_image = input_image.clip(low, high), target_image.clip(low, high)
    else:
        measure = _unity if kind.startswith("unity") else _standard
        input_affine = measure(input_image)
        target_affine = input_affine if kind.endswith("wrt_ld") else measure(target_image)
    return (
        input_affine.apply(input_image),
        target_affine.apply(target_image),
        input_affine,
        target_affine,
    )


def key(seed: int, purpose: str, identity: str = "") -> int:
    """Return 128 random bits that depend on nothing but the three arguments of `generator`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(seed), purpose, identity):
        # Lengths before the parts: ('ab', 'c') and ('a', 'bc') are two keys. Names that are not
        # UTF-8 come from the file system as lone surrogates.
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def generator(seed: int, purpose: str, identity: str = "") -> np.random.Generator:
    """Return a random generator that depends on nothing but its three arguments.

    Parameters
    ----------
    seed : int
        `--seed`.
    purpose : str
        What is drawn, so that two kinds of draw for one pair do not share their numbers.
    identity : str
        What it is drawn for: a pair, a patient, or nothing for the whole run.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key(seed, purpose, identity)))
