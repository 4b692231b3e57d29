"""Reading rows of a dataset at their byte offsets.

Patches are read with `preadv` and not through a memory map. Both feed a DataLoader equally fast
from memory; from disk a map reads seven times the bytes, because the kernel reads around every page
fault, and a file that is truncated or lost on a network disk ends the process with a bus error
where `preadv` raises.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.files import open_regular
from ctpatches.validation import ValidatedFile, open_file


@dataclass(frozen=True)
class Place:
    """Where the rows of a dataset lie.

    Attributes
    ----------
    name : str
    offset : int or None
        First byte; None where only HDF5 finds the rows: somebody has compressed the file, or the
        system has no `preadv`.
    dtype : str
    shape : tuple of int
        Of a row.
    """

    name: str
    offset: int | None
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dataset: h5py.Dataset) -> Place:
        offset = dataset.id.get_offset() if hasattr(os, "preadv") else None
        return cls(name, offset, dataset.dtype.str, dataset.shape[1:])


class RowReader:
    """The file as one process has it open."""

    def __init__(self, path: str) -> None:
        self.path, self.process = path, os.getpid()
        self.descriptor = open_regular(path)
        self.source: ValidatedFile | None = None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def rows(self, place: Place, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of a dataset in the order asked for, shape (n, ...).

        Raises
        ------
        OSError
            The file cannot be read, or has become shorter.
        """
        out = np.empty((len(rows), *place.shape), place.dtype)
        if place.offset is None:
            return self._rows_of_hdf5(place, rows, out)
        width = out.itemsize * math.prod(place.shape)
        raw = out.reshape(-1).view(np.uint8).data
        for at, row in enumerate(rows.tolist()):
            piece = raw[at * width : (at + 1) * width]
            if os.preadv(self.descriptor, [piece], place.offset + row * width) != width:
                raise OSError(f"{self.path!r} ends before patch {row}: it has been cut off")
        return out

    def _rows_of_hdf5(
        self, place: Place, rows: NDArray[np.int64], out: NDArray[Any]
    ) -> NDArray[Any]:
        if self.source is None:
            self.source = ValidatedFile(open_file(self.path))
        for at, row in enumerate(rows.tolist()):
            out[at] = self.source.read(place.name, row)
        return out
