"""Opening an h5 file for reading, validating it, and reading its rows.

Every reader uses a `ValidatedFile`: whatever a forged or damaged file claims, no more memory is
used than its size allows, and no other file is read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Self, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t
from numpy.typing import NDArray

from ctpatches import direct, views
from ctpatches.files import Invalid, open_regular
from ctpatches.schema import (
    ATTRIBUTES,
    CONSTANTS,
    COPY,
    DTYPES,
    FORMAT,
    MAX_CHUNK_BYTES,
    MAX_COLUMN_CHUNKS,
    MAX_EXPANSION,
    MAX_IMAGE_SIDE,
    ORIENTATIONS,
    PATCH_COLUMNS,
    PIXELS,
    REST_BYTES,
    ROLES,
    SCHEMA,
    STORES,
    STRING,
    VERSION,
    VIEW_COLUMNS,
    Field,
    decoded,
    in_store,
)

PathLike: TypeAlias = "str | os.PathLike[str]"
File: TypeAlias = "PathLike | h5py.File | ValidatedFile"
Rows: TypeAlias = "int | slice | NDArray[np.int64]"


class ValidatedFile:
    """A file of ctpatches, open for reading, whose attributes, datasets and pairs are valid.

    `Invalid` is raised where they are not, and with `complete` also if its run was interrupted.
    """

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
            self._check_pairs()
            if self.store == "views":
                columns = {name: self.values(f"views/{name}") for name in VIEW_COLUMNS}
                self.views = views.ViewTable(columns, self.shapes, self.scales)
                if not self.views.valid or self.views.starts[-1] != self._sizes["pixel"]:
                    raise Invalid(self.path, "is damaged: the tables of views/ do not match")
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

    def images(
        self, role: str, rows: slice | NDArray[np.int64], windows: views.Windows | None = None
    ) -> NDArray[np.float32]:
        """Return patches, shape (n, p, p) for either tensor format and either store.

        `windows` are those of the rows, where a caller has them.
        """
        size = self.patch_size
        if self.store == "patches":
            return self.values(role, rows).reshape(-1, size, size).astype(np.float32, copy=False)
        name = f"views/{role}"
        windows = self.windows(rows) if windows is None else windows
        runs = self.views.runs(windows, size)
        images = views.cut(windows, size, self[name].dtype, runs, self._pixels(name, runs))
        return images.astype(np.float32, copy=False)

    def _pixels(self, name: str, runs: views.Runs) -> Iterator[Any]:
        """Yield the pixels of runs, each a buffer that is valid until the next one."""
        offset, width = self[name].id.get_offset(), self[name].dtype.itemsize
        if offset is None or self.descriptor < 0 or not direct.POSSIBLE:
            for start, length in zip(runs.first.tolist(), runs.length.tolist(), strict=True):
                yield self.values(name, slice(start, start + length))
            return
        # The whole view at its first use: a cold disk has fewer, larger requests to serve. If not
        # all views fit into memory, pixels would often be dropped before they are used.
        if self._fits_in_memory:
            first, lengths = self.views.first_uses(name, runs)
            ahead = (offset + first * width).tolist(), (lengths * width).tolist()
            direct.request(self.descriptor, *ahead)
        starts, sizes = (offset + runs.first * width).tolist(), (runs.length * width).tolist()
        yield from direct.read_runs(self.path, self.descriptor, starts, sizes)

    @functools.cached_property
    def _fits_in_memory(self) -> bool:
        return direct.fits_in_memory(os.path.getsize(self.path))

    def windows(self, rows: slice | NDArray[np.int64]) -> views.Windows:
        """Return where patches lie in the views."""
        return self.views.windows(self.columns(rows))

    def texts(self, name: str) -> list[str]:
        """Return all strings of a dataset."""
        return list(map(decoded, self.values(name).tolist()))

    @functools.cached_property
    def origins(self) -> dict[str, NDArray[Any]]:
        """The columns of `pair/` that are part of the provenance of a patch."""
        names = ("patient", "input_file", "target_file", "position_mm", "degradation")
        return {name: self.values(f"pair/{name}") for name in names}

    @functools.cached_property
    def constants(self) -> dict[str, NDArray[np.float64]]:
        """The `CONSTANTS` of every pair by role, shape (4, pairs)."""
        out = {}
        for role in ROLES:
            names = [f"pair/{role}_{name}" for name in CONSTANTS]
            out[role] = np.stack([self.values(name) for name in names])
            if not np.isfinite(out[role]).all() or not out[role][CONSTANTS.index("slope")].all():
                invalid = f"{', '.join(names)} hold NaN, infinity or a slope of 0"
                raise Invalid(self.path, f"is damaged: {invalid}")
        return out

    def columns(self, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return rows of all `PATCH_COLUMNS`; each must be a window in a view of its pair."""
        columns = {name: self.values(f"patch/{name}", rows) for name in PATCH_COLUMNS}
        indices = np.arange(*rows.indices(self.patches)) if isinstance(rows, slice) else rows
        pair = self.pair_of(indices)
        known = np.isin(columns["scale"], np.array(self.scales, np.float32))
        scale = np.where(known, columns["scale"], 1).astype(np.float64).round(6)
        # With `--edge pad` windows reach past the view, but begin inside of it.
        inside = 1 if self.config["edge"] == "pad" else self.patch_size
        starts = np.stack([columns["row"], columns["col"]]).astype(np.int64)
        valid = known & (columns["pair"] == pair) & (columns["orientation"] < len(ORIENTATIONS))
        valid &= ((starts >= 0) & (starts + inside <= self.view_shape(pair, scale))).all(axis=0)
        if self.store == "views":
            valid &= self.views.hold(pair, scale, starts + self.patch_size)
        if not valid.all():
            at = int(np.argmin(valid))
            found = ", ".join(f"{name} {column[at]}" for name, column in columns.items())
            expected = f"a window in a view of pair {pair[at]}"
            reason = f"is damaged: patch {indices[at]} has {found}; expected: {expected}"
            raise Invalid(self.path, reason)
        return columns

    def pair_of(self, patches: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs of patches."""
        return np.searchsorted(np.add(*self.blocks), patches, side="right")

    def view_shape(
        self, pair: int | NDArray[np.int64], scale: float | NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return rows and columns of views, as `augment.view_shape`."""
        return views.view_shape(self.shapes[:, pair], scale)

    def slice_file(self, role: str, pair: int) -> str:
        """Return the path of a slice below the input folder of the run."""
        name = decoded(self.values(f"pair/{role}_file", pair).item())
        if name.startswith("/") or ".." in name.split("/") or not name or "\0" in name:
            expected = "a path below an input folder"
            raise Invalid(self.path, f"names the slice {name!r}; expected: {expected}")
        return name

    def _check_header(self, complete: bool) -> None:
        try:
            self._check_attributes(complete)
            for name, field in SCHEMA.items():
                if field.since <= self.version and in_store(name, self.store):
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
            self.config = dict(json.loads(found["configuration"]))
            flags = [self.config[name] for name in ("ds_augment", "anonymize")]
            valid = {type(flag) for flag in flags} == {bool}
            valid &= self.config["edge"] in ("shift", "pad")
            # Files before version 4 have none of these options.
            #: What the file stores: one of `ctpatches.schema.STORES`.
            self.store = self.config.setdefault("store", "patches")
            valid &= self.store in STORES and self.config.setdefault("dtype", "float32") in DTYPES
            if self.store == "views":
                size = self._sizes["size"] = self.config["patch_size"]
                valid &= type(size) is int and 1 <= size <= MAX_IMAGE_SIDE
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
        return h5py.Dataset(found)

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

    def _check_pairs(self) -> None:
        self.patches, self.pairs = self._sizes["patch"], self._sizes["pair"]
        self.patch_size = self._sizes["size"]
        #: Scales of the views of a pair, the largest first.
        self.scales = (1.0, 0.8, 0.6) if self.config["ds_augment"] else (1.0,)
        #: Names of the patients, in the order of the file.
        self.patients = list(dict.fromkeys(self.texts("pair/patient")))
        first, patches = self.values("pair/first_patch"), self.values("pair/patches")
        # Only numbers up to N are added, so that no sum overflows.
        small = max(first.max(initial=0), patches.max(initial=0)) <= self.patches
        #: First patch and number of patches of every pair, which together are all patches.
        self.blocks = first, patches = first.astype(np.int64), patches.astype(np.int64)
        ends = np.append(0, first + patches)
        if not small or not np.array_equal(ends, np.append(first, self.patches)):
            raise Invalid(self.path, "is damaged: pair/first_patch and pair/patches do not match")
        #: Rows and columns of the slices, shape (2, pairs).
        self.shapes = np.stack([self.values(f"pair/{name}") for name in ("rows", "columns")])
        self.shapes = self.shapes.astype(np.int64)
        if ((self.shapes < 1) | (self.shapes > MAX_IMAGE_SIDE)).any():
            raise Invalid(self.path, f"has slices of sides beyond 1 to {MAX_IMAGE_SIDE} pixels")

    def place(self, pair: int) -> dict[str, tuple[int, int]]:
        """Return first and end row of the block of a pair, in datasets per patch and per pixel."""
        first, n = (int(column[pair]) for column in self.blocks)
        pixels = self.views.starts[pair : pair + 2] if self.store == "views" else (0, 0)
        return {"patch": (first, first + n), "pixel": (int(pixels[0]), int(pixels[1]))}


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


def opened(file: File, complete: bool = True) -> AbstractContextManager[ValidatedFile]:
    """Open a file and validate it; one that is open stays open."""
    if isinstance(file, ValidatedFile):
        return contextlib.nullcontext(file)
    return ValidatedFile(file, complete)
