"""Compression of patches by the filters of HDF5: a chunk per patch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.schema import PLUGIN

#: The most patches, and bytes of patches, that HDF5 compresses or decompresses at once.
MAX_ROWS, MAX_BYTES = 64, 1 << 20
#: Bytes that bitshuffle compresses at once, and those before its first block.
BLOCK_BYTES, BEGIN_BYTES = 8192, 12
_NUMBERS, _KEPT = itertools.count(), threading.local()


def filter_options(compression: Any) -> dict[str, Any]:
    """Return the filters of a compression as arguments of `h5py.Group.create_dataset`."""
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname=compression))


def missing_filter(layout: h5py.h5p.PropDCID) -> str:
    """Return what has to be installed to read a dataset; '' if nothing."""
    for number in range(layout.get_nfilters()):
        code = layout.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            with contextlib.suppress(ImportError):
                importlib.import_module(PLUGIN)
            if not h5py.h5z.filter_avail(code):
                return f"compressed by HDF5's filter {code}; to read it: pip install {PLUGIN}"
    return ""


def _memory(compression: str, dtype: np.dtype[Any], size: int) -> h5py.Dataset:
    """Return a dataset of some patches in memory, the same one in every call of a thread.

    HDF5 has no other interface to its filters.
    """
    kept: dict[Any, h5py.Dataset] = _KEPT.__dict__
    key = f"{compression} {dtype.str} {size}"
    if key not in kept:
        # A piece of memory has a name, like a file, which no other may have.
        name, form = f"ctpatches {next(_NUMBERS)}", (size, size)
        rows = max(1, min(MAX_ROWS, MAX_BYTES // (dtype.itemsize * size**2)))
        file = h5py.File(name, "w", driver="core", backing_store=False, rdcc_nbytes=0)
        filters = filter_options(compression)
        kept[key] = file.create_dataset("x", (rows, *form), dtype, chunks=(1, *form), **filters)
    return kept[key]


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
def _bitshuffle(compression: str) -> Any:
    """Return the function with which hdf5plugin decompresses; None where there is no such one.

    It takes half the time of the way through HDF5.
    """
    try:
        plugin = importlib.import_module(PLUGIN)
        (library,) = Path(plugin.PLUGIN_PATH).glob("libh5bshuf.*")
        function = getattr(ctypes.CDLL(str(library)), f"bshuf_decompress_{compression}")
    except (ImportError, OSError, ValueError, AttributeError):
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


def decompress(
    chunks: Iterable[bytes], n: int, compression: str, dtype: np.dtype[Any], size: int
) -> NDArray[Any]:
    """Return the patches of n chunks, shape (n, p, p).

    Raises OSError for a chunk that is damaged.
    """
    out, width = np.empty((n, size, size), dtype), dtype.itemsize * size**2
    function, first = None if compression == "gzip" else _bitshuffle(compression), out[:1]

    def intact() -> Iterator[bytes]:
        for chunk in chunks:
            if not chunk or (compression != "gzip" and not _has_sizes(chunk, first)):
                raise OSError("a chunk is damaged")
            yield chunk

    remaining = intact()
    if function:
        place = out.ctypes.data
        for row, chunk in enumerate(itertools.islice(remaining, n)):
            content = chunk[BEGIN_BYTES:]
            done = function(content, place + row * width, size**2, dtype.itemsize, 0)
            if done != len(content):
                raise OSError("a chunk is damaged")
        return out
    dataset = _memory(compression, dtype, size)
    for start in range(0, n, len(dataset)):
        part = out[start : start + len(dataset)]
        for row, chunk in enumerate(itertools.islice(remaining, len(part))):
            dataset.id.write_direct_chunk((row, 0, 0), chunk)
        part[:] = dataset[: len(part)]
    return out
