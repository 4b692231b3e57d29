"""Opening an h5 file, and validating its attributes and datasets against the schema.

Whatever a forged or damaged file claims, no more memory is used than its size allows, and no other
file is read.
"""

from __future__ import annotations

import functools
import json
import math
import os
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t

from ctpatches import schema
from ctpatches.compression import missing_filter
from ctpatches.files import Invalid, open_regular

PathLike: TypeAlias = "str | os.PathLike[str]"


def open_hdf5(path: PathLike) -> h5py.File:
    """Open a file for reading, on file systems without locks too."""
    path = os.fspath(path)
    os.close(open_regular(path))  # an error of the system says more than that of HDF5
    # HDF5_DRIVER may name another driver as the default: only this one has a descriptor.
    opened = functools.partial(h5py.File, path, "r", driver="sec2")
    try:
        try:
            return opened()
        except OSError as error:
            if "lock" not in str(error):
                raise
            return opened(locking=False)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise Invalid(path, "is not an HDF5 file, or was truncated") from error


def checked_attributes(file: h5py.File, complete: bool) -> dict[str, Any]:
    """Return the attributes of a file; Invalid is raised if any is not valid.

    A text of variable length is not read: HDF5 would reserve and fill up to 4 GB, whatever length
    it claims. Its copy of fixed length is read instead.
    """
    found: dict[str, Any] = dict.fromkeys(schema.ATTRIBUTES)
    for name, dtype in schema.ATTRIBUTES.items():
        key = name + schema.COPY if name + schema.COPY in file.attrs else name
        if key in file.attrs:
            one = h5a.open(file.id, key.encode())
            scalar = one.get_space().get_simple_extent_type() == h5s.SCALAR
            if scalar and _has_type(one.get_type(), dtype):
                value = file.attrs[key]
                found[name] = schema.decoded(value) if dtype == schema.STRING else value
    if found["format"] != schema.FORMAT:
        raise Invalid(file.filename, "is not a file of ctpatches; expected: one that main.py wrote")
    version = found["format_version"]
    if version is not None and not 1 <= version <= schema.VERSION:
        raise Invalid(file.filename, f"has format version {version}; known: up to {schema.VERSION}")
    invalid = [name for name, value in found.items() if value is None]
    if invalid or found["unit"] not in ("hu", "stored"):
        raise Invalid(file.filename, f"is damaged: attribute {[*invalid, 'unit'][0]} is not valid")
    if complete and not found["complete"]:
        raise Invalid(file.filename, "is not complete: its run was interrupted, or is in progress")
    return found


def checked_configuration(file: h5py.File, text: str) -> dict[str, Any]:
    """Return the options of a run by name, from JSON; those that readers use are valid."""
    try:
        config = schema.ADDED_OPTIONS | dict(json.loads(text))
        flags = [config[name] for name in ("ds_augment", "anonymize", "shuffle_patches")]
        valid = {type(flag) for flag in flags} == {bool} and config["edge"] in ("shift", "pad")
        valid &= all(config[name] in known for name, known in schema.STORAGE.items())
        if config["store"] == "views":
            size = config["patch_size"]
            valid &= type(size) is int and 1 <= size <= schema.MAX_IMAGE_SIDE
            valid &= config["compression"] == "none"
    except (ValueError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise Invalid(file.filename, "contains no configuration of ctpatches")
    return config


def checked_datasets(
    file: h5py.File, config: dict[str, Any], version: int
) -> tuple[dict[str, h5py.Dataset], dict[str, int]]:
    """Return the datasets of a file, and how many rows they have, by what the rows are for.

    Under "size" there are the pixels of a patch along an edge.
    """
    out, sizes = {}, {"byte": schema.REST_BYTES}
    if config["store"] == "views":
        sizes["size"] = config["patch_size"]
    for name, field in schema.SCHEMA.items():
        present = schema.in_store(name, config["store"], config["compression"] != "none")
        if field.since <= version and present:
            dtype = schema.DTYPES[config["dtype"]] if field.dtype == schema.PIXELS else field.dtype
            out[name] = _checked(file, name, field, dtype, sizes)
    return out, sizes


def _checked(
    file: h5py.File, name: str, field: schema.Field, dtype: str, sizes: dict[str, int]
) -> h5py.Dataset:
    """Return a dataset; the first one with a row for something decides how many rows it has."""
    for part in (name.partition("/")[0], name):
        links, link = file.id.links, part.encode()
        if not links.exists(link) or links.get_info(link).type != h5l.TYPE_HARD:
            raise Invalid(file.filename, f"has no {part}, or a link in its place")
    found = h5d.open(file.id, name.encode())
    layout = found.get_create_plist()
    # Before its shape is read: a virtual dataset opens other files to find it.
    if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
        raise Invalid(file.filename, f"has {name} in other files")
    if problem := missing_filter(layout):
        raise Invalid(file.filename, f"has {name} {problem}")
    shape, kind = found.shape, found.get_type()
    rows, *edges = shape or (0,)
    n, p = sizes.get(field.row_of, rows), sizes.get("size", max(edges, default=0))
    shapes = [(n, 1, p, p), (n, p, p, 1)] if field.image else [(n,)]
    possible = shape in shapes and (1 <= p <= schema.MAX_IMAGE_SIDE or not field.image)
    if not possible or not _has_type(kind, dtype):
        n = sizes.get(field.row_of, "N")
        expected_type = "fixed-length strings" if dtype == schema.STRING else np.dtype(dtype)
        expected = f"({n}, 1, p, p) or ({n}, p, p, 1)" if field.image else f"({n},)"
        kind_name = type(kind).__name__.removeprefix("Type").removesuffix("ID").lower()
        found_type = f"{kind_name} of {kind.get_size()} bytes"
        reason = f"shape {shape}, {found_type}; expected: {expected_type} of shape {expected}"
        raise Invalid(file.filename, f"has {name} of {reason}")
    sizes |= {field.row_of: n, "size": p}
    if not _has_room(found, layout, field, file.id.get_filesize()):
        raise Invalid(file.filename, f"has {name} of shape {shape}, more than the file can hold")
    if layout.get_layout() == h5d.CHUNKED and not field.image:
        chunks = -(-rows // layout.get_chunk()[0])
        if chunks > schema.MAX_COLUMN_CHUNKS:
            reason = f"has {name} in {chunks} chunks; expected: at most {schema.MAX_COLUMN_CHUNKS}"
            raise Invalid(file.filename, reason)
    # h5py reads a row in a third of the time if nothing about the dataset can change.
    return h5py.Dataset(found, readonly=True)


def _has_room(
    found: h5d.DatasetID, layout: h5py.h5p.PropDCID, field: schema.Field, file_bytes: int
) -> bool:
    """Return whether the file is large enough for what a dataset claims to hold."""
    width = found.get_type().get_size()
    size = width * math.prod(found.shape)
    if layout.get_layout() == h5d.CHUNKED:
        # Only patches are worth compressing: tables must fit as they are.
        limit = file_bytes * (schema.MAX_EXPANSION if field.row_of == "patch" else 1)
        chunk_bytes = width * math.prod(layout.get_chunk())
        return bool(size <= limit) and chunk_bytes <= schema.MAX_CHUNK_BYTES
    if layout.get_layout() == h5d.COMPACT:
        return bool(size <= found.get_storage_size() <= file_bytes)
    offset = found.get_offset()
    return not size or (offset is not None and offset + size <= file_bytes)


def _has_type(found: h5t.TypeID, dtype: str) -> bool:
    if dtype == schema.STRING:
        return isinstance(found, h5t.TypeStringID) and not found.is_variable_str()
    return bool(found.equal(h5t.py_create(np.dtype(dtype))))
