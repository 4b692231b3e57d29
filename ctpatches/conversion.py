"""Converting a file to another store, or to another type of its pixels, without the scans."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches import dtypes
from ctpatches.blocks import CHUNKS, Block, Piece
from ctpatches.checksums import damages
from ctpatches.files import (
    Invalid,
    Offset,
    atomic_write,
    named_errors,
    open_regular,
    reserve,
    sync_folder,
    write_at,
)
from ctpatches.header import Header, build_header
from ctpatches.messages import CallError, RunError, printable, quoted
from ctpatches.normalisation import Affine, normalised_air
from ctpatches.orientations import upright
from ctpatches.schema import (
    PATCH_COLUMNS,
    REST,
    ROLES,
    SCHEMA,
    STORAGE,
    VIEW_COLUMNS,
    check_storage,
)
from ctpatches.structure import PathLike
from ctpatches.validation import ValidatedFile
from ctpatches.views import from_strips, padded_length

#: Files of earlier format versions lack tables that cannot be made without the scans.
OLDEST_VERSION = 3

Table = Mapping[str, NDArray[Any]]


def convert(
    source: PathLike,
    target: PathLike,
    *,
    store: str | None = None,
    dtype: str | None = None,
    compression: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the patches of a file to a new file, stored in another way.

    Every block of the source is compared with its checksum before it is used. The new file has its
    name only when it is complete.

    Parameters
    ----------
    source, target : path
    store : {'patches', 'views'}, optional
    dtype : {'float32', 'float16', 'int16'}, optional
        Fractions become the nearest number, of two equally near ones the even one. `pair/` states
        by how much pixels differ at most from those before any rounding.
    compression : {'none', 'lz4', 'zstd', 'gzip'}, optional
        Of patches. Options that are not given are those of the source.
    overwrite : bool
        Whether an existing target is replaced.

    Raises
    ------
    CallError
        An option is not valid, or the target exists, or is the source.
    RunError
        The source is damaged, a value does not fit the type, or the target cannot be written.
    OSError
        The source cannot be read.
    ValueError
        It is not a complete, valid file of ctpatches.

    Examples
    --------
    >>> convert("patches.h5", "views.h5", store="views", dtype="int16")  # doctest: +SKIP
    """
    target = os.fspath(target)
    given = {"store": store, "dtype": dtype, "compression": compression}
    for name, value in given.items():
        if value not in (None, *STORAGE[name]):
            expected = f"one of {', '.join(STORAGE[name])}"
            raise CallError(f"{name} {quoted(value)}; expected: {expected}")
    _check_target(os.fspath(source), target, overwrite)
    with ValidatedFile(source) as file:
        if file.version < OLDEST_VERSION:
            found = f"has format version {file.version}, without the tables of later ones"
            raise Invalid(file.path, f"{found}; expected: {OLDEST_VERSION} or later")
        config = file.config | {name: value for name, value in given.items() if value}
        if config["store"] == "views" and not compression:
            config["compression"] = "none"
        _check_configuration(file, config)
        with _create_partial(target) as partial, atomic_write(target):
            _write(file, config, partial.fileno(), target)
        sync_folder(target)


def _check_target(source: str, target: str, overwrite: bool) -> None:
    """Refuse a target that must not be written."""
    os.close(open_regular(source))
    if os.path.exists(target) and os.path.samefile(source, target):
        raise CallError(f"{quoted(target)} is the file to convert; expected: another name")
    if os.path.exists(target) and not os.path.isfile(target):
        raise CallError(f"{quoted(target)} is not a regular file; expected: the name of a file")
    if os.path.lexists(target) and not overwrite:
        raise CallError(f"{quoted(target)} exists; add --overwrite to replace it")


def _create_partial(target: str) -> io.FileIO:
    """Create the file that `atomic_write` renames; refuse one that another run is writing."""
    partial = f"{target}.partial"
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    try:
        return open(partial, "x+b", buffering=0)
    except FileExistsError:
        found = f"{quoted(partial)} exists: another run is writing it, or left it"
        raise CallError(f"{found}; wait for its end, or remove it") from None


def _check_configuration(file: ValidatedFile, config: Mapping[str, Any]) -> None:
    """Refuse options that cannot be combined, and a configuration that is not valid."""
    overlap, window = config.get("overlap"), config.get("hu_window")
    valid = type(overlap) is int and 0 <= overlap < file.patch_size == config.get("patch_size")
    valid &= config.get("tensor_format") in ("torch", "tf")
    valid &= "normalization_type" in config
    valid &= config.get("seed") == file.attributes["seed"]
    valid &= isinstance(window, list) and [type(edge) for edge in window] == [float, float]
    if not valid:
        raise Invalid(file.path, "contains no configuration of ctpatches")
    check_storage(config)


def _write(file: ValidatedFile, config: dict[str, Any], descriptor: int, target: str) -> None:
    """Write the whole target to its temporary file."""
    problems = damages(file)
    _check(next(problems), file)
    views: Table = file.views.columns if file.store == "views" else _planned_views(file, config)
    tables = _tables(file, config["store"], views)

    def header() -> Header:
        configuration, unit = json.dumps(config, sort_keys=True), file.attributes["unit"].decode()
        pixels = sum(map(math.prod, _sizes(views))) if config["store"] == "views" else 0
        return build_header(tables, configuration, unit, file.patches, pixels, complete=True)

    empty = header()
    end = empty.size  # of the chunks of a compressed file

    def write(offset: Offset, data: memoryview) -> None:
        nonlocal end
        if isinstance(offset, int) and offset >= CHUNKS:
            offset, end = end, end + len(data)
        with named_errors(target):
            write_at(descriptor, data, offset)

    with named_errors(target):
        os.ftruncate(descriptor, empty.size)
        reserve(descriptor, empty.size)
    for pair in range(file.pairs):
        _check(next(problems), file)
        pixels = _Pixels(file, pair, config["dtype"])
        own = slice(*np.searchsorted(views["pair"], [pair, pair + 1]).tolist())
        block = _block(pixels, config["store"], {name: views[name][own] for name in views})
        place = file.place(pair) | {"pixel": (int(views["offset"][own][:1].sum()), 0)}
        tables["pair/checksum"][pair] = block.write(
            write, empty.rows, pair, place, config["compression"], empty.shuffle
        )
        for role in ROLES:
            tables[f"pair/{role}_rounding"][pair] += pixels.rounding[role]
    with named_errors(target):
        header().write(descriptor, [*file.blocks[0].tolist(), file.patches])
        os.fsync(descriptor)


def _check(damage: str, file: ValidatedFile) -> None:
    if damage:
        raise RunError(f"{quoted(file.path)}: {printable(damage)}; expected: an undamaged file")


def _tables(file: ValidatedFile, store: str, views: Table) -> dict[str, NDArray[Any]]:
    """Return the tables of the target, as far as they are known before its blocks."""
    out = {f"views/{name}": column for name, column in views.items() if store == "views"}
    for name, field in SCHEMA.items():
        if field.store or field.row_of == "patch" or name == REST:
            continue
        if field.since <= file.version:
            out[name] = file.values(name).astype(file[name].dtype)  # with the encoding of strings
        else:  # no file of that version was rounded
            out[name] = np.zeros(file.pairs, field.dtype)
    return out


def _planned_views(file: ValidatedFile, config: Mapping[str, Any]) -> Table:
    """Return the columns of `views/` that a run would have planned for patches."""
    views, offset = [], 0
    for pair in range(file.pairs):
        scales = np.unique(file.columns(file.rows_of(pair))["scale"])
        for scale in scales[::-1].astype(np.float64).round(6).tolist():
            rows, columns = (
                padded_length(int(length), file.patch_size, config["overlap"], config["edge"])
                for length in file.view_shape(pair, scale)
            )
            views.append((pair, scale, offset, rows, columns))
            offset += rows * columns
    table = np.array(views, np.dtype(list(VIEW_COLUMNS.items())))
    return {name: np.ascontiguousarray(table[name]) for name in VIEW_COLUMNS}


def _sizes(views: Table) -> list[tuple[int, int]]:
    return list(zip(views["rows"].tolist(), views["columns"].tolist(), strict=True))


@dataclass(frozen=True)
class _StoredPatches(Block):
    """A block whose patches are read."""

    read: Callable[[str, Piece], NDArray[Any]]

    def cut(self, role: str, piece: Piece) -> NDArray[Any]:
        return self.read(role, piece)


class _Pixels:
    """Reads the pixels of a pair, as another type."""

    def __init__(self, file: ValidatedFile, pair: int, dtype: str) -> None:
        self.file, self.pair, self.dtype = file, pair, dtype
        #: The largest difference that the type has made so far.
        self.rounding = dict.fromkeys(ROLES, 0.0)

    def _cast(self, role: str, values: NDArray[Any]) -> NDArray[Any]:
        try:
            out, largest = dtypes.cast(values.astype(np.float32, copy=False), self.dtype)
        except ValueError as error:
            name = printable(self.file.slice_file(role, self.pair))
            raise RunError(f"{name}: {error}; choose another --dtype") from error
        self.rounding[role] = max(self.rounding[role], largest)
        return out

    def patches(self, role: str, piece: Piece) -> NDArray[Any]:
        """Return patches of the block, shape (n, p, p)."""
        rows = np.r_[self.file.rows_of(self.pair)][piece.start : piece.stop]
        return self._cast(role, self.file.images(role, rows))

    def view(self, role: str, offset: int, size: tuple[int, int]) -> NDArray[Any]:
        """Return a stored view."""
        values = self.file.values(f"views/{role}", slice(offset, offset + math.prod(size)))
        return self._cast(role, from_strips(values, size))

    def assembled(
        self, role: str, block: Block, sizes: list[tuple[int, int]]
    ) -> list[NDArray[Any]]:
        """Return the views that patches were cut from, with air where there is no patch."""
        file, p = self.file, block.size
        offset, divisor, slope, intercept = file.constants[role][:, self.pair].tolist()
        clipped = file.config["normalization_type"] == "hu_window"
        window = file.config["hu_window"] if clipped else None
        unit = file.attributes["unit"].decode()
        air = normalised_air(Affine(offset, divisor), slope, intercept, unit, window)
        limits = dtypes.limits_of(self.dtype)
        fill, _ = dtypes.cast(np.array(air, np.float32).clip(limits.min, limits.max), self.dtype)
        views = [np.full(size, fill) for size in sizes]
        for piece in block.pieces():
            part, view = slice(piece.start, piece.stop), views[piece.view]
            patches = upright(block.cut(role, piece), block.orientation[part])
            places = zip(block.row[part].tolist(), block.col[part].tolist(), patches, strict=True)
            for row, col, patch in places:
                view[row : row + p, col : col + p] = patch
        return views


def _block(pixels: _Pixels, store: str, views: Table) -> Block:
    """Return the block of a pair, whose views these are, for the target."""
    file, sizes = pixels.file, _sizes(views)
    columns = file.columns(file.rows_of(pixels.pair))
    counts = np.array([np.sum(columns["scale"] == scale) for scale in views["scale"]], int)
    valid = np.array_equal(np.repeat(views["scale"], counts), columns["scale"])
    if valid:
        ends = np.stack([columns["row"], columns["col"]]) + file.patch_size
        stored = np.stack([views["rows"], views["columns"]]).astype(np.int64)
        valid = bool((ends <= np.repeat(stored, counts, axis=1)).all())
    if not valid:
        reason = f"is damaged: patches of pair {pixels.pair} lie beyond its views, or in no order"
        raise Invalid(file.path, reason)
    windows = {name: columns[name] for name in PATCH_COLUMNS if name != "pair"}
    starts = np.append(0, np.cumsum(counts)).tolist()
    block: Block
    if file.store == "patches":
        block = _StoredPatches({}, starts, file.patch_size, **windows, read=pixels.patches)
        if store == "views":
            block.views.update({role: pixels.assembled(role, block, sizes) for role in ROLES})
    else:
        places = list(zip(views["offset"].tolist(), sizes, strict=True))
        images = {role: [pixels.view(role, *place) for place in places] for role in ROLES}
        block = Block(images, starts, file.patch_size, **windows)
    return block
