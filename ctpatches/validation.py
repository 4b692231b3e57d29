"""Reading a file whose content has been validated: patches, their columns, and their pairs."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches import direct, views
from ctpatches.chunks import Chunks
from ctpatches.compression import decompress
from ctpatches.files import Invalid
from ctpatches.permutation import Permutation
from ctpatches.schema import (
    CONSTANTS,
    DTYPES,
    MAX_IMAGE_SIDE,
    ORIENTATIONS,
    PATCH_COLUMNS,
    ROLES,
    VIEW_COLUMNS,
    decoded,
)
from ctpatches.structure import FileStructure, PathLike

File: TypeAlias = "PathLike | h5py.File | ValidatedFile"


class ValidatedFile(FileStructure):
    """A file of ctpatches, open for reading, whose attributes, datasets and pairs are valid.

    `Invalid` is raised where they are not, and with `complete` also if its run was interrupted.
    """

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
        size = self.patch_size
        if self.chunks:
            chunks = self.chunks.read(self.descriptor, role, indices := self._indices(rows))
            form = self.config["compression"], self[role].dtype, size
            try:
                return decompress(chunks, len(indices), *form).astype(DTYPES[dtype], copy=False)
            except (OSError, RuntimeError) as error:
                raise OSError(f"{self.path!r}: {role} cannot be read: {error}") from error
        if self.store == "patches":
            return self.values(role, rows).reshape(-1, size, size).astype(DTYPES[dtype], copy=False)
        name = f"views/{role}"
        windows = self.windows(rows) if windows is None else windows
        spans = self.views.spans(windows, size)
        images = views.cut(windows, size, self[name].dtype, spans, self._pixels(name, spans))
        return images.astype(DTYPES[dtype], copy=False)

    def _pixels(self, name: str, spans: views.Spans) -> Iterator[Any]:
        """Yield the pixels of spans, each a buffer that is valid until the next one."""
        offset, width = self[name].id.get_offset(), self[name].dtype.itemsize
        if offset is None or self.descriptor < 0 or not direct.POSSIBLE:
            for start, length in zip(spans.first.tolist(), spans.length.tolist(), strict=True):
                yield self.values(name, slice(start, start + length))
            return
        # The whole view at its first use: a cold disk has fewer, larger requests to serve. If not
        # all views fit into memory, pixels would often be dropped before they are used.
        if self._fits_in_memory:
            first, lengths = self.views.first_uses(name, spans)
            ahead = (offset + first * width).tolist(), (lengths * width).tolist()
            direct.request(self.descriptor, *ahead)
        starts, sizes = (offset + spans.first * width).tolist(), (spans.length * width).tolist()
        yield from direct.read_runs(self.path, self.descriptor, starts, sizes)

    @functools.cached_property
    def _fits_in_memory(self) -> bool:
        return direct.fits_in_memory(os.path.getsize(self.path))

    def windows(self, rows: slice | NDArray[np.int64]) -> views.Windows:
        """Return the windows of patches."""
        return self.views.windows(self.columns(rows))

    @functools.cached_property
    def chunks(self) -> Chunks | None:
        """Where the chunks of a compressed file lie; None where HDF5 has to find them."""
        if not self.compressed or self.descriptor < 0:
            return None
        sizes = {role: self.values(f"patch/{role}_bytes") for role in ROLES}
        starts = [*self.blocks[0].tolist(), self.patches]
        return Chunks.found({role: self[role] for role in ROLES}, sizes, starts, self.shuffle)

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
        indices = self._indices(rows)
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

    def _indices(self, rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        return np.arange(*rows.indices(self.patches)) if isinstance(rows, slice) else rows

    def pair_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs of patches."""
        return np.searchsorted(np.add(*self.blocks), self.canonical(rows), side="right")

    def rows_of(self, pair: int) -> slice | NDArray[np.int64]:
        """Return the rows of the patches of a pair: by scale, window and orientation."""
        first, end = self.place(pair)["patch"]
        return self.shuffle.forward(np.arange(first, end)) if self.shuffle else slice(first, end)

    def canonical(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the canonical indices of rows: those in a file that is not shuffled."""
        return self.shuffle.inverse(rows) if self.shuffle else rows

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

    def _check_content(self) -> None:
        self._check_pairs()
        if self.store == "views":
            columns = {name: self.values(f"views/{name}") for name in VIEW_COLUMNS}
            self.views = views.ViewTable(columns, self.shapes, self.scales)
            if not self.views.valid or self.views.starts[-1] != self._sizes["pixel"]:
                raise Invalid(self.path, "is damaged: the tables of views/ do not match")

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
            self.shuffle = Permutation.drawn(self.patches, int(self.attributes["seed"]), name)
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


def opened(file: File, complete: bool = True) -> AbstractContextManager[ValidatedFile]:
    """Open a file and validate it; one that is open stays open."""
    if isinstance(file, ValidatedFile):
        return contextlib.nullcontext(file)
    return ValidatedFile(file, complete)
