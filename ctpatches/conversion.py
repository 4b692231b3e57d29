"""Converting a file to another store, or to another type of its pixels, without the scans."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches import dtypes, files
from ctpatches.blocks import CHUNKS, Block
from ctpatches.checksums import damages
from ctpatches.files import Invalid
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
        with _create_partial(target) as partial, files.atomic_write(target):
            _write(file, config, partial.fileno(), target)
        files.sync_folder(target)


def _check_target(source: str, target: str, overwrite: bool) -> None:
    """Refuse a target that must not be written."""
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
    views = _views(file, config)
    tables = _tables(file)
    if config["store"] == "views":
        tables |= {f"views/{name}": views[name] for name in VIEW_COLUMNS}

    def header() -> Header:
        configuration = json.dumps(config, sort_keys=True)
        return build_header(tables, configuration, file.attributes["unit"], complete=True)

    empty = header()
    end = empty.size  # of the chunks of a compressed file

    def write(offset: files.Offset, data: memoryview) -> None:
        nonlocal end
        if isinstance(offset, int) and offset >= CHUNKS:
            offset, end = end, end + len(data)
        with files.named_errors(target):
            files.write_at(descriptor, data, offset)

    with files.named_errors(target):
        os.ftruncate(descriptor, empty.size)
        files.reserve(descriptor, empty.size)
    for pair in range(file.pairs):
        _check(next(problems), file)
        of_pair = views[slice(*np.searchsorted(views["pair"], [pair, pair + 1]).tolist())]
        block = _block(file, pair, of_pair)
        for role in ROLES:
            block.views[role], largest = _images(file, pair, role, of_pair, block, config["dtype"])
            tables[f"pair/{role}_rounding"][pair] += largest
        place = file.place(pair) | {"pixel": (int(of_pair["offset"][:1].sum()), 0)}
        tables["pair/checksum"][pair] = block.write(
            write, empty.rows, pair, place, config["compression"], empty.shuffle
        )
    with files.named_errors(target):
        header().write(descriptor, [*file.blocks[0].tolist(), file.patches])
        os.fsync(descriptor)


def _check(damage: str, file: ValidatedFile) -> None:
    if damage:
        raise RunError(f"{quoted(file.path)}: {printable(damage)}; expected: an undamaged file")


def _tables(file: ValidatedFile) -> dict[str, NDArray[Any]]:
    """Return the tables that do not depend on the store; rounding and checksums will change."""
    out = {}
    for name, field in SCHEMA.items():
        if field.store or field.row_of == "patch" or name == REST:
            continue
        if field.since <= file.version:
            out[name] = file.values(name).astype(file[name].dtype)  # with the encoding of strings
        else:  # no file of that version was rounded
            out[name] = np.zeros(file.pairs, field.dtype)
    return out


def _views(file: ValidatedFile, config: Mapping[str, Any]) -> NDArray[Any]:
    """Return the rows of `views/`; for patches those that a run would have planned."""
    kind = list(VIEW_COLUMNS.items())
    if file.store == "views":
        return np.rec.fromarrays(list(file.views.columns.values()), np.dtype(kind))
    rows, offset = [], 0
    for pair in range(file.pairs):
        scales = np.unique(file.columns(file.rows_of(pair))["scale"])
        for scale in scales[::-1].astype(np.float64).round(6).tolist():
            height, width = (
                padded_length(int(length), file.patch_size, config["overlap"], config["edge"])
                for length in file.view_shape(pair, scale)
            )
            rows.append((pair, scale, offset, height, width))
            offset += height * width
    return np.array(rows, kind)


def _block(file: ValidatedFile, pair: int, views: NDArray[Any]) -> Block:
    """Return the block of a pair, whose views these are, without their pixels."""
    columns = file.columns(file.rows_of(pair))
    counts = np.array([np.sum(columns["scale"] == scale) for scale in views["scale"]], int)
    valid = np.array_equal(np.repeat(views["scale"], counts), columns["scale"])
    if valid:
        ends = np.stack([columns["row"], columns["col"]]) + file.patch_size
        sizes = np.stack([views["rows"], views["columns"]]).astype(np.int64)
        valid = bool((ends <= np.repeat(sizes, counts, axis=1)).all())
    if not valid:
        reason = f"is damaged: patches of pair {pair} lie beyond its views, or in no order"
        raise Invalid(file.path, reason)
    windows = {name: columns[name] for name in PATCH_COLUMNS if name != "pair"}
    starts = np.append(0, np.cumsum(counts)).tolist()
    return Block({}, starts, file.patch_size, **windows)


def _images(
    file: ValidatedFile, pair: int, role: str, views: NDArray[Any], block: Block, dtype: str
) -> tuple[list[NDArray[Any]], float]:
    """Return the views of a pair as another type, and the largest difference that this makes.

    Where a file stores patches, the views that they were cut from are air between them.
    """
    rows, p = np.r_[file.rows_of(pair)], file.patch_size
    out, largest = [], 0.0

    def cast(pixels: NDArray[Any]) -> NDArray[Any]:
        nonlocal largest
        try:
            converted, difference = dtypes.cast(pixels.astype(np.float32, copy=False), dtype)
        except ValueError as error:
            name = printable(file.slice_file(role, pair))
            raise RunError(f"{name}: {error}; choose another --dtype") from error
        largest = max(largest, difference)
        return converted

    for offset, *size in views[["offset", "rows", "columns"]].tolist():
        if file.store == "views":
            stored = file.values(f"views/{role}", slice(offset, offset + math.prod(size)))
            out.append(cast(from_strips(stored, tuple(size))))
        else:
            out.append(np.full(size, _air(file, role, pair, dtype)))
    for piece in block.pieces() if file.store == "patches" else ():
        part = slice(piece.start, piece.stop)
        patches = cast(upright(file.images(role, rows[part]), block.orientation[part]))
        places = zip(block.row[part].tolist(), block.col[part].tolist(), patches, strict=True)
        for row, col, patch in places:
            out[piece.view][row : row + p, col : col + p] = patch
    return out, largest


def _air(file: ValidatedFile, role: str, pair: int, dtype: str) -> NDArray[Any]:
    """Return the pixel that is nearest to air in the images of a pair."""
    offset, divisor, slope, intercept = file.constants[role][:, pair].tolist()
    clipped = file.config["normalization_type"] == "hu_window"
    window = file.config["hu_window"] if clipped else None
    unit = file.attributes["unit"]
    air = normalised_air(Affine(offset, divisor), slope, intercept, unit, window)
    limits = dtypes.limits_of(dtype)
    return dtypes.cast(np.array(air, np.float32).clip(limits.min, limits.max), dtype)[0]
