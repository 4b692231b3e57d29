"""Data sets for TensorFlow and for Keras, which is used with any backend."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ctpatches.orientations import Images
from ctpatches.reader import Orientations, PatchReader, Patients, Scales, Transform, patient_names
from ctpatches.structure import PathLike

__all__ = ["keras_sequence", "patient_names", "tf_dataset"]


class Choice(TypedDict, total=False):
    """Parameters of `PatchReader` that are passed on as they are."""

    scales: Scales
    orientations: Orientations
    unit: str
    dtype: str


def tf_dataset(
    file: PathLike,
    batch: int = 64,
    shuffle: bool = True,
    seed: int = 0,
    patients: Patients = None,
    *,
    augment: bool = False,
    transform: Transform | None = None,
    **choice: Unpack[Choice],
) -> Any:
    """Return a `tf.data.Dataset` of batches (inputs, targets), shape (batch, p, p, 1).

    Parameters
    ----------
    file : path
        Of either tensor format.
    batch : int
        Patches per batch; the last one may have fewer.
    shuffle : bool
        Whether the order of all patches is drawn again in every epoch.
    seed : int
        Seed for the order and the orientations; they depend on the epoch as well.
    patients, scales, orientations, unit, dtype, augment
        As in `PatchReader`. Every pass over the data set is an epoch.
    transform : callable, optional
        Called once, in the graph, with the tensors of a batch, and returns both.

    Raises
    ------
    OSError, ValueError
        As `PatchReader`.
    """
    tf: Any = importlib.import_module("tensorflow")
    patches = PatchReader(file, patients, augment=augment, seed=seed, provenance=False, **choice)
    epochs = itertools.count()

    def orders() -> Iterator[tuple[NDArray[np.int64], int]]:
        epoch = next(epochs)
        order = _order(patches, shuffle, epoch)
        for first in range(0, len(order), batch):
            yield order[first : first + batch], epoch

    def read(chosen: NDArray[np.int64], epoch: NDArray[np.int64]) -> tuple[Images, ...]:
        return tuple(images[..., None] for images in patches.samples(chosen, int(epoch)))

    def read_in_graph(chosen: Any, epoch: Any) -> tuple[Any, ...]:
        shape = (None, patches.patch_size, patches.patch_size, 1)
        both = tf.numpy_function(read, [chosen, epoch], [tf.as_dtype(patches.dtype)] * 2)
        return tuple(tf.ensure_shape(images, shape) for images in both)

    # Several threads read: `preadv` releases the interpreter's lock.
    signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((), tf.int64)
    data = tf.data.Dataset.from_generator(orders, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(math.ceil(len(patches) / batch)))
    for step in (read_in_graph, transform):
        data = data if step is None else data.map(step, num_parallel_calls=tf.data.AUTOTUNE)
    return data.prefetch(tf.data.AUTOTUNE)


def keras_sequence(
    file: PathLike,
    batch: int = 64,
    shuffle: bool = True,
    seed: int = 0,
    patients: Patients = None,
    augment: bool = False,
    *,
    transform: Transform | None = None,
    workers: int = 1,
    use_multiprocessing: bool = False,
    max_queue_size: int = 10,
    **choice: Unpack[Choice],
) -> Any:
    """Return a `keras.utils.PyDataset` (Keras 3, any backend) of batches for `model.fit`.

    Parameters
    ----------
    file, batch, shuffle, seed, patients, augment, scales, orientations, unit, dtype
        As in `tf_dataset`; batches are the same, as NumPy arrays.
    transform : callable, optional
        Called with the arrays of each batch, and returns both.
    workers, use_multiprocessing, max_queue_size
        As in `PyDataset`; ``workers=2`` are two threads that read ahead.

    Raises
    ------
    OSError, ValueError
        As `PatchReader`.
    """
    keras: Any = importlib.import_module("keras")
    patches = PatchReader(
        file, patients, transform=transform, augment=augment, seed=seed, provenance=False, **choice
    )

    class Patches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(workers, use_multiprocessing, max_queue_size)
            self.start(0)

        def start(self, epoch: int) -> None:
            self.epoch, self.order = epoch, _order(patches, shuffle, epoch)

        def __repr__(self) -> str:
            return f"<{len(self)} batches of up to {batch} patches of {patches!r}>"

        def __len__(self) -> int:
            return math.ceil(len(patches) / batch)

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            chosen = self.order[index * batch : (index + 1) * batch]
            both = tuple(images[..., None] for images in patches.samples(chosen, self.epoch))
            return both if transform is None else transform(*both)

        def on_epoch_end(self) -> None:
            self.start(self.epoch + 1)

    return Patches()


def _order(patches: PatchReader, shuffle: bool, epoch: int) -> NDArray[np.int64]:
    """Return the indices of all patches in the order of an epoch."""
    if not shuffle:
        return np.arange(len(patches))
    return np.random.default_rng([patches.seed % 2**64, epoch]).permutation(len(patches))
