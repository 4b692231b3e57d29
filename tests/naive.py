"""The tool's arithmetic once more: slow, plain and from the specification alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]

AIR_HU = -1024
TURNED = {
    0: lambda image: image,
    1: lambda image: np.rot90(image, 1),
    2: lambda image: np.rot90(image, 2),
    3: lambda image: np.rot90(image, 3),
    4: np.flipud,
    5: np.fliplr,
}
BACK = {**TURNED, 1: TURNED[3], 3: TURNED[1]}


@dataclass(frozen=True)
class Patch:
    """A patch before it is turned, and where it lies."""

    scale: float
    row: int
    col: int
    input: Image
    target: Image


def starts(length: int, size: int, overlap: int, edge: str) -> list[int]:
    """Return where windows begin; for `pad` only with an overlap up to the stride."""
    stride = size - overlap
    if length < size:
        return []
    if edge == "pad":
        found, k = [0], 1
        while k * stride < length:
            found.append(k * stride - overlap)
            k += 1
        return sorted(set(found))
    found = []
    while len(found) * stride + size <= length:
        found.append(len(found) * stride)
    if found[-1] + size < length:
        found.append(length - size)
    return found


def is_kept(patch_hu: Image, tissue_hu: float = -824, fraction: float = 0.1) -> bool:
    """Tell whether a patch of HU holds more than air."""
    values = patch_hu.ravel().tolist()
    tissue = sum(value > tissue_hu for value in values)
    return (
        tissue > int(fraction * len(values)) and math.fsum(values) / len(values) > tissue_hu - 100
    )


Mask = NDArray[np.bool_]
_BESIDE = ((-1, 0), (1, 0), (0, -1), (0, 1))
_AROUND = (*_BESIDE, (-1, -1), (-1, 1), (1, -1), (1, 1))


def components(mask: Mask, steps: tuple[tuple[int, int], ...]) -> list[Mask]:
    """Return the components of a mask, pixel by pixel."""
    left = set(zip(*(at.tolist() for at in np.nonzero(mask)), strict=True))
    found = []
    while left:
        one = np.zeros(mask.shape, bool)
        to_visit = [left.pop()]
        while to_visit:
            row, col = to_visit.pop()
            one[row, col] = True
            near = {(row + down, col + right) for down, right in steps} & left
            left -= near
            to_visit += near
        found.append(one)
    return found


def filled(mask: Mask) -> Mask:
    """Return a mask with what it encloses."""
    around = np.pad(mask, 1)
    outside = next(one for one in components(~around, _BESIDE) if one[0, 0])
    return ~outside[1:-1, 1:-1]


def opened(mask: Mask) -> Mask:
    """Return all squares of 5 x 5 pixels that lie in a mask, or in its part of the image."""
    found = np.zeros(mask.shape, bool)
    for row, col in np.ndindex(mask.shape):
        square = np.s_[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3]
        found[square] |= mask[square].all()
    return found


def body_mask(hu: Image) -> Mask:
    """Return the body in an image without padding."""
    tissue = opened(hu > -500)
    body = np.zeros(hu.shape, bool)
    for one in components(tissue, _AROUND):
        height, width = (int(np.ptp(at)) + 1 for at in np.nonzero(one))
        square_pixels = min(max(height, width) ** 2, hu.size)
        pixels = (filled(one) & tissue).sum()
        inside_another = (filled(tissue & ~one) & one).any()
        if pixels >= max(0.002 * hu.size, 0.1 * square_pixels) and not inside_another:
            body |= filled(one)
    rest = ~body
    for one in components(rest, _AROUND):
        height, width = (int(np.ptp(at)) + 1 for at in np.nonzero(one))
        lung = (hu[one] >= -910) & (hu[one] <= -500)
        if height * width >= 0.002 * hu.size and 2 * lung.sum() > one.sum():
            body |= one
    return body


def downscale(image: Image, scale: float) -> Image:
    """Return the image at a scale, by area interpolation."""
    if scale == 1:
        return image
    rows, columns = int(image.shape[0] * scale), int(image.shape[1] * scale)
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)


def area_mean(image: Image, rows: int, columns: int) -> Image:
    """Return the mean over the area that each pixel of the smaller image covers."""

    def weights(small: int, large: int) -> Image:
        step = large / small
        out = np.zeros((small, large))
        for i in range(small):
            for j in range(large):
                out[i, j] = max(0.0, min((i + 1) * step, j + 1) - max(i * step, j)) / step
        return out

    return weights(rows, image.shape[0]) @ image @ weights(columns, image.shape[1]).T


def constants(image: Image, kind: str) -> tuple[np.float32, np.float32]:
    """Return what `unity` and `std` normalisation subtract and divide by."""
    values = [float(v) for v in image.ravel()]
    if kind.startswith("unity"):
        return np.float32(min(values)), np.float32(max(values) - min(values))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return np.float32(mean), np.float32(0 if min(values) == max(values) else math.sqrt(variance))


def normalise(image: Image, by: tuple[np.float32, np.float32]) -> Image:
    """Return the image less the first constant, over the second; zeros if that is 0."""
    if by[1] == 0:
        return np.zeros_like(image, np.float32)
    return (image.astype(np.float32) - by[0]) / by[1]


def patches_of_pair(
    stored_input: Image,
    stored_target: Image,
    *,
    size: int,
    overlap: int,
    edge: str = "shift",
    kind: str = "None",
    scales: tuple[float, ...] = (1.0,),
    air_threshold: bool = False,
    min_body: float | None = None,
    slope: float = 1,
    intercept: float = -1024,
    blur: bool = False,
) -> list[Patch]:
    """Return every patch of a pair before it is turned: normalise, downscale, blur, cut."""
    images = [stored_input.astype(np.float32), stored_target.astype(np.float32)]
    hu = (images[1].astype(np.float64) * slope + intercept).astype(np.float32)
    body = (hu if min_body is None else body_mask(hu)).astype(np.float32)
    air = np.float32((AIR_HU - intercept) / slope)
    fills: list[Any] = [air, air]
    if kind != "None":
        low_dose = constants(images[0], kind)
        by = [low_dose, low_dose if kind.endswith("wrt_ld") else constants(images[1], kind)]
        fills = [normalise(np.array([air]), b)[0] for b in by]
        images = [normalise(image, b) for image, b in zip(images, by, strict=True)]
    found = []
    for scale in scales:
        views = [downscale(image, scale) for image in images]
        if blur:
            views[0] = cv2.blur(views[0], (3, 3))
        hu_view = downscale(hu, scale)
        body_view = downscale(body, scale)
        at = [starts(length, size, overlap, edge) for length in hu_view.shape]
        if not at[0] or not at[1]:
            continue
        for row in at[0]:
            for col in at[1]:
                if air_threshold and not is_kept(_window(hu_view, row, col, size, AIR_HU)):
                    continue
                if min_body is not None:
                    inside = _window(body_view, row, col, size, 0) >= 0.5
                    if inside.sum() <= min_body * size**2:
                        continue
                cut = [
                    _window(view, row, col, size, fill)
                    for view, fill in zip(views, fills, strict=True)
                ]
                found.append(Patch(scale, row, col, *cut))
    return found


def _window(view: Image, row: int, col: int, size: int, fill: float) -> Image:
    out = np.full((size, size), fill, np.float32)
    part = view[row : row + size, col : col + size]
    out[: part.shape[0], : part.shape[1]] = part
    return out
