"""Reading patches for training: a selection, random orientations, any number of processes.

The loaders for PyTorch, TensorFlow and Keras are built on `PatchReader`, which needs none of them.
"""

from __future__ import annotations

import multiprocessing.context
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctpatches.file import Patches, PatchFile, abbreviated, positions
from ctpatches.messages import printable
from ctpatches.orientations import Images, draw_orientations, turned
from ctpatches.schema import ORIENTATIONS, REST
from ctpatches.structure import PathLike
from ctpatches.views import Windows

Patients: TypeAlias = str | Iterable[str] | None
Scales: TypeAlias = float | Iterable[float] | None
Orientations: TypeAlias = int | Iterable[int] | None
#: Called with input and target, and returns both.
Transform: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]
#: Rows of `patch/` that are read at once, so that memory stays bounded.
MAX_ROWS = 1 << 20


def patient_names(file: PathLike) -> list[str]:
    """Return the names of the patients in the order of the file."""
    with PatchFile(file) as source:
        return source.patients


class PatchReader:
    """The patches of a file, or a selection of them, for training.

    Each process opens the file itself when it first reads; forking, spawning and pickling are
    supported.

    Parameters
    ----------
    file : path
    patients : str or iterable of str, optional
        Names of the patients whose patches are read; by default all.
    scales : float or iterable of float, optional
        Scales whose patches are read, of 1, 0.8 and 0.6; by default all.
    orientations : int or iterable of int, optional
        Indices into `ctpatches.schema.ORIENTATIONS`; by default all. 0 omits the patches that
        `--rot_augment` added.
    unit : {'file', 'hu'}
        As stored in the file, or with the normalisation inverted, each by its own constants.
    dtype : {'float32', 'file'}
        Type of the arrays: float32, or as stored in the file. HU are always float32.
    transform : callable, optional
        Called by the loaders, not by `read`, with input and target, and returns both. In
        `PatchDataset` these are two tensors of one patch, shape (1, p, p); in `tf_dataset` and
        `keras_sequence` those of a batch, shape (n, p, p, 1). To be pickled it must be a function
        of a module.
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
    scales : list of float
    orientations : list of int
    patch_size : int
        Rows and columns of a patch.
    dtype : numpy.dtype
        Type of the arrays.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a complete, valid file of ctpatches; the unit or the type is not valid; no
        patient, scale or orientation is chosen, or one that it does not have, or none with a patch.
    """

    def __init__(
        self,
        file: PathLike,
        patients: Patients = None,
        *,
        scales: Scales = None,
        orientations: Orientations = None,
        unit: str = "file",
        dtype: str = "float32",
        transform: Transform | None = None,
        provenance: bool = False,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.path = os.path.abspath(file)
        self.unit, self.transform = unit, transform
        self.provenance, self.augment, self.seed = provenance, augment, seed
        with PatchFile(self.path) as source:
            self.patch_size = source.patch_size
            self.dtype, self._dtype = source.dtype_of(unit, dtype), dtype
            # It covers the checksums of all blocks: these 16 bytes identify the file.
            self._checksum = source.values(REST).tobytes()
            self.patients = self._chosen("patient", patients, source.patients)
            self.scales = self._chosen("scale", scales, source.scales)
            codes = range(len(ORIENTATIONS))
            self.orientations = self._chosen("orientation", orientations, codes)
            self._in_file = source.patches
            self._rows, self._windows = self._select(source)
        if not len(self):
            raise ValueError(f"{self.path!r} has no patch of {self._selection()}")
        self._source: PatchFile | None = None
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

    def __repr__(self) -> str:
        size, name = self.patch_size, getattr(self.transform, "__qualname__", self.transform)
        facts = (
            f"{len(self)} of {self._in_file} patches of {size} x {size} pixels",
            self._selection(),
            f"unit {self.unit}, {self.dtype}",
            *([f"augmented with seed {self.seed}"] if self.augment else []),
            *([f"transform {name}"] if self.transform else []),
        )
        return printable(f"<{type(self).__name__} {self.path!r}: {'; '.join(facts)}>")

    def _selection(self) -> str:
        patients = abbreviated(list(map(repr, self.patients)))
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"{patients}; scales {scales}; orientations {', '.join(map(str, self.orientations))}"

    def _chosen(self, kind: str, given: Any, known: Sequence[Any]) -> list[Any]:
        """Return the values that were chosen, in the order of the file; None chooses all."""
        if given is None:
            return list(known)
        values = np.ravel(given if np.isscalar(given) else list(given)).tolist()
        # The scales in `patch/scale` are float32: 0.8 is 0.800000011920929 there.
        chosen = {round(value, 6) if isinstance(value, float) else value for value in values}
        unknown = ", ".join(map(repr, sorted(chosen - set(known))))
        if unknown or not chosen:
            found = f"no {kind} {unknown}" if unknown else f"no {kind} is chosen"
            raise ValueError(f"{self.path!r}: {found}; there are: {', '.join(map(repr, known))}")
        return [value for value in known if value in chosen]

    def _select(self, source: PatchFile) -> tuple[NDArray[np.int64], Windows | None]:
        """Return the rows of the selected patches, and in a file of views their windows."""
        of_patients = np.isin(source.texts("pair/patient"), self.patients)
        scales = np.array(self.scales, np.float32)
        rows, windows = [], []
        for first in range(0, source.patches, MAX_ROWS):
            columns = source.columns(slice(first, first + MAX_ROWS))
            selected = of_patients[columns["pair"]]
            selected &= np.isin(columns["scale"], scales)
            selected &= np.isin(columns["orientation"], self.orientations)
            rows.append(first + np.flatnonzero(selected))
            if source.store == "views":
                windows.append(source.views.windows(columns)[selected])
        return np.concatenate(rows), np.concatenate(windows) if windows else None

    def set_epoch(self, epoch: int) -> None:
        """Draw other orientations from now on; call it before each pass over the loader."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Patches) -> NDArray[np.int64]:
        """Return the indices in the file of patches of this dataset."""
        return self._rows[positions(indices, len(self))]

    def read(self, indices: Patches) -> tuple[Images, Images]:
        """Return inputs and targets, each of shape (n, p, p)."""
        low, full, *_ = self.samples(indices)
        return low, full

    def samples(self, indices: Patches, epoch: int | None = None) -> list[Any]:
        """Return inputs, targets and, with `provenance`, the list of its dicts.

        Orientations are drawn for an epoch, by default that of `set_epoch`.
        """
        source, index = self._open(), positions(indices, len(self))
        rows = self._rows[index]
        windows = None if self._windows is None else self._windows[index]
        parts: list[Any] = [*source.read_rows(rows, self.unit, self._dtype, windows)]
        codes = np.zeros(len(rows), np.uint8)
        if self.augment:
            epoch = self._epoch.value if epoch is None else epoch
            codes = draw_orientations(self.seed, epoch, rows)
            parts = [turned(images, codes) for images in parts]
        if self.provenance:
            each = zip(source.provenances(rows), rows.tolist(), codes.tolist(), strict=True)
            parts.append([vars(one) | {"patch": row, "turned": code} for one, row, code in each])
        return parts

    def _open(self) -> PatchFile:
        """Return the file as this process has it open."""
        if self._source is None or self._process != os.getpid():
            source = PatchFile(self.path)
            if source.values(REST).tobytes() != self._checksum:
                source.close()
                raise ValueError(f"{self.path!r} is another file than when it was first opened")
            self._source, self._process = source, os.getpid()
        return self._source
