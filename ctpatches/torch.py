"""A data set for PyTorch."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.utils.data import Dataset

from ctpatches.reader import Indices, PatchReader, patient_names

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
        """Return input and target, float32 tensors of shape (1, p, p), and maybe the provenance.

        Raises
        ------
        IndexError
            There is no such patch.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Indices) -> list[tuple[Any, ...]]:
        """Return samples as `__getitem__` does; torch calls this once for each batch."""
        rows = self.rows(indices)
        codes = self._codes(rows)
        parts: list[Any] = [torch.from_numpy(one[:, None]) for one in self._images(rows, codes)]
        if self.provenance:
            parts.append(self._provenance(rows, codes))
        return list(zip(*parts, strict=True))
