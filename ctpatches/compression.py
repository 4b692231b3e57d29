"""Compression of patches by the filters of HDF5: a chunk per patch."""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import PLUGIN

try:
    import hdf5plugin
except Exception:  # only lz4 and zstd need it
    hdf5plugin = None  # type: ignore[assignment]

#: The most patches, and bytes of patches, that HDF5 compresses at once.
MAX_ROWS, MAX_BYTES = 64, 1 << 20
#: Bytes that bitshuffle compresses at once, and those before its first block.
BLOCK_BYTES, BEGIN_BYTES = 8192, 12


def filter_options(compression: Any) -> dict[str, Any]:
    """Return the filters of a compression as arguments of `h5py.Group.create_dataset`."""
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    return dict(hdf5plugin.Bitshuffle(cname=compression))


def missing_filter(layout: h5py.h5p.PropDCID) -> str:
    """Return what has to be installed to read a dataset; '' if nothing."""
    for number in range(layout.get_nfilters()):
        code = layout.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            return f"compressed by HDF5's filter {code}; to read it: pip install {PLUGIN}"
    return ""


@functools.cache
def _memory(compression: str, dtype: np.dtype[Any], size: int) -> h5py.Dataset:
    """Return a dataset of some patches in memory; HDF5 has no other interface to its filters."""
    name, form = f"ctpatches {compression} {dtype} {size}", (size, size)
    rows = max(1, min(MAX_ROWS, MAX_BYTES // (dtype.itemsize * size**2)))
    file = h5py.File(name, "w", driver="core", backing_store=False, rdcc_nbytes=0)
    filters = filter_options(compression)
    return file.create_dataset("x", (rows, *form), dtype, chunks=(1, *form), **filters)


def compress(patches: NDArray[Any], compression: str) -> list[bytes]:
    """Return the chunk of each of some patches, shape (n, p, p), as HDF5 writes it.

    A chunk depends on its patch alone.
    """
    dataset = _memory(compression, patches.dtype, patches.shape[-1])
    out = []
    for start in range(0, len(patches), len(dataset)):
        part = patches[start : start + len(dataset)]
        dataset[: len(part)] = part
        out += [dataset.id.read_direct_chunk((row, 0, 0))[1] for row in range(len(part))]
    return out


@functools.cache
def decompressor(compression: str) -> Any:
    """Return the function with which hdf5plugin decompresses; None where there is no such one.

    It takes half the time of reading through HDF5.
    """
    try:
        (library,) = Path(hdf5plugin.PLUGIN_PATH).glob("libh5bshuf.*")
        function = getattr(ctypes.CDLL(str(library)), f"bshuf_decompress_{compression}")
    except (OSError, ValueError, AttributeError):
        return None
    function.restype = ctypes.c_int64
    sizes = [ctypes.c_size_t] * 3  # pixels, bytes of each, and of a block: 0 for the default
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, *sizes]
    return function


def _has_sizes(chunk: bytes, patch: NDArray[Any]) -> bool:
    """Return whether the sizes in a chunk of bitshuffle are those of its parts.

    The library does not check them, and reads beyond the chunk where they are others. The parts are
    the bytes of the patch (8) and of a block (4), the blocks, each after its compressed size (4),
    and the last pixels, fewer than 8, as they are.
    """
    if not chunk.startswith(patch.nbytes.to_bytes(8, "big") + BLOCK_BYTES.to_bytes(4, "big")):
        return False
    place, rest = BEGIN_BYTES, patch.size % 8 * patch.itemsize
    for _ in range(-(-(patch.nbytes - rest) // BLOCK_BYTES)):
        place += 4 + int.from_bytes(chunk[place : place + 4], "big")
    return place + rest == len(chunk)


def _inflate(chunks: Iterable[bytes], out: NDArray[Any]) -> None:
    """Undo gzip and shuffle: a chunk has the first bytes of all pixels, then the second ones."""
    pixels = out.reshape(len(out), -1).view(np.uint8).reshape(len(out), -1, out.itemsize)
    for chunk, patch in zip(chunks, pixels, strict=True):
        try:
            raw = zlib.decompressobj().decompress(chunk, patch.size + 1)
        except zlib.error as error:
            raise OSError("a chunk is damaged") from error
        if len(raw) != patch.size:
            raise OSError("a chunk is damaged")
        patch.T[:] = np.frombuffer(raw, np.uint8).reshape(out.itemsize, -1)


def decompress(chunks: Iterable[bytes], compression: str, out: NDArray[Any]) -> None:
    """Decompress a chunk into each patch of `out`, shape (n, p, p).

    Not through HDF5, which trusts the sizes in a forged file. Of lz4 and zstd, there must be a
    `decompressor`. Raises OSError for a chunk that is damaged.
    """
    if compression == "gzip":
        _inflate(chunks, out)
        return
    function, first, place = decompressor(compression), out[:1], out.ctypes.data
    for chunk in chunks:
        content, intact = chunk[BEGIN_BYTES:], _has_sizes(chunk, first)
        if not intact or function(content, place, first.size, out.itemsize, 0) != len(content):
            raise OSError("a chunk is damaged")
        place += first.nbytes
