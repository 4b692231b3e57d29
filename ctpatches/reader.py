"""Reading patches for a training: chosen patients, random orientations, any number of processes.

The loaders for PyTorch, TensorFlow and Keras are built on `PatchReader`, which needs none of them.
"""

from __future__ import annotations

import multiprocessing.context
import os
from collections.abc import Iterable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.file import patients_of
from ctpatches.orientations import Images, draw_orientations, turned
from ctpatches.row_reader import Place, RowReader
from ctpatches.schema import PATCH_COLUMNS, REST, decoded
from ctpatches.validation import opened
from ctpatches.windows import Windows

#: Columns of `pair/` that a patch's provenance has.
PAIR_COLUMNS = ("patient", "input_file", "target_file", "position_mm", "degradation")

Indices = Sequence[int] | NDArray[np.integer[Any]]


def patient_names(file: str | os.PathLike[str]) -> list[str]:
    """Return the names of the patients in the order of the file."""
    with opened(file) as source:
        return patients_of(source)


class PatchReader:
    """The patches of a file, or of some of its patients, for a training.

    Each process opens the file for itself when it first reads; forking, spawning and pickling are
    all fine.

    Parameters
    ----------
    file : path
    patients : str or iterable of str, optional
        Names of the patients whose patches are taken; by default all.
    provenance : bool
        Whether a sample has a third part, a dict: the fields of `ctpatches.file.Provenance`,
        `patch`, the index in the file, and `turned`, the index into `DIHEDRAL` of what `augment`
        did.
    augment : bool
        Whether input and target are turned or mirrored alike, at random, anew in every epoch.
    seed : int
        What the orientations hang on, with the epoch and the patch.

    Attributes
    ----------
    path : str
    patients : list of str
        Those that were chosen, in the order of the file.
    patch_size : int
        Pixels a side.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no complete file of this tool; no patient is chosen, or one that it does not have,
        or none with a patch.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        patients: str | Iterable[str] | None = None,
        provenance: bool = False,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.path = os.path.abspath(file)
        self.provenance, self.augment, self.seed = provenance, augment, seed
        with opened(self.path) as source:
            self.patch_size = source.patch_size
            names = ("input", "target", REST, *(f"patch/{n}" for n in PATCH_COLUMNS))
            self._places = {name: Place.of(name, source[name]) for name in names}
            self._checksum = source.read(REST).tobytes()
            here = list(map(decoded, source.read("pair/patient").tolist()))
            first, patches = source.blocks
        self.patients = _chosen(patients, list(dict.fromkeys(here)), self.path)
        wanted = np.isin(here, self.patients) & (patches > 0)
        # A block is one run of patches: a first patch and an end for each stand for all indices.
        self._first = first[wanted]
        self._ends = np.cumsum(patches[wanted])
        if not len(self._ends):
            raise ValueError(f"{self.path!r} has no patch of {', '.join(map(repr, self.patients))}")
        self._reader: RowReader | None = None
        self._pairs: tuple[dict[str, Any], Windows] | None = None
        # Shared with the workers: those that a DataLoader keeps (persistent_workers) would
        # otherwise stay in the epoch in which they were started.
        self._epoch: Any = RawValue("q", 0)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_reader": None, "_pairs": None}
        if multiprocessing.context.get_spawning_popen() is None:
            state["_epoch"] = self._epoch.value  # shared memory goes to child processes only
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._epoch, int):
            self._epoch = RawValue("q", self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other orientations from now on; call it before each pass over the loader."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Indices) -> tuple[Images, Images]:
        """Return inputs and targets as arrays of float32, each of shape (n, p, p); no torch."""
        rows = self.rows(indices)
        return self._images(rows, self._codes(rows))

    def rows(self, indices: Indices) -> NDArray[np.int64]:
        """Return where patches of this dataset are in the file, shape (n,).

        Raises
        ------
        IndexError
            There is no such patch.
        """
        asked = np.asarray(indices, np.int64).reshape(-1)
        index = np.where(asked < 0, asked + len(self), asked)
        wrong = (index < 0) | (index >= len(self))
        if wrong.any():
            raise IndexError(f"patch {asked[wrong][0]} of {len(self)}")
        block = np.searchsorted(self._ends, index, side="right")
        out: NDArray[np.int64] = index - self._ends[block]
        out += self._first[block] + np.diff(self._ends, prepend=0)[block]
        return out

    def _codes(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.augment:
            return draw_orientations(self.seed, self._epoch.value, rows)
        return np.zeros(len(rows), np.uint8)

    def _images(self, rows: NDArray[np.int64], codes: NDArray[np.uint8]) -> tuple[Images, Images]:
        both = []
        for name in ("input", "target"):
            images = self._open().rows(self._places[name], rows)
            images = images.reshape(-1, self.patch_size, self.patch_size)
            both.append(turned(images, codes) if self.augment else images)
        return both[0], both[1]

    def _open(self) -> RowReader:
        """Return the file as this process has it open."""
        reader = self._reader
        if reader is None or reader.process != os.getpid():
            reader = RowReader(self.path)
            # The checksum of everything but the patches holds the checksums of all blocks of
            # patches: these 16 bytes stand for the file.
            every = np.arange(len(self._checksum))
            if reader.rows(self._places[REST], every).tobytes() != self._checksum:
                raise ValueError(f"{self.path!r} is another file than when it was opened first")
            self._reader = reader
        return reader

    def _provenance(
        self, rows: NDArray[np.int64], codes: NDArray[np.uint8]
    ) -> list[dict[str, Any]]:
        """Return for each patch where it comes from, as plain numbers and strings."""
        if self._pairs is None:
            with opened(self.path) as source:
                table = {name: source.read(f"pair/{name}") for name in PAIR_COLUMNS}
                self._pairs = table, source.windows
        pairs, windows = self._pairs
        here = {n: self._open().rows(self._places[f"patch/{n}"], rows) for n in PATCH_COLUMNS}
        windows.check(here, rows)
        out = []
        for at, (row, code) in enumerate(zip(rows.tolist(), codes.tolist(), strict=True)):
            patch = {name: column[at].item() for name, column in here.items()}
            pair = {name: column[patch["pair"]] for name, column in pairs.items()}
            pair = {n: decoded(v) if isinstance(v, bytes) else float(v) for n, v in pair.items()}
            patch["scale"] = round(patch["scale"], 6)
            out.append(pair | patch | {"patch": row, "turned": code})
        return out


def _chosen(patients: str | Iterable[str] | None, there: list[str], path: str) -> list[str]:
    """Return the chosen patients in the order of the file."""
    if patients is None:
        return there
    asked = {patients} if isinstance(patients, str) else set(patients)
    unknown = sorted(asked - set(there))
    if unknown or not asked:
        found = f"no patient {', '.join(map(repr, unknown))}" if unknown else "no patient is chosen"
        raise ValueError(f"{path!r}: {found}; there are: {', '.join(map(repr, there))}")
    return [name for name in there if name in asked]
