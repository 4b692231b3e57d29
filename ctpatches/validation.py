"""Opening an h5 file for reading, and checking it.

Every reader gets the file from `opened`, which checks it against `ATTRIBUTES` and `SCHEMA`:
whatever a forged or damaged file claims, no more memory is used than its size allows, and no other
file is read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t
from numpy.typing import NDArray

from ctpatches.files import Invalid, open_regular
from ctpatches.schema import (
    ATTRIBUTES,
    CLASSES,
    FORMAT,
    GROUPS,
    MAX_CHUNK_BYTES,
    MAX_EXPANSION,
    MAX_IMAGE_SIDE,
    PATCH_COLUMNS,
    REST_BYTES,
    SCHEMA,
    STRING,
    VERSION,
    Field,
    decoded,
)
from ctpatches.windows import Windows


class ValidatedFile:
    """A file of this tool, open for reading, that was checked against `ATTRIBUTES` and `SCHEMA`.

    Parameters
    ----------
    handle : h5py.File
    complete : bool
        Whether a file whose run was interrupted is refused.

    Attributes
    ----------
    path : str
    attributes : dict
        Values of `ATTRIBUTES`; strings are bytes.
    patches, pairs : int
        Number of rows of the datasets with a row a patch, and a pair.
    patch_size : int
        Pixels a side.

    Raises
    ------
    ValueError
        It is no file of this tool, a newer one than this module knows, not complete, or damaged.
    """

    def __init__(self, handle: h5py.File, complete: bool = True) -> None:
        self.path = os.fspath(handle.filename)
        self._handle = handle
        self._datasets: dict[str, h5py.Dataset] = {}
        self._sizes = {"byte": REST_BYTES}
        try:
            self._check_attributes(complete)
            self._size_bytes = int(handle.id.get_filesize())
            for group in GROUPS:
                self._check_link(group)
            for name, field in SCHEMA.items():
                if field.since <= self.version:
                    self._datasets[name] = self._checked(name, field)
        except (Invalid, ImportError, MemoryError):
            raise
        except Exception as error:  # HDF5 and h5py raise what they like over damaged bytes
            raise self.invalid(f"is damaged: its header is not valid ({_kind(error)})") from error
        self.patches, self.pairs = self._sizes["patch"], self._sizes["pair"]
        self.patch_size = self._sizes["side"]

    def invalid(self, reason: str) -> Invalid:
        """Return the error that this file is not valid."""
        return Invalid.of(self.path, reason)

    def __getitem__(self, name: str) -> h5py.Dataset:
        return self._datasets[name]

    def read(self, name: str, rows: Any = slice(None)) -> NDArray[Any]:
        """Return rows of a dataset.

        Raises
        ------
        OSError
            They cannot be read: compressed data are damaged.
        """
        try:
            return np.asarray(self._datasets[name][rows])
        except (OSError, RuntimeError, KeyError) as error:
            raise OSError(f"{self.path!r}: {name} cannot be read: {error}") from error

    def text(self, name: str, row: int) -> str:
        """Return one string of a dataset."""
        return decoded(self.read(name, row).item())

    @property
    def version(self) -> int:
        """The `format_version` of the file."""
        return int(self.attributes["format_version"])

    @property
    def in_hu(self) -> bool:
        """Whether pixels were in HU before they were normalised."""
        return bool(self.attributes["unit"] == b"hu")

    @functools.cached_property
    def blocks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First patch and number of patches of every pair.

        Raises
        ------
        ValueError
            The blocks do not follow one after the other, from the first to the last patch.
        """
        first, patches = self.read("pair/first_patch"), self.read("pair/patches")
        # Numbers up to N alone are added, so that no sum overflows.
        small = max(first.max(initial=0), patches.max(initial=0)) <= self.patches
        first, patches = first.astype(np.int64), patches.astype(np.int64)
        ends = np.append(0, first + patches)
        if not small or not np.array_equal(ends, np.append(first, self.patches)):
            raise self.invalid("is damaged: pair/first_patch and pair/patches do not fit together")
        return first, patches

    @functools.cached_property
    def windows(self) -> Windows:
        """What the rows of `patch/` may hold.

        Raises
        ------
        ValueError
            A table of pairs holds impossible values.
        """
        shapes = np.stack([self.read("pair/rows"), self.read("pair/columns")]).astype(np.int64)
        if ((shapes < 1) | (shapes > MAX_IMAGE_SIDE)).any():
            raise self.invalid(f"has slices of sides beyond 1 to {MAX_IMAGE_SIDE} pixels")
        # With `--edge pad` windows reach past the view, but begin inside of it.
        inside = 1 if self.configuration["edge"] == "pad" else self.patch_size
        return Windows(self.path, *self.blocks, shapes, self.scales, inside)

    def columns(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Return rows of all `PATCH_COLUMNS`, checked."""
        out = {name: self.read(f"patch/{name}", rows) for name in PATCH_COLUMNS}
        self.windows.check(out, np.arange(self.patches)[rows])
        return out

    @functools.cached_property
    def configuration(self) -> dict[str, Any]:
        """The options that decided what the file holds.

        Raises
        ------
        ValueError
            They are not those of this tool.
        """
        try:
            found = json.loads(self.attributes["configuration"])
            valid = (
                isinstance(found["ds_augment"], bool)
                and isinstance(found["anonymize"], bool)
                and found["edge"] in ("shift", "pad")
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if not valid:
            raise self.invalid("holds no configuration of this tool")
        return dict(found)

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales of the views of a pair, the largest first."""
        return (1.0, 0.8, 0.6) if self.configuration["ds_augment"] else (1.0,)

    def slice_file(self, side: str, pair: int) -> str:
        """Return the path of a slice below the input folder of the run.

        Raises
        ------
        ValueError
            It leads out of that folder.
        """
        name = self.text(f"pair/{side}_file", pair)
        if name.startswith("/") or ".." in name.split("/") or not name or "\0" in name:
            raise self.invalid(f"names the slice {name!r}; expected: a path below an input folder")
        return name

    def _check_attributes(self, complete: bool) -> None:
        if self._attribute("format") != FORMAT.encode():
            raise self.invalid("is no file of this tool; wanted: one that main.py made")
        self.attributes = {name: self._attribute(name) for name in ATTRIBUTES}
        version = self.attributes["format_version"]
        if version is not None and not 1 <= version <= VERSION:
            raise self.invalid(f"has format version {version}; known: up to {VERSION}")
        unknown = [name for name, value in self.attributes.items() if value is None]
        if unknown or self.attributes["unit"] not in (b"hu", b"stored"):
            raise self.invalid(f"is damaged: attribute {(*unknown, 'unit')[0]} is not valid")
        if complete and not self.attributes["complete"]:
            raise self.invalid("is not complete: its run was ended, or is at work")

    def _attribute(self, name: str) -> Any:
        """Return the value of an attribute; None where there is none of its type."""
        if not h5a.exists(self._handle.id, name.encode()):
            return None
        found = h5a.open(self._handle.id, name.encode())
        scalar = found.get_space().get_simple_extent_type() == h5s.SCALAR
        if not scalar or not _has_type(found.get_type(), ATTRIBUTES[name]):
            return None
        return self._handle.attrs[name]

    def _check_link(self, name: str) -> None:
        links = self._handle.id.links
        if not links.exists(name.encode()) or links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise self.invalid(f"has no {name}, or a link in its place")

    def _checked(self, name: str, field: Field) -> h5py.Dataset:
        """Return a dataset that is what the schema demands."""
        self._check_link(name)
        found = h5d.open(self._handle.id, name.encode())
        layout = found.get_create_plist()
        # Before the shape is asked for: a virtual dataset opens other files to find it.
        if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
            raise self.invalid(f"has {name} in other files")
        shape, kind = found.shape, found.get_type()
        if not _has_type(kind, field.dtype) or not self._has_shape(shape, field):
            raise self.invalid(
                f"has {name} of shape {shape}, {CLASSES[kind.get_class()]} of {kind.get_size()} "
                f"bytes; expected: {self._expected(field)}"
            )
        if not self._has_room(found, layout, math.prod(shape) * kind.get_size(), field):
            raise self.invalid(f"has {name} of shape {shape}, more than the file can hold")
        return h5py.Dataset(found)

    def _has_shape(self, shape: tuple[int, ...] | None, field: Field) -> bool:
        """Tell whether a shape fits; the first dataset of a kind decides for the others."""
        if not shape or len(shape) != (4 if field.image else 1):
            return False
        if field.image:
            p = max(shape[1:])
            if not 1 <= p <= MAX_IMAGE_SIDE or shape[1:] not in ((1, p, p), (p, p, 1)):
                return False
            if p != self._sizes.setdefault("side", p):
                return False
        return shape[0] == self._sizes.setdefault(field.row_of, shape[0])

    def _expected(self, field: Field) -> str:
        dtype = "fixed-length strings" if field.dtype == STRING else str(np.dtype(field.dtype))
        rows = self._sizes.get(field.row_of, "N")
        shape = f"({rows}, 1, p, p) or ({rows}, p, p, 1)" if field.image else f"({rows},)"
        return f"{dtype} of shape {shape}"

    def _has_room(
        self, found: h5py.h5d.DatasetID, layout: h5py.h5p.PropDCID, size: int, field: Field
    ) -> bool:
        """Tell whether the file is large enough for what a dataset claims to hold."""
        if layout.get_layout() == h5d.CHUNKED:
            # Patches alone are worth compressing: tables must fit as they are.
            most = self._size_bytes * (MAX_EXPANSION if field.row_of == "patch" else 1)
            chunk = math.prod(layout.get_chunk()) * found.get_type().get_size()
            return chunk <= MAX_CHUNK_BYTES and size <= most
        if layout.get_layout() == h5d.COMPACT:
            return bool(size <= found.get_storage_size() <= self._size_bytes)
        offset = found.get_offset()
        return not size or (offset is not None and offset + size <= self._size_bytes)


def _has_type(found: h5py.h5t.TypeID, dtype: str) -> bool:
    if dtype == STRING:
        return isinstance(found, h5t.TypeStringID) and not found.is_variable_str()
    return bool(found.equal(h5t.py_create(np.dtype(dtype))))


def _kind(error: Exception) -> str:
    return type(error).__name__


File: TypeAlias = "str | os.PathLike[str] | h5py.File | ValidatedFile"


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Open a file for reading, on file systems without locks too."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def opened(file: File, complete: bool = True) -> Iterator[ValidatedFile]:
    """Open a file of this tool for reading, and check it.

    Parameters
    ----------
    file : path, h5py.File or ValidatedFile
        One that is open stays open.
    complete : bool
        Whether a file whose run was interrupted is refused.

    Raises
    ------
    OSError
        It is not there, or cannot be read.
    ValueError
        It is no file of this tool, a newer one than this module knows, not complete, or damaged.
    """
    if isinstance(file, ValidatedFile):
        yield file
    elif not isinstance(file, (str, os.PathLike)):
        yield ValidatedFile(file, complete)
    else:
        path = os.fspath(file)
        os.close(open_regular(path))  # an error of the system says more here than in HDF5's words
        try:
            handle = open_file(path)
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            raise Invalid.of(path, "is no HDF5 file, or it is cut off") from error
        with handle:
            yield ValidatedFile(handle, complete)
