"""The layout of the h5 file: names, types and shapes, for whoever writes or reads it."""

from __future__ import annotations

from typing import NamedTuple

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

#: How a patch lies, by its code in the file. Turns are counter-clockwise, as `numpy.rot90` turns.
ORIENTATIONS = (
    "as it is",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "flipped up-down",
    "flipped left-right",
)

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


def bulk_names() -> list[str]:
    """Return the datasets with a row a patch, in the order of a block's checksum."""
    return ["input", "target", *(f"patch/{name}" for name in PATCH_COLUMNS)]


def decoded(value: bytes) -> str:
    """Return a string of the file."""
    return value.decode("utf-8", "surrogateescape")
