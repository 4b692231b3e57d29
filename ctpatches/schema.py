"""The layout of the h5 file: names, types and shapes, for writing and for reading."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from ctpatches.messages import CallError

FORMAT = "paired CT patches"
#: The newest `format_version` that this module knows.
VERSION = 4
ROLES = ("input", "target")
#: What a file stores: patches, or the views that they are cut from.
STORES = ("patches", "views")
#: Types of the pixels, by the name of `--dtype`.
DTYPES = {"float32": "<f4", "float16": "<f2", "int16": "<i2"}
COMPRESSIONS = ("none", "lz4", "zstd", "gzip")
#: What all of them but gzip need.
PLUGIN = "hdf5plugin"
#: The options that decide how pixels are stored, with their values.
STORAGE = {"store": STORES, "dtype": tuple(DTYPES), "compression": COMPRESSIONS}
#: Options that files before version 4 do not have, with their defaults.
ADDED_OPTIONS: dict[str, Any] = {
    **{name: known[0] for name, known in STORAGE.items()},
    "shuffle_patches": False,
}
#: Datasets with one value per patch, in the order of a block's checksum.
PATCH_COLUMNS = {
    "pair": "<u4",
    "scale": "<f4",
    "row": "<i4",
    "col": "<i4",
    "orientation": "|u1",
}
#: In compressed files: bytes of the chunk of every patch.
CHUNK_COLUMNS = {f"{role}_bytes": "<u4" for role in ROLES}
#: Datasets with one value per stored view: its first pixel in `views/input` and `views/target`, and
#: its size, which with `--edge pad` includes the padding.
VIEW_COLUMNS = {"pair": "<u4", "scale": "<f4", "offset": "<u8", "rows": "<u4", "columns": "<u4"}
#: XXH3-128 of all bytes that belong to no block.
REST, REST_BYTES = "checksum", 16

#: Orientations of a patch by code; rotations are counter-clockwise, as those of `numpy.rot90`.
ORIENTATIONS = (
    "unchanged",
    "rotated by 90 degrees",
    "rotated by 180 degrees",
    "rotated by 270 degrees",
    "flipped up-down",
    "flipped left-right",
)

#: Type of a string of fixed length, and of pixels: one of `DTYPES`.
STRING, PIXELS = "S", "pixels"
#: Attributes of the file and their types; all are scalars.
ATTRIBUTES = {
    "format": STRING,
    "format_version": "<u4",
    "complete": "|u1",
    "seed": "<i8",
    "unit": STRING,
    "configuration": STRING,
    "orientations": STRING,
}
#: End of the name of the copy of fixed length that every text of variable length has.
COPY = "_bytes"
#: Columns of `pair/` per role: normalised = (value - offset) / divisor, values in the unit of the
#: file, and HU = slope x stored value + intercept.
CONSTANTS = ("offset", "divisor", "slope", "intercept")
#: Columns of `pair/` with what `pipeline.model.Difference` describes.
DIFFERENCE_COLUMNS = {
    "difference_pixels": "<u8",
    "difference_sum": "<f8",
    "difference_squares": "<f8",
    **{f"{role}_{side}": "<u8" for role in ROLES for side in ("below", "above")},
}
LEFT_OUT_COLUMNS = ("patient", "files", "reason", "kind")


class Field(NamedTuple):
    """The type of a dataset (NumPy's name, `STRING` or `PIXELS`), and what it has a row for."""

    dtype: str
    row_of: str
    #: The first `format_version` with this dataset.
    since: int = 1
    #: The store that has it; '' for both.
    store: str = ""
    #: Whether only compressed files have it.
    compressed: bool = False

    @property
    def image(self) -> bool:
        """Whether a row is the pixels of a patch and not a single value."""
        return self.dtype == PIXELS and self.row_of == "patch"


SCHEMA = {
    **{role: Field(PIXELS, "patch", store="patches") for role in ROLES},
    **{f"views/{role}": Field(PIXELS, "pixel", store="views") for role in ROLES},
    **{
        f"views/{name}": Field(dtype, "view", store="views") for name, dtype in VIEW_COLUMNS.items()
    },
    **{f"patch/{name}": Field(dtype, "patch") for name, dtype in PATCH_COLUMNS.items()},
    **{
        f"patch/{name}": Field(dtype, "patch", store="patches", compressed=True)
        for name, dtype in CHUNK_COLUMNS.items()
    },
    "pair/patient": Field(STRING, "pair"),
    **{f"pair/{role}_file": Field(STRING, "pair") for role in ROLES},
    "pair/position_mm": Field("<f8", "pair"),
    **{f"pair/{name}": Field("<u4", "pair") for name in ("rows", "columns")},
    **{f"pair/{name}": Field("<u8", "pair") for name in ("first_patch", "patches", "checksum")},
    "pair/degradation": Field(STRING, "pair"),
    **{f"pair/{role}_{name}": Field("<f8", "pair") for role in ROLES for name in CONSTANTS},
    **{f"pair/{role}_digest": Field("<u8", "pair", since=2) for role in ROLES},
    **{f"pair/{name}": Field(dtype, "pair", since=3) for name, dtype in DIFFERENCE_COLUMNS.items()},
    **{f"pair/{role}_rounding": Field("<f8", "pair", since=4) for role in ROLES},
    **{f"left_out/{name}": Field(STRING, "left out") for name in LEFT_OUT_COLUMNS},
    REST: Field("|u1", "byte"),
}
#: Rows and columns of the largest slice that ctpatches reads.
MAX_IMAGE_SIDE = 4096
#: HDF5 decompresses whole chunks: the largest image is one of this size.
MAX_CHUNK_BYTES = 4 * MAX_IMAGE_SIDE**2
#: HDF5 needs 5 to 10 microseconds per chunk, and columns are read whole.
MAX_COLUMN_CHUNKS = 10_000
#: Bytes of a compressed dataset of patches per byte of the file; CT images compress far less.
MAX_EXPANSION = 1000


def bulk_names(store: str, compressed: bool = False) -> list[str]:
    """Return the datasets that blocks are written to, in the order of a block's checksum.

    In compressed files that begins with the chunks of the inputs and of the targets.
    """
    return [
        name
        for name, field in SCHEMA.items()
        if field.row_of in ("patch", "pixel")
        and in_store(name, store, compressed)
        and not (compressed and field.image)
    ]


def in_store(name: str, store: str, compressed: bool = False) -> bool:
    """Return whether files of a store have a dataset."""
    return SCHEMA[name].store in ("", store) and SCHEMA[name].compressed <= compressed


def check_storage(config: Mapping[str, Any]) -> None:
    """Raise CallError for options that exclude each other, or need a package that is missing."""
    compression, kind = config["compression"], config["normalization_type"]
    if config["dtype"] == "int16" and kind != "None":
        raise CallError(f"--dtype int16 requires --normalization-type None, found {kind}")
    if compression == "none":
        return
    if config["store"] != "patches":
        raise CallError(
            f"--compression {compression} requires --store patches, found {config['store']}: "
            "a window of a view would have to be decompressed with its surroundings"
        )
    if compression != "gzip" and not importlib.util.find_spec(PLUGIN):
        raise CallError(
            f"--compression {compression} needs the package {PLUGIN}: pip install {PLUGIN}"
        )


def decoded(value: bytes) -> str:
    """Return a string of the file."""
    return value.decode("utf-8", "surrogateescape")
