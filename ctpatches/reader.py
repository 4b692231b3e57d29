"""Reading patches for training: chosen patients, random orientations, any number of processes.

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

from ctpatches.file import provenances
from ctpatches.orientations import Images, draw_orientations, turned
from ctpatches.schema import REST, ROLES
from ctpatches.validation import PathLike, ValidatedFile

Indices = Sequence[int] | NDArray[np.integer[Any]]


def patient_names(file: PathLike) -> list[str]:
    """Return the names of the patients in the order of the file."""
    with ValidatedFile(file) as source:
        return source.patients


class PatchReader:
    """The patches of a file, or of some of its patients, for training.

    Each process opens the file itself when it first reads; forking, spawning and pickling are
    supported.

    Parameters
    ----------
    file : path
    patients : str or iterable of str, optional
        Names of the patients whose patches are read; by default all.
    provenance : bool
        Whether a sample has a third part, a dict: the fields of `ctpatches.file.Provenance`,
        `patch`, the index in the file, and `turned`, the index into `DIHEDRAL` of the orientation
        that `augment` drew.
    augment : bool
        Whether input and target are rotated or flipped alike, at random, anew in every epoch.
    seed : int
        Seed for the orientations; they depend on the epoch and the patch as well.

    Attributes
    ----------
    path : str
    patients : list of str
        Those that were chosen, in the order of the file.
    patch_size : int
        Rows and columns of a patch.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a complete, valid file of ctpatches; no patient is chosen, or one that it does not
        have, or none with a patch.
    """

    def __init__(
        self,
        file: PathLike,
        patients: str | Iterable[str] | None = None,
        provenance: bool = False,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.path = os.path.abspath(file)
        self.provenance, self.augment, self.seed = provenance, augment, seed
        with ValidatedFile(self.path) as source:
            self.patch_size = source.patch_size
            # It covers the checksums of all blocks: these 16 bytes identify the file.
            self._checksum = source.values(REST).tobytes()
            names, known = source.texts("pair/patient"), source.patients
            first, patches = source.blocks
        if isinstance(patients, str):
            patients = [patients]
        chosen = set(known if patients is None else patients)
        unknown = ", ".join(map(repr, sorted(chosen - set(known))))
        if unknown or not chosen:
            found = f"no patient {unknown}" if unknown else "no patient is chosen"
            raise ValueError(f"{self.path!r}: {found}; there are: {', '.join(map(repr, known))}")
        self.patients = [name for name in known if name in chosen]
        used = np.isin(names, self.patients) & (patches > 0)
        if not used.any():
            raise ValueError(f"{self.path!r} has no patch of {', '.join(map(repr, self.patients))}")
        # The patches of a block follow one another: two numbers per block stand for all indices.
        self._ends = np.cumsum(patches[used])
        self._shifts = first[used] - (self._ends - patches[used])
        self._source: ValidatedFile | None = None
        self._process = 0
        # Shared with the workers: those that a DataLoader keeps (persistent_workers) would
        # otherwise stay in the epoch in which they were started.
        self._epoch: Any = RawValue("q", 0)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_source": None}
        if multiprocessing.context.get_spawning_popen() is None:
            state["_epoch"] = self._epoch.value  # only child processes can share memory
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

    def rows(self, indices: Indices) -> NDArray[np.int64]:
        """Return the indices in the file of patches of this dataset."""
        given = np.asarray(indices, np.int64).reshape(-1)
        index = np.where(given < 0, given + len(self), given)
        invalid = (index < 0) | (index >= len(self))
        if invalid.any():
            raise IndexError(f"patch {given[invalid][0]} of {len(self)}")
        block = np.searchsorted(self._ends, index, side="right")
        return np.asarray(index + self._shifts[block], np.int64)

    def read(self, indices: Indices) -> tuple[Images, Images]:
        """Return inputs and targets, each of shape (n, p, p)."""
        low, full, *_ = self.samples(indices)
        return low, full

    def samples(self, indices: Indices) -> list[Any]:
        """Return inputs, targets and, with `provenance`, the list of its dicts."""
        rows = self.rows(indices)
        source = self._open()
        codes = np.zeros(len(rows), np.uint8)
        parts: list[Any] = [source.images(role, rows) for role in ROLES]
        if self.augment:
            codes = draw_orientations(self.seed, self._epoch.value, rows)
            parts = [turned(images, codes) for images in parts]
        if self.provenance:
            each = zip(provenances(source, rows), rows.tolist(), codes.tolist(), strict=True)
            parts.append([vars(one) | {"patch": row, "turned": code} for one, row, code in each])
        return parts

    def _open(self) -> ValidatedFile:
        """Return the file as this process has it open."""
        if self._source is None or self._process != os.getpid():
            source = ValidatedFile(self.path)
            if source.values(REST).tobytes() != self._checksum:
                source.close()
                raise ValueError(f"{self.path!r} is another file than when it was first opened")
            self._source, self._process = source, os.getpid()
        return self._source
