"""Reading a file whose content has been validated: patches, their columns, and their pairs."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, Self, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches import direct, schema, structure, views
from ctpatches.chunks import Chunks
from ctpatches.compression import decompress, decompressor
from ctpatches.files import Invalid
from ctpatches.permutation import Permutation

Rows: TypeAlias = "int | slice | NDArray[np.int64]"
File: TypeAlias = "structure.PathLike | ValidatedFile"
#: No chunk has more than this beyond twice the bytes of its patch.
MAX_OVERHEAD_BYTES = 1024


class ValidatedFile:
    """A file of ctpatches, open for reading, whose attributes, datasets and pairs are valid.

    `Invalid` is raised where they are not, and with `complete` also if its run was interrupted.
    """

    def __init__(self, path: structure.PathLike, complete: bool = True) -> None:
        self._handle = structure.open_hdf5(path)
        self.path = self._handle.filename
        try:
            self._check_header(complete)
            self._check_pairs()
            if self.store == "views":
                columns = {name: self.values(f"views/{name}") for name in schema.VIEW_COLUMNS}
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
        """Close the file; what was read remains."""
        self._handle.close()

    def _check_header(self, complete: bool) -> None:
        file = self._handle
        try:
            self.attributes = structure.checked_attributes(file, complete)
            self.version = int(self.attributes["format_version"])
            #: The options of the run that determine the content of the file.
            self.config = structure.checked_configuration(file, self.attributes["configuration"])
            datasets = structure.checked_datasets(file, self.config, self.version)
            self._datasets, self._sizes = datasets
            self.descriptor = file.id.get_vfd_handle() if direct.POSSIBLE else -1
        except (Invalid, ImportError, MemoryError):
            raise
        except Exception as error:  # HDF5 and h5py raise errors of many types for damaged bytes
            kind = type(error).__name__
            raise Invalid(self.path, f"is damaged: its header is not valid ({kind})") from error
        self._pixel_type = np.dtype(schema.DTYPES[self.config["dtype"]])
        #: What the file stores: one of `ctpatches.schema.STORES`.
        self.store: str = self.config["store"]
        self.compressed = self.config["compression"] != "none"

    def _check_pairs(self) -> None:
        self.patches, self.pairs = self._sizes["patch"], self._sizes["pair"]
        if not self.patches:
            raise Invalid(self.path, "contains no patch; a run never writes such a file")
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
        #: Of the rows of patches, in a shuffled file.
        self.shuffle: Permutation | None = None
        if self.config["shuffle_patches"]:
            name = b"".join(self.values("pair/input_file", slice(1)).tolist())
            self.shuffle = Permutation(self.patches, int(self.attributes["seed"]), name)
        #: Rows and columns of the slices, shape (2, pairs).
        self.shapes = np.stack([self.values(f"pair/{name}") for name in ("rows", "columns")])
        self.shapes = self.shapes.astype(np.int64)
        side = schema.MAX_IMAGE_SIDE
        if ((self.shapes < 1) | (self.shapes > side)).any():
            raise Invalid(self.path, f"has slices of sides beyond 1 to {side} pixels")

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
            offset = dataset.id.get_offset()
            out = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
            if offset is None or self.descriptor < 0:
                for at, row in enumerate(rows.tolist()):
                    out[at] = dataset[row]
                return out
        except (OSError, RuntimeError, KeyError) as error:
            raise OSError(f"{self.path!r}: {name} cannot be read: {error}") from error
        width = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
        starts = (offset + rows * width).tolist()
        raw = out.reshape(-1).view(np.uint8).data
        parts = [raw[at : at + width] for at in range(0, len(raw), width)]
        for _ in direct.read_runs(self.path, self.descriptor, starts, parts):
            pass
        return out

    def texts(self, name: str) -> list[str]:
        """Return all strings of a dataset."""
        return list(map(schema.decoded, self.values(name).tolist()))

    def images(
        self,
        role: str,
        rows: slice | NDArray[np.int64],
        windows: views.Windows | None = None,
        dtype: str = "float32",
    ) -> NDArray[Any]:
        """Return patches, shape (n, p, p) for either tensor format and either store.

        `windows` are those of the rows, where a caller has them; `dtype` is a key of `DTYPES`.
        """
        size, stored_type = self.patch_size, self._pixel_type
        compression = self.config["compression"]
        if self.chunks and (compression == "gzip" or decompressor(compression)):
            rows = self._indices(rows)
            images = np.empty((len(rows), size, size), stored_type)
            try:
                places = self.chunks.places[role][rows].tolist()
                sizes = self.chunks.sizes[role][rows].tolist()
                buffers = direct.shared_buffers(sizes)
                runs = direct.read_runs(self.path, self.descriptor, places, buffers)
                decompress(map(bytes, runs), compression, images)
            except OSError as error:
                raise OSError(f"{self.path!r}: {role} cannot be read: {error}") from error
        elif self.store == "patches":
            images = self.values(role, rows).reshape(-1, size, size)
        else:
            name = f"views/{role}"
            windows = self.windows(rows) if windows is None else windows
            spans = self.views.spans(windows, size)
            images = views.cut(windows, size, stored_type, spans, self._pixels(name, spans))
        return images.astype(schema.DTYPES[dtype], copy=False)

    def _pixels(self, name: str, spans: views.Spans) -> Iterator[Any]:
        """Yield the pixels of spans, each a buffer that is valid until the next one."""
        offset, width = self[name].id.get_offset(), self._pixel_type.itemsize
        if offset is None or self.descriptor < 0:
            for start, length in zip(spans.first.tolist(), spans.length.tolist(), strict=True):
                yield self.values(name, slice(start, start + length))
            return
        starts, sizes = (offset + spans.first * width).tolist(), (spans.length * width).tolist()
        buffers = direct.shared_buffers(sizes)
        yield from direct.read_runs(self.path, self.descriptor, starts, buffers)

    def windows(self, rows: slice | NDArray[np.int64]) -> views.Windows:
        """Return the windows of patches."""
        return self.views.windows(self.columns(rows))

    @functools.cached_property
    def chunks(self) -> Chunks | None:
        """Where the chunks of a compressed file lie; None where only HDF5 can find them.

        Invalid is raised where they are not there, or larger than any can be.
        """
        if not self.compressed or self.descriptor < 0:
            return None
        sizes = {role: self.values(f"patch/{role}_bytes") for role in schema.ROLES}
        largest = max(int(column.max()) for column in sizes.values())
        limit = 2 * self._pixel_type.itemsize * self.patch_size**2 + MAX_OVERHEAD_BYTES
        if largest > limit:
            reason = f"a compressed patch of {largest} bytes; expected: at most {limit}"
            raise Invalid(self.path, f"is damaged: {reason}")
        ends = np.array([0, self.patches - 1])
        ends = self.shuffle.forward(ends) if self.shuffle else ends
        try:
            find = [self[role].id.get_chunk_info_by_coord for role in schema.ROLES]
            found = [[one((row, 0, 0, 0)).byte_offset for row in ends] for one in find]
            starts = [*self.blocks[0].tolist(), self.patches]
            chunks = Chunks(sizes, starts, found[0][0] or 0, self.shuffle)
            valid = found == [chunks.places[role][ends].tolist() for role in schema.ROLES]
        # Not chunked, or a damaged index.
        except (OSError, RuntimeError, ValueError, TypeError, OverflowError):
            valid = False
        if not valid:
            reason = "is damaged or was rewritten: its patches are not at their places"
            raise Invalid(self.path, reason)
        return chunks

    @functools.cached_property
    def constants(self) -> dict[str, NDArray[np.float64]]:
        """The `CONSTANTS` of every pair by role, shape (4, pairs)."""
        out = {}
        for role in schema.ROLES:
            names = [f"pair/{role}_{name}" for name in schema.CONSTANTS]
            out[role] = np.stack([self.values(name) for name in names])
            _, _, slope, _ = out[role]
            if not np.isfinite(out[role]).all() or not slope.all():
                invalid = f"{', '.join(names)} hold NaN, infinity or a slope of 0"
                raise Invalid(self.path, f"is damaged: {invalid}")
        return out

    def columns(self, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return rows of all `PATCH_COLUMNS`; each must be a window in a view of its pair."""
        columns = {name: self.values(f"patch/{name}", rows) for name in schema.PATCH_COLUMNS}
        indices = self._indices(rows)
        pair = self.pair_of(indices)
        known = np.isin(columns["scale"], np.array(self.scales, np.float32))
        scale = np.where(known, columns["scale"], 1).astype(np.float64).round(6)
        # With `--edge pad` windows reach past the view, but begin inside of it.
        inside = 1 if self.config["edge"] == "pad" else self.patch_size
        starts = np.stack([columns["row"], columns["col"]]).astype(np.int64)
        valid = known & (columns["pair"] == pair)
        valid &= columns["orientation"] < len(schema.ORIENTATIONS)
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

    def _indices(self, rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        return np.arange(*rows.indices(self.patches)) if isinstance(rows, slice) else rows

    def pair_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs of patches."""
        canonical = self.shuffle.inverse(rows) if self.shuffle else rows
        return np.searchsorted(np.add(*self.blocks), canonical, side="right")

    def rows_of(self, pair: int) -> slice | NDArray[np.int64]:
        """Return the rows of the patches of a pair: by scale, window and orientation."""
        first, end = self.place(pair)["patch"]
        return self.shuffle.forward(np.arange(first, end)) if self.shuffle else slice(first, end)

    def view_shape(
        self, pair: int | NDArray[np.int64], scale: float | NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return rows and columns of views, as `augment.view_shape`."""
        return views.view_shape(self.shapes[:, pair], scale)

    def slice_file(self, role: str, pair: int) -> str:
        """Return the path of a slice below the input folder of the run."""
        name = schema.decoded(self.values(f"pair/{role}_file", pair).item())
        if name.startswith("/") or ".." in name.split("/") or not name or "\0" in name:
            expected = "a path below an input folder"
            raise Invalid(self.path, f"names the slice {name!r}; expected: {expected}")
        return name

    def place(self, pair: int) -> dict[str, tuple[int, int]]:
        """Return first and end row of the block of a pair, in datasets per patch and per pixel."""
        first, n = (int(column[pair]) for column in self.blocks)
        pixels = self.views.starts[pair : pair + 2] if self.store == "views" else (0, 0)
        return {"patch": (first, first + n), "pixel": (int(pixels[0]), int(pixels[1]))}


def opened(file: File) -> contextlib.AbstractContextManager[ValidatedFile]:
    """Open a file and validate it; one that is open stays open."""
    if isinstance(file, ValidatedFile):
        return contextlib.nullcontext(file)
    return ValidatedFile(file)
