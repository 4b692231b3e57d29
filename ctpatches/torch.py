"""A dataset for PyTorch."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.utils.data import Dataset

from ctpatches.file import Patches
from ctpatches.reader import PatchReader, patient_names

__all__ = ["PatchDataset", "patient_names"]


class PatchDataset(PatchReader, Dataset):  # type: ignore[misc]
    """The patches of a file as a map-style dataset for `torch.utils.data.DataLoader`.

    Parameters and attributes are those of `PatchReader`.

    Examples
    --------
    >>> dataset = PatchDataset("train.h5", augment=True)  # doctest: +SKIP
    >>> loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2)  # doctest: +SKIP
    """

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return input and target, tensors of shape (1, p, p), and maybe provenance."""
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Patches) -> list[tuple[Any, ...]]:
        """Return samples as `__getitem__` does; torch calls this once for each batch."""
        low, full, *others = self.samples(indices)
        tensors = [torch.from_numpy(images[:, None]) for images in (low, full)]
        samples = list(zip(*tensors, *others, strict=True))
        if self.transform is not None:
            for at, (one_low, one_full, *rest) in enumerate(samples):
                changed_low, changed_full = self.transform(one_low, one_full)
                samples[at] = (changed_low, changed_full, *rest)
        return samples
