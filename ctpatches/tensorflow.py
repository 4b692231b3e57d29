"""Data sets for TensorFlow and for Keras, which is used with any backend."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.orientations import Images
from ctpatches.reader import PatchReader, patient_names
from ctpatches.validation import PathLike

__all__ = ["keras_sequence", "patient_names", "tf_dataset"]


def tf_dataset(
    file: PathLike,
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
        Patches per batch; the last one may have fewer.
    shuffle : bool
        Whether the order of all patches is drawn again in every epoch.
    seed : int
        Seed for the order.
    patients : str or iterable of str, optional
        Names of the patients whose patches are read; by default all.

    Raises
    ------
    OSError, ValueError
        As `PatchReader`.
    """
    tf: Any = importlib.import_module("tensorflow")
    patches = PatchReader(file, patients)

    def read(indices: NDArray[np.int64]) -> tuple[Images, ...]:
        return tuple(images[..., None] for images in patches.read(indices))

    def read_in_graph(indices: Any) -> tuple[Any, ...]:
        shape = (None, patches.patch_size, patches.patch_size, 1)
        both = tf.numpy_function(read, [indices], (tf.float32, tf.float32))
        return tuple(tf.ensure_shape(images, shape) for images in both)

    # Indices are shuffled, not patches: all of them fit into the buffer, so that the order is
    # uniformly random, and several threads read (`preadv` releases the interpreter's lock).
    order = tf.data.Dataset.range(len(patches))
    if shuffle:
        order = order.shuffle(len(patches), seed=seed, reshuffle_each_iteration=True)
    batches = order.batch(batch).map(read_in_graph, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def keras_sequence(
    file: PathLike,
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
        Whether input and target are rotated or flipped alike, at random, anew in every epoch.
    **options
        Of `PyDataset`, such as ``workers=2``: threads that read ahead.

    Raises
    ------
    OSError, ValueError
        As `PatchReader`.
    """
    keras: Any = importlib.import_module("keras")
    patches = PatchReader(file, patients, augment=augment, seed=seed)

    class Patches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(**options)
            self.start(0)

        def start(self, epoch: int) -> None:
            self.epoch = epoch
            patches.set_epoch(epoch)
            self.order = np.arange(len(patches))
            if shuffle:
                self.order = np.random.default_rng([seed, epoch]).permutation(self.order)

        def __len__(self) -> int:
            return math.ceil(len(patches) / batch)

        def __getitem__(self, index: int) -> tuple[Images, ...]:
            chosen = self.order[index * batch : (index + 1) * batch]
            return tuple(images[..., None] for images in patches.read(chosen))

        def on_epoch_end(self) -> None:
            self.start(self.epoch + 1)

    return Patches()
