"""Feeding a training from the h5 file: PyTorch, `tf.data`, Keras, each imported where it is used.

Needs h5py, numpy and xxhash alone, so the folder can be copied beside a training script.

`PatchDataset` does not inherit from `torch.utils.data.Dataset`: a DataLoader takes whatever has
`__len__` and `__getitem__`, and so this module is imported, and serves TensorFlow, without torch.

Patches are read with `preadv` at their byte and not through a memory map. Both feed a DataLoader
equally fast from memory; from the disk a map reads seven times the bytes, because the kernel reads
around every page fault, and a file that is cut off or lost on a network disk ends the process with
a bus error where `preadv` raises.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing.context
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.files import open_regular
from ctpatches.schema import PATCH_COLUMNS, REST, decoded
from ctpatches.validation import ValidatedFile, open_file, opened
from ctpatches.windows import Windows

#: Columns of `pair/` that a patch's provenance has.
PAIR_COLUMNS = ("patient", "input_file", "target_file", "position_mm", "degradation")

Images = NDArray[np.float32]
Indices = Sequence[int] | NDArray[np.integer[Any]]

#: The eight orientations of a square, of arrays of shape (n, p, p): the first six as in
#: `ctpatches.schema.ORIENTATIONS`, then mirrored at the main and at the other diagonal.
DIHEDRAL: tuple[Callable[[Images], Images], ...] = (
    lambda a: a,
    lambda a: np.rot90(a, 1, (1, 2)),
    lambda a: np.rot90(a, 2, (1, 2)),
    lambda a: np.rot90(a, 3, (1, 2)),
    lambda a: a[:, ::-1],
    lambda a: a[:, :, ::-1],
    lambda a: a.swapaxes(1, 2),
    lambda a: a[:, ::-1, ::-1].swapaxes(1, 2),
)


# --- the file --------------------------------------------------------------------------------


def patient_names(file: str | os.PathLike[str]) -> list[str]:
    """Return the names of the patients in the order of the file."""
    with opened(file) as source:
        return list(dict.fromkeys(map(decoded, source.read("pair/patient").tolist())))


@dataclass(frozen=True)
class _Place:
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
    def of(cls, name: str, dataset: h5py.Dataset) -> _Place:
        offset = dataset.id.get_offset() if hasattr(os, "preadv") else None
        return cls(name, offset, dataset.dtype.str, dataset.shape[1:])


class _Reader:
    """The file as one process has it open."""

    def __init__(self, path: str) -> None:
        self.path, self.process = path, os.getpid()
        self.descriptor = open_regular(path)
        self.source: ValidatedFile | None = None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def rows(self, place: _Place, rows: NDArray[np.int64]) -> NDArray[Any]:
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
        self, place: _Place, rows: NDArray[np.int64], out: NDArray[Any]
    ) -> NDArray[Any]:
        if self.source is None:
            self.source = ValidatedFile(open_file(self.path))
        for at, row in enumerate(rows.tolist()):
            out[at] = self.source.read(place.name, row)
        return out


# --- random orientations ---------------------------------------------------------------------


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the next numbers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 14)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def draw_orientations(seed: int, epoch: int, patches: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw an orientation for each patch; it depends on nothing but the three arguments.

    Parameters
    ----------
    seed, epoch : int
    patches : ndarray of int64, shape (n,)
        Their indices in the file.

    Returns
    -------
    ndarray of uint8, shape (n,)
        Indices into `DIHEDRAL`, each as likely.
    """
    # A hash and not a generator of NumPy: making one for each patch would cost more than reading.
    state = np.zeros(len(patches), np.uint64)
    for word in (seed % 2**64, epoch % 2**64):
        state = _mixed(state ^ np.uint64(word))
    return (_mixed(state ^ patches.astype(np.uint64)) >> np.uint64(61)).astype(np.uint8)


def turned(images: Images, codes: NDArray[np.uint8]) -> Images:
    """Return images, shape (n, p, p), each in the orientation of its code."""
    out = np.empty_like(images)
    for code in np.unique(codes):
        chosen = codes == code
        out[chosen] = DIHEDRAL[code](images[chosen])
    return out


# --- PyTorch ---------------------------------------------------------------------------------


class PatchDataset:
    """The patches of a file as a map-style dataset for `torch.utils.data.DataLoader`.

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

    Examples
    --------
    >>> dataset = PatchDataset("train.h5", augment=True)  # doctest: +SKIP
    >>> loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2)  # doctest: +SKIP
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
            self._places = {name: _Place.of(name, source[name]) for name in names}
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
        self._reader: _Reader | None = None
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

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return input and target, float32 tensors of shape (1, p, p), and maybe the provenance.

        Raises
        ------
        IndexError
            There is no such patch.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Indices) -> list[tuple[Any, ...]]:
        """Return samples as `__getitem__` does; torch calls this once for each batch."""
        import torch

        rows = self.rows(indices)
        codes = self._codes(rows)
        parts: list[Any] = [torch.from_numpy(one[:, None]) for one in self._images(rows, codes)]
        if self.provenance:
            parts.append(self._provenance(rows, codes))
        return list(zip(*parts, strict=True))

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

    def _open(self) -> _Reader:
        """Return the file as this process has it open."""
        reader = self._reader
        if reader is None or reader.process != os.getpid():
            reader = _Reader(self.path)
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


# --- TensorFlow and Keras --------------------------------------------------------------------


def tf_dataset(
    file: str | os.PathLike[str],
    batch: int = 64,
    shuffle: bool = True,
    seed: int = 0,
    patients: str | Iterable[str] | None = None,
) -> Any:
    """Return a `tf.data.Dataset` of batches (inputs, targets), float32, shape (batch, p, p, 1).

    Parameters
    ----------
    file : path
        Of either tensor format.
    batch : int
        Patches a batch; the last one may have fewer.
    shuffle : bool
        Whether all patches come in another order in every epoch.
    seed : int
        Of the order.
    patients : str or iterable of str, optional
        Names of the patients whose patches are taken; by default all.

    Raises
    ------
    OSError, ValueError
        As `PatchDataset`.
    """
    tf: Any = importlib.import_module("tensorflow")
    patches = PatchDataset(file, patients)

    def read(indices: NDArray[np.int64]) -> tuple[Images, ...]:
        return tuple(one[..., None] for one in patches.read(indices))

    def read_in_graph(indices: Any) -> tuple[Any, ...]:
        both = tf.numpy_function(read, [indices], (tf.float32, tf.float32))
        return tuple(
            tf.ensure_shape(one, (None, patches.patch_size, patches.patch_size, 1)) for one in both
        )

    # Numbers are shuffled, not patches: all of them fit into the buffer, so the order is a true
    # one, and reading runs in several threads (preadv lets go of the interpreter's lock).
    order = tf.data.Dataset.range(len(patches))
    if shuffle:
        order = order.shuffle(len(patches), seed=seed, reshuffle_each_iteration=True)
    batches = order.batch(batch).map(read_in_graph, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def keras_sequence(
    file: str | os.PathLike[str],
    batch: int = 64,
    shuffle: bool = True,
    seed: int = 0,
    patients: str | Iterable[str] | None = None,
    augment: bool = False,
    **options: Any,
) -> Any:
    """Return a `keras.utils.PyDataset` (Keras 3, any backend) of batches for `model.fit`.

    Parameters
    ----------
    file, batch, shuffle, seed, patients
        As in `tf_dataset`; batches are the same, as NumPy arrays.
    augment : bool
        Whether input and target are turned or mirrored alike, at random, anew in every epoch.
    **options
        Of `PyDataset`, such as ``workers=2``: threads that read ahead.

    Raises
    ------
    OSError, ValueError
        As `PatchDataset`.
    """
    keras: Any = importlib.import_module("keras")
    patches = PatchDataset(file, patients, augment=augment, seed=seed)

    class Patches(keras.utils.PyDataset):  # type: ignore[misc]
        """Batches of patches in an order of each epoch's own."""

        def __init__(self) -> None:
            super().__init__(**options)
            self.epoch = 0
            self.order = self.draw()

        def draw(self) -> NDArray[np.int64]:
            if not shuffle:
                return np.arange(len(patches))
            return np.random.default_rng([seed, self.epoch]).permutation(len(patches))

        def __len__(self) -> int:
            return math.ceil(len(patches) / batch)

        def __getitem__(self, index: int) -> tuple[Images, ...]:
            chosen = self.order[index * batch : (index + 1) * batch]
            return tuple(one[..., None] for one in patches.read(chosen))

        def on_epoch_end(self) -> None:
            self.epoch += 1
            patches.set_epoch(self.epoch)
            self.order = self.draw()

    return Patches()
