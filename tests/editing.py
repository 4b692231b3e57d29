"""Changing files on the disk: header fields of DICOM files, single bits of any file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pydicom


def edit(path: Path, **tags: object) -> Path:
    """Set header fields of a DICOM file; None removes one."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    dataset.save_as(path)
    return path


def swap(tag: str, one: Path, other: Path) -> None:
    """Exchange a header field of two DICOM files."""
    values = [getattr(pydicom.dcmread(path), tag) for path in (one, other)]
    edit(one, **{tag: values[1]})
    edit(other, **{tag: values[0]})


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn over one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def patch_set(*files: Path) -> list[bytes]:
    """Return the bytes of every pair of patches of some h5 files, in an order of their own."""
    out = []
    for path in files:
        with h5py.File(path) as file:
            both = np.stack([file[name][...] for name in ("input", "target")], axis=1)
        out += [one.tobytes() for one in both]
    return sorted(out)
