"""Reading the h5 file: where a patch came from, its values before normalisation, and whether the
file is whole. Needs h5py, numpy and xxhash alone, so it can be copied beside a training script.

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
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import h5py

FORMAT = "paired CT patches"
#: The newest `format_version` that is understood here.
VERSION = 2
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

# --- the schema ------------------------------------------------------------------------------

#: Type of a string of fixed length.
STRING = "S"
#: Attributes of the file and their types, all of them scalars.
ATTRIBUTES = {
    "format": STRING,
    "format_version": "<u4",
    "complete": "|u1",
    "seed": "<i8",
    "unit": STRING,
    "configuration": STRING,
    "orientations": STRING,
}


class Field(NamedTuple):
    """What a dataset must be.

    Attributes
    ----------
    dtype : str
        NumPy's name of the type, or `STRING`.
    row_of : str
        What it has a row for: a ``patch``, a ``pair`` or what was ``left out``; or a ``byte``.
    image : bool
        Whether a row is a patch and not a single value.
    since : int
        The first `format_version` with this dataset.
    """

    dtype: str
    row_of: str
    image: bool = False
    since: int = 1


SCHEMA = {
    "input": Field("<f4", "patch", image=True),
    "target": Field("<f4", "patch", image=True),
    **{f"patch/{name}": Field(dtype, "patch") for name, dtype in PATCH_COLUMNS.items()},
    "pair/patient": Field(STRING, "pair"),
    "pair/input_file": Field(STRING, "pair"),
    "pair/target_file": Field(STRING, "pair"),
    "pair/position_mm": Field("<f8", "pair"),
    "pair/rows": Field("<u4", "pair"),
    "pair/columns": Field("<u4", "pair"),
    "pair/first_patch": Field("<u8", "pair"),
    "pair/patches": Field("<u8", "pair"),
    "pair/degradation": Field(STRING, "pair"),
    "pair/checksum": Field("<u8", "pair"),
    **{
        f"pair/{side}_{name}": Field("<f8", "pair")
        for side in ("input", "target")
        for name in ("slope", "intercept", "offset", "divisor")
    },
    "pair/input_digest": Field("<u8", "pair", since=2),
    "pair/target_digest": Field("<u8", "pair", since=2),
    **{f"left_out/{name}": Field(STRING, "left out") for name in ("patient", "files")},
    **{f"left_out/{name}": Field(STRING, "left out") for name in ("reason", "kind")},
    REST: Field("|u1", "byte"),
}
GROUPS = ("patch", "pair", "left_out")
REST_BYTES = 16
#: Names of HDF5's classes of types, in its order.
CLASSES = (
    *("integer", "float", "time", "string", "bitfield", "opaque", "compound", "reference"),
    *("enumeration", "variable-length sequence", "array", "complex"),
)
#: Rows and columns of the largest slice that the tool reads.
MAX_IMAGE_SIDE = 4096
#: HDF5 decompresses whole chunks: the largest image is one of this size.
MAX_CHUNK_BYTES = 4 * MAX_IMAGE_SIDE**2
#: Times the size of the file that a compressed dataset of patches may have; no CT image comes near.
MAX_EXPANSION = 1000


class Invalid(ValueError):
    """A file that is not a valid file of this tool, and why."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)  # alone: so a DataLoader makes it again in another process
        self.reason = reason

    @classmethod
    def of(cls, path: str, reason: str) -> Invalid:
        """Return the error that names the file and the reason."""
        return cls(f"{path!r} {reason}", reason)


class PatchFile:
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
        from h5py import h5a, h5s

        if not h5a.exists(self._handle.id, name.encode()):
            return None
        found = h5a.open(self._handle.id, name.encode())
        scalar = found.get_space().get_simple_extent_type() == h5s.SCALAR
        if not scalar or not _has_type(found.get_type(), ATTRIBUTES[name]):
            return None
        return self._handle.attrs[name]

    def _check_link(self, name: str) -> None:
        from h5py import h5l

        links = self._handle.id.links
        if not links.exists(name.encode()) or links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise self.invalid(f"has no {name}, or a link in its place")

    def _checked(self, name: str, field: Field) -> h5py.Dataset:
        """Return a dataset that is what the schema demands."""
        from h5py import Dataset, h5d

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
        return Dataset(found)

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
        from h5py import h5d

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
    from h5py import h5t

    if dtype == STRING:
        return isinstance(found, h5t.TypeStringID) and not found.is_variable_str()
    return bool(found.equal(h5t.py_create(np.dtype(dtype))))


def _kind(error: Exception) -> str:
    return type(error).__name__


@dataclass(frozen=True)
class Windows:
    """What the rows of `patch/` may hold: windows inside the views of the pair of their block.

    Attributes
    ----------
    path : str
    first, patches : ndarray of int64, shape (pairs,)
        The block of each pair.
    shapes : ndarray of int64, shape (2, pairs)
        Rows and columns of the slices.
    scales : tuple of float
    inside : int
        Pixels along each axis that a window has in the view at least.
    """

    path: str
    first: NDArray[np.int64]
    patches: NDArray[np.int64]
    shapes: NDArray[np.int64]
    scales: tuple[float, ...]
    inside: int

    def check(self, columns: Mapping[str, NDArray[Any]], indices: NDArray[np.int64]) -> None:
        """Refuse rows of `PATCH_COLUMNS` that no run writes.

        Raises
        ------
        ValueError
            Naming the first such patch.
        """
        pair = pair_of(self.first + self.patches, indices)
        known = np.isin(columns["scale"], np.array(self.scales, np.float32))
        scale = np.where(known, columns["scale"], 1).astype(np.float64).round(6)
        views = (self.shapes[:, pair] * scale).astype(np.int64)  # as `augment.view_shape`
        starts = np.stack([columns["row"], columns["col"]]).astype(np.int64)
        right = known & (columns["pair"] == pair) & (columns["orientation"] < len(ORIENTATIONS))
        right &= ((starts >= 0) & (starts + self.inside <= views)).all(axis=0)
        if not right.all():
            at = int(np.argmin(right))
            found = ", ".join(f"{name} {column[at]}" for name, column in columns.items())
            raise Invalid.of(
                self.path,
                f"is damaged: patch {indices[at]} has {found}; expected: a window in a view of "
                f"pair {pair[at]}",
            )


def pair_of(ends: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs of patches from the ends of the blocks of all pairs."""
    return np.searchsorted(ends, indices, side="right")


File: TypeAlias = "str | os.PathLike[str] | h5py.File | PatchFile"
Patches: TypeAlias = int | slice | Sequence[int] | NDArray[np.integer[Any]]


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
def opened(file: File, complete: bool = True) -> Iterator[PatchFile]:
    """Open a file of this tool for reading, and check it.

    Parameters
    ----------
    file : path, h5py.File or PatchFile
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
    if isinstance(file, PatchFile):
        yield file
    elif not isinstance(file, (str, os.PathLike)):
        yield PatchFile(file, complete)
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
            yield PatchFile(handle, complete)


def open_regular(path: str) -> int:
    """Return a descriptor of a regular file; a pipe is not waited for."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid.of(path, "is no regular file")
    return descriptor


def decoded(value: bytes) -> str:
    """Return a string of the file."""
    return value.decode("utf-8", "surrogateescape")


# --- patches ---------------------------------------------------------------------------------


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


def provenance(file: File, patch: int) -> Provenance:
    """Return where a patch came from.

    Parameters
    ----------
    file : path, h5py.File or PatchFile
        Of `opened`, for many patches: it is checked once.
    patch : int
        Its index in `input` and `target`.

    Raises
    ------
    IndexError
        There is no such patch.
    OSError, ValueError
        As `opened`.
    """
    with opened(file) as source:
        if not 0 <= patch < source.patches:
            raise IndexError(f"patch {patch} of {source.patches}")
        here = {n: column.item() for n, column in source.columns(slice(patch, patch + 1)).items()}
        pair = here["pair"]
        return Provenance(
            patient=source.text("pair/patient", pair),
            input_file=source.text("pair/input_file", pair),
            target_file=source.text("pair/target_file", pair),
            pair=pair,
            position_mm=float(source.read("pair/position_mm", pair)),
            scale=round(here["scale"], 6),
            row=here["row"],
            col=here["col"],
            orientation=here["orientation"],
            degradation=source.text("pair/degradation", pair),
        )


def read_patches(file: File, patches: Patches) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return some patches of input and target, each of shape (n, p, p), whatever the layout.

    Raises
    ------
    IndexError
        There is no such patch.
    OSError, ValueError
        As `opened`.
    """
    with opened(file) as source:
        rows = np.atleast_1d(np.arange(source.patches)[patches])
        p = source.patch_size
        both = [np.empty((len(rows), p, p), np.float32) for _ in range(2)]
        for name, out in zip(("input", "target"), both, strict=True):
            for at, row in enumerate(rows.tolist()):
                out[at] = source.read(name, row).reshape(p, p)
        return both[0], both[1]


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
        The number of values is not that of the patches, or an argument has no such choice; and as
        `opened`.
    IndexError
        There is no such patch.
    OSError
        As `opened`.
    """
    if side not in ("input", "target") or unit not in ("hu", "stored"):
        raise ValueError(f"side {side!r}, unit {unit!r}; wanted: input or target, hu or stored")
    with opened(file) as source:
        chosen = np.arange(source.patches)
        if patches is not None:
            chosen = np.atleast_1d(chosen[patches])
        first, count = source.blocks
        figures = _affine_figures(source, side)[:, pair_of(first + count, chosen)]
        in_hu = source.in_hu
    values = np.asarray(values)
    if len(values) != len(chosen):
        raise ValueError(
            f"{len(values)} values for {len(chosen)} patches; name the patches that they belong to"
        )
    out = values.astype(np.float64)
    offset, divisor, slope, intercept = figures.reshape(4, -1, *[1] * (out.ndim - 1))
    out = out * divisor + offset
    if in_hu and unit == "stored":
        out = (out - intercept) / slope
    elif not in_hu and unit == "hu":
        out = out * slope + intercept
    return np.asarray(out, np.float32)


def _affine_figures(source: PatchFile, side: str) -> NDArray[np.float64]:
    """Return offset, divisor, slope and intercept of every pair, shape (4, pairs)."""
    names = [f"pair/{side}_{name}" for name in ("offset", "divisor", "slope", "intercept")]
    out = np.stack([source.read(name) for name in names])
    if not np.isfinite(out).all() or not out[2].all():
        raise source.invalid(f"is damaged: {', '.join(names)} hold NaN, infinity or a slope of 0")
    return out


def pixel_digest(hu: NDArray[np.float32]) -> int:
    """Return the digest of an image by which a file knows the slices that it was made from.

    Parameters
    ----------
    hu : ndarray of float32, shape (rows, columns)
        Pixels in HU.

    Returns
    -------
    int
        XXH3-64 of the pixels, row by row, as little-endian float32.
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


def _extents(source: PatchFile) -> dict[str, tuple[int, int]]:
    """Return first byte and end of every bulk dataset and of the checksum of the rest."""
    out = {}
    for name in [*bulk_names(), REST]:
        dataset = source[name]
        start = dataset.id.get_offset()
        if start is None and dataset.size:
            raise source.invalid("was compressed or rewritten: its checksums are of other bytes")
        out[name] = (start or 0, (start or 0) + dataset.dtype.itemsize * dataset.size)
    return out


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Return what is wrong with a file, a line each; nothing if every byte is as it was written.

    Raises
    ------
    OSError
        The file cannot be read at all.
    """
    found: list[str] = []
    try:
        descriptor = open_regular(os.fspath(path))
        try:
            with opened(path, complete=False) as source:
                for damage in _damages(source, descriptor):
                    found.append(damage)
        finally:
            os.close(descriptor)
    except Invalid as error:
        found.append(error.reason)
    return found


def _damages(source: PatchFile, descriptor: int) -> Iterator[str]:
    if not source.attributes["complete"]:
        yield "is not complete: its run was ended"
    extents = _extents(source)
    expected = source.read(REST).tobytes()
    if rest_digest(descriptor, os.fstat(descriptor).st_size, list(extents.values())) != expected:
        yield "header or tables of pairs are damaged"
    first, patches = source.blocks
    wide = [source[n].dtype.itemsize * math.prod(source[n].shape[1:]) for n in bulk_names()]
    starts = [extents[name][0] for name in bulk_names()]
    for pair, checksum in enumerate(source.read("pair/checksum").tolist()):
        start, n = int(first[pair]), int(patches[pair])
        ranges = [(at + start * w, n * w) for at, w in zip(starts, wide, strict=True)]
        if block_digest(descriptor, ranges) != checksum:
            yield (
                f"the block of pair {pair} ({source.text('pair/input_file', pair)}), patches "
                f"{start} to {start + n - 1}, is damaged"
            )


def block_digest(descriptor: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the checksum of a block from the (start, length) ranges of its bytes, in order."""
    import xxhash

    digest = xxhash.xxh3_64()
    for start, length in ranges:
        for data in _chunks(descriptor, start, start + length):
            digest.update(data)
    return int(digest.intdigest())
