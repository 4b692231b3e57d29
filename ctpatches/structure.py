"""Opening an h5 file, and validating its attributes and datasets against the schema.

Whatever a forged or damaged file claims, no more memory is used than its size allows, and no other
file is read.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Self, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t
from numpy.typing import NDArray

from ctpatches import direct
from ctpatches.compression import missing_filter
from ctpatches.files import Invalid, open_regular
from ctpatches.schema import (
    ADDED_OPTIONS,
    ATTRIBUTES,
    COPY,
    DTYPES,
    FORMAT,
    MAX_CHUNK_BYTES,
    MAX_COLUMN_CHUNKS,
    MAX_EXPANSION,
    MAX_IMAGE_SIDE,
    PIXELS,
    REST_BYTES,
    SCHEMA,
    STORAGE,
    STRING,
    VERSION,
    Field,
    decoded,
    in_store,
)

PathLike: TypeAlias = "str | os.PathLike[str]"
Rows: TypeAlias = "int | slice | NDArray[np.int64]"


class FileStructure:
    """An h5 file, open for reading, with the attributes and datasets of the schema."""

    def __init__(self, file: PathLike | h5py.File, complete: bool = True) -> None:
        self._owned = isinstance(file, str | os.PathLike)
        self._handle: Any = _open_hdf5(file) if isinstance(file, str | os.PathLike) else file
        self.path = os.fspath(self._handle.filename)
        self._datasets: dict[str, h5py.Dataset] = {}
        #: Shape and type of a row, and first byte; h5py takes longer for these than a row to read.
        self._layouts: dict[str, tuple[tuple[int, ...], np.dtype[Any], int | None]] = {}
        #: Number of rows by what they are for, and "size", pixels of a patch along an edge.
        self._sizes = {"byte": REST_BYTES}
        try:
            self._check_header(complete)
            self._check_content()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file unless it was passed open; what was read remains."""
        if self._owned:
            self._handle.close()

    def __getitem__(self, name: str) -> h5py.Dataset:
        return self._datasets[name]

    def values(self, name: str, rows: Rows = slice(None)) -> NDArray[Any]:
        """Return rows of a dataset: one, a slice, or those of an array of indices in any order.

        `OSError` is raised if the file was truncated, or compressed data are damaged.
        """
        dataset = self._datasets[name]
        try:
            if not isinstance(rows, np.ndarray):
                return np.asarray(dataset[rows])
            if name not in self._layouts:
                self._layouts[name] = dataset.shape[1:], dataset.dtype, dataset.id.get_offset()
            shape, dtype, offset = self._layouts[name]
            out = np.empty((len(rows), *shape), dtype)
            if offset is None or self.descriptor < 0 or not direct.POSSIBLE:
                for at, row in enumerate(rows.tolist()):
                    out[at] = dataset[row]
                return out
        except (OSError, RuntimeError, KeyError) as error:
            raise OSError(f"{self.path!r}: {name} cannot be read: {error}") from error
        direct.read_rows(self.path, self.descriptor, offset, rows, out)
        return out

    def texts(self, name: str) -> list[str]:
        """Return all strings of a dataset."""
        return list(map(decoded, self.values(name).tolist()))

    def _check_content(self) -> None:
        """Check what the datasets contain."""

    def _check_header(self, complete: bool) -> None:
        try:
            self._check_attributes(complete)
            for name, field in SCHEMA.items():
                present = in_store(name, self.store, self.compressed)
                if field.since <= self.version and present:
                    self._datasets[name] = self._checked(name, field)
            # Only the default driver has a descriptor, and a writer may not have written yet.
            direct = self._handle.driver == "sec2" and self._handle.mode == "r"
            self.descriptor = self._handle.id.get_vfd_handle() if direct else -1
        except (Invalid, ImportError, MemoryError):
            raise
        except Exception as error:  # HDF5 and h5py raise errors of many types for damaged bytes
            kind = type(error).__name__
            raise Invalid(self.path, f"is damaged: its header is not valid ({kind})") from error

    def _check_attributes(self, complete: bool) -> None:
        #: Strings are bytes.
        self.attributes = found = {name: self._attribute(name) for name in ATTRIBUTES}
        if found["format"] != FORMAT.encode():
            raise Invalid(self.path, "is not a file of ctpatches; expected: one that main.py wrote")
        version = found["format_version"]
        if version is not None and not 1 <= version <= VERSION:
            raise Invalid(self.path, f"has format version {version}; known: up to {VERSION}")
        invalid = [name for name, value in found.items() if value is None]
        if invalid or found["unit"] not in (b"hu", b"stored"):
            raise Invalid(self.path, f"is damaged: attribute {[*invalid, 'unit'][0]} is not valid")
        if complete and not found["complete"]:
            raise Invalid(self.path, "is not complete: its run was interrupted, or is in progress")
        self.version = int(version)
        try:
            #: The options of the run that determine the content of the file.
            self.config = ADDED_OPTIONS | dict(json.loads(found["configuration"]))
            flags = [self.config[n] for n in ("ds_augment", "anonymize", "shuffle_patches")]
            valid = {type(flag) for flag in flags} == {bool}
            valid &= self.config["edge"] in ("shift", "pad")
            valid &= all(self.config[name] in known for name, known in STORAGE.items())
            #: What the file stores: one of `ctpatches.schema.STORES`.
            self.store = self.config["store"]
            self.compressed = self.config["compression"] != "none"
            if self.store == "views":
                size = self._sizes["size"] = self.config["patch_size"]
                valid &= type(size) is int and 1 <= size <= MAX_IMAGE_SIDE and not self.compressed
        except (ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if not valid:
            raise Invalid(self.path, "contains no configuration of ctpatches")

    def _attribute(self, name: str) -> Any:
        """Return the value of an attribute; None where it is missing or of another type.

        A text of variable length is not read: HDF5 would reserve and fill up to 4 GB, whatever
        length it claims. Its copy of fixed length is read instead.
        """
        dtype, attributes = ATTRIBUTES[name], self._handle.id
        if _is_variable_text(attributes, name):
            name += COPY
        if not h5a.exists(attributes, name.encode()):
            return None
        found = h5a.open(attributes, name.encode())
        scalar = found.get_space().get_simple_extent_type() == h5s.SCALAR
        return self._handle.attrs[name] if scalar and _has_type(found.get_type(), dtype) else None

    def _checked(self, name: str, field: Field) -> h5py.Dataset:
        """Return a dataset; the first one with a row for something decides how many rows it has."""
        links = self._handle.id.links
        for part in (name.partition("/")[0], name):
            link = part.encode()
            if not links.exists(link) or links.get_info(link).type != h5l.TYPE_HARD:
                raise Invalid(self.path, f"has no {part}, or a link in its place")
        found = h5d.open(self._handle.id, name.encode())
        layout = found.get_create_plist()
        # Before its shape is read: a virtual dataset opens other files to find it.
        if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
            raise Invalid(self.path, f"has {name} in other files")
        if problem := missing_filter(layout):
            raise Invalid(self.path, f"has {name} {problem}")
        shape, kind = found.shape, found.get_type()
        rows, *edges = shape or (0,)
        n, p = self._sizes.get(field.row_of, rows), self._sizes.get("size", max(edges, default=0))
        shapes = [(n, 1, p, p), (n, p, p, 1)] if field.image else [(n,)]
        possible = shape in shapes and (1 <= p <= MAX_IMAGE_SIDE or not field.image)
        expected_type = DTYPES[self.config["dtype"]] if field.dtype == PIXELS else field.dtype
        if not possible or not _has_type(kind, expected_type):
            rows = self._sizes.get(field.row_of, "N")
            dtype = "fixed-length strings" if field.dtype == STRING else np.dtype(expected_type)
            expected = f"({rows}, 1, p, p) or ({rows}, p, p, 1)" if field.image else f"({rows},)"
            kind_name = type(kind).__name__.removeprefix("Type").removesuffix("ID").lower()
            found_type = f"{kind_name} of {kind.get_size()} bytes"
            reason = f"shape {shape}, {found_type}; expected: {dtype} of shape {expected}"
            raise Invalid(self.path, f"has {name} of {reason}")
        self._sizes |= {field.row_of: n, "size": p}
        if not self._has_room(found, layout, field):
            raise Invalid(self.path, f"has {name} of shape {shape}, more than the file can hold")
        if layout.get_layout() == h5d.CHUNKED and not field.image:
            chunks = -(-rows // layout.get_chunk()[0])
            if chunks > MAX_COLUMN_CHUNKS:
                reason = f"has {name} in {chunks} chunks; expected: at most {MAX_COLUMN_CHUNKS}"
                raise Invalid(self.path, reason)
        # h5py reads a row in a third of the time if nothing about the dataset can change.
        return h5py.Dataset(found, readonly=self._handle.mode == "r")

    def _has_room(self, found: h5d.DatasetID, layout: h5py.h5p.PropDCID, field: Field) -> bool:
        """Return whether the file is large enough for what a dataset claims to hold."""
        width = found.get_type().get_size()
        size, limit = width * math.prod(found.shape), self._handle.id.get_filesize()
        if layout.get_layout() == h5d.CHUNKED:
            # Only patches are worth compressing: tables must fit as they are.
            limit *= MAX_EXPANSION if field.row_of == "patch" else 1
            return bool(size <= limit) and width * math.prod(layout.get_chunk()) <= MAX_CHUNK_BYTES
        if layout.get_layout() == h5d.COMPACT:
            return bool(size <= found.get_storage_size() <= limit)
        offset = found.get_offset()
        return not size or (offset is not None and offset + size <= limit)


def _is_variable_text(place: h5py.h5g.GroupID, attribute: str) -> bool:
    if not h5a.exists(place, attribute.encode()):
        return False
    kind = h5a.open(place, attribute.encode()).get_type()
    return isinstance(kind, h5t.TypeStringID) and bool(kind.is_variable_str())


def _has_type(found: h5t.TypeID, dtype: str) -> bool:
    if dtype == STRING:
        return isinstance(found, h5t.TypeStringID) and not found.is_variable_str()
    return bool(found.equal(h5t.py_create(np.dtype(dtype))))


def open_file(path: PathLike) -> h5py.File:
    """Open a file for reading, on file systems without locks too."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


def _open_hdf5(path: PathLike) -> h5py.File:
    path = os.fspath(path)
    os.close(open_regular(path))  # an error of the system says more than that of HDF5
    try:
        return open_file(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise Invalid(path, "is not an HDF5 file, or was truncated") from error
