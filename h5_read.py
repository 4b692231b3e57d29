"""Reading the h5 file: where a patch came from, its values before normalisation, and whether the
file is whole. Needs h5py, numpy and xxhash alone, so it can be copied beside a training script."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import h5py

FORMAT = "paired CT patches"
#: Datasets with a row a patch, in the order in which a block's checksum takes them.
PATCH_COLUMNS = {
    "pair": "<u4",
    "scale": "<f4",
    "row": "<i4",
    "col": "<i4",
    "orientation": "|u1",
}
#: Where the checksum of all bytes lies that belong to no block: 16 bytes of XXH3.
REST = "checksum"
CHUNK_BYTES = 8 << 20

#: How a patch lies, by its code in the file. Turns are counter-clockwise, as `numpy.rot90` turns.
ORIENTATIONS = (
    "as it is",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "flipped up-down",
    "flipped left-right",
)

File: TypeAlias = "str | os.PathLike[str] | h5py.File"
Patches: TypeAlias = int | slice | Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Provenance:
    """Where a patch came from.

    Attributes
    ----------
    patient, input_file, target_file : str
        As below the input folder of the run, or their pseudonyms.
    pair : int
        Row of the `pair/` table.
    position_mm : float
        Of the slice along its normal; NaN where the files have no position.
    scale : float
        Of the view that the patch was cut from: 1, 0.8 or 0.6.
    row, col : int
        First row and column of the window in that view, pixels.
    orientation : int
        Index into `ORIENTATIONS`.
    degradation : str
        What was done to the input slice: ``none``, ``blur`` or ``noise``.
    """

    patient: str
    input_file: str
    target_file: str
    pair: int
    position_mm: float
    scale: float
    row: int
    col: int
    orientation: int
    degradation: str


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Open a file for reading, on file systems without locks too."""
    import h5py  # here, since ranks that only write blocks need the names of this module alone

    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def _opened(file: File) -> Iterator[h5py.File]:
    if isinstance(file, (str, os.PathLike)):
        with open_file(file) as opened:
            yield opened
    else:
        yield file


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def provenance(file: File, patch: int) -> Provenance:
    """Return where a patch came from.

    Parameters
    ----------
    file : path or h5py.File
    patch : int
        Its index in `input` and `target`.

    Raises
    ------
    IndexError
        There is no such patch.
    """
    with _opened(file) as opened:
        patches = len(opened["input"])
        if not 0 <= patch < patches:
            raise IndexError(f"patch {patch} of {patches}")
        here, pairs = opened["patch"], opened["pair"]
        pair = int(here["pair"][patch])
        return Provenance(
            patient=_text(pairs["patient"][pair]),
            input_file=_text(pairs["input_file"][pair]),
            target_file=_text(pairs["target_file"][pair]),
            pair=pair,
            position_mm=float(pairs["position_mm"][pair]),
            scale=round(float(here["scale"][patch]), 6),
            row=int(here["row"][patch]),
            col=int(here["col"][patch]),
            orientation=int(here["orientation"][patch]),
            degradation=_text(pairs["degradation"][pair]),
        )


def read_patches(file: File, patches: Patches) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return some patches of input and target, each of shape (n, p, p), whatever the layout."""
    with _opened(file) as opened:
        rows = np.atleast_1d(np.arange(len(opened["input"]))[patches])
        size = max(opened["input"].shape[1:])
        both = [
            np.stack([side[i] for i in rows]) if len(rows) else side[:0]
            for side in (opened["input"], opened["target"])
        ]
        return both[0].reshape(-1, size, size), both[1].reshape(-1, size, size)


def denormalise(
    values: NDArray[np.floating[Any]],
    file: File,
    patches: Patches | None = None,
    side: str = "target",
    unit: str = "hu",
) -> NDArray[np.float32]:
    """Return patches, or a network's output for them, as they were before normalisation.

    Parameters
    ----------
    values : ndarray, shape (n, ...)
        In the normalisation of the file.
    file : path or h5py.File
        What the patches are from.
    patches : int, slice or sequence of int, optional
        Which patches of the file the n values belong to; by default all, in order.
    side : {'target', 'input'}
        Whose normalisation is undone. A denoised input is meant to be a target, but with
        `unity_independent` and `std_independent` only the input's figures fit the input.
    unit : {'hu', 'stored'}

    Returns
    -------
    ndarray of float32
        Of the shape of `values`, to float32 accuracy. What `hu_window` clipped stays clipped.

    Raises
    ------
    ValueError
        The number of values is not that of the patches, or an argument has no such choice.
    """
    if side not in ("input", "target") or unit not in ("hu", "stored"):
        raise ValueError(f"side {side!r}, unit {unit!r}; wanted: input or target, hu or stored")
    with _opened(file) as opened:
        pair_of = opened["patch/pair"][:]
        chosen = np.atleast_1d(pair_of[slice(None) if patches is None else patches])
        table = opened["pair"]
        offset, divisor, slope, intercept = (
            table[f"{side}_{name}"][:][chosen]
            for name in ("offset", "divisor", "slope", "intercept")
        )
        in_hu = _text(opened.attrs["unit"]) == "hu"
    values = np.asarray(values)
    if len(values) != len(chosen):
        raise ValueError(
            f"{len(values)} values for {len(chosen)} patches; name the patches that they belong to"
        )
    out = values.astype(np.float64)

    def each(figures: NDArray[np.float64]) -> NDArray[np.float64]:
        return figures.reshape(-1, *[1] * (out.ndim - 1))

    out = out * each(divisor) + each(offset)
    if in_hu and unit == "stored":
        out = (out - each(intercept)) / each(slope)
    elif not in_hu and unit == "hu":
        out = out * each(slope) + each(intercept)
    return out.astype(np.float32)


def pixel_digest(hu: NDArray[np.float32]) -> int:
    """Return what identifies the pixels of a slice, whatever file and rescaling they came from.

    Parameters
    ----------
    hu : ndarray of float32, shape (rows, columns)
        HU, contiguous.

    Returns
    -------
    int
        XXH3-64 of the pixels as little-endian float32.
    """
    import xxhash

    return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(hu, "<f4").data))


# --- is the file whole? ----------------------------------------------------------------------


def bulk_names() -> list[str]:
    """Return the datasets with a row a patch, in the order of a block's checksum."""
    return ["input", "target", *(f"patch/{name}" for name in PATCH_COLUMNS)]


def _chunks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        data = os.pread(descriptor, min(CHUNK_BYTES, stop - start), start)
        if not data:
            return
        start += len(data)
        yield data


def rest_digest(descriptor: int, size: int, apart: Sequence[tuple[int, int]]) -> bytes:
    """Return the checksum of all bytes of a file but those of the given (start, stop) ranges."""
    import xxhash

    digest = xxhash.xxh3_128()
    at = 0
    for start, stop in [*sorted(apart), (size, size)]:
        for data in _chunks(descriptor, at, start):
            digest.update(data)
        at = max(at, stop)
    return digest.digest()


def _extents(opened: h5py.File) -> dict[str, tuple[int, int]]:
    """Return first byte and end of every bulk dataset and of the checksum of the rest."""
    out = {}
    for name in [*bulk_names(), REST]:
        dataset = opened[name]
        start = dataset.id.get_offset()
        out[name] = (start, start + dataset.dtype.itemsize * dataset.size)
    return out


def verify(path: str) -> list[str]:
    """Return what is wrong with a file, a line each; nothing if every byte is as it was written.

    Raises
    ------
    OSError
        The file cannot be read at all.
    """
    descriptor = os.open(path, os.O_RDONLY)
    found: list[str] = []
    try:
        for damage in _damages(path, descriptor):
            found.append(damage)
        return found
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Tables that send us anywhere: to bytes before the file or numbers beyond any.
        return [*found, f"header or tables of pairs are damaged ({type(error).__name__})"]
    finally:
        os.close(descriptor)


def _damages(path: str, descriptor: int) -> Iterator[str]:
    size = os.fstat(descriptor).st_size
    try:
        with open_file(path) as opened:
            if opened.attrs.get("format") != FORMAT.encode():
                yield "is no file of this tool, or its header is damaged"
                return
            if not opened.attrs["complete"]:
                yield "is not complete: its run was ended"
            extents = _extents(opened)
            table = opened["pair"]
            columns = ("first_patch", "patches", "checksum", "input_file")
            rows = list(zip(*(table[name][:] for name in columns), strict=True))
            wide = {
                n: opened[n].dtype.itemsize * int(np.prod(opened[n].shape[1:]))
                for n in bulk_names()
            }
    except Exception as error:  # HDF5 and h5py raise what they like over damaged bytes
        yield f"cannot be opened: its header is damaged ({type(error).__name__})"
        return
    wanted = os.pread(descriptor, 16, extents[REST][0])
    if rest_digest(descriptor, size, list(extents.values())) != wanted:
        yield "header or tables of pairs are damaged"
    for index, (first, patches, checksum, name) in enumerate(rows):
        ranges = [
            (extents[n][0] + int(first) * wide[n], int(patches) * wide[n]) for n in bulk_names()
        ]
        if block_digest(descriptor, ranges) != int(checksum):
            yield (
                f"the block of pair {index} ({_text(name)}), patches {first} to "
                f"{int(first) + int(patches) - 1}, is damaged"
            )


def block_digest(descriptor: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the checksum of a block from the (start, length) ranges of its bytes, in order."""
    import xxhash

    digest = xxhash.xxh3_64()
    for start, length in ranges:
        for data in _chunks(descriptor, start, start + length):
            digest.update(data)
    return int(digest.intdigest())
