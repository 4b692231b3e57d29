"""Changing files on the disk: header fields of DICOM files, single bits of any file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import xxhash

from ctpatches.checksums import rest_digest
from ctpatches.schema import COPY, REST, SCHEMA, bulk_names


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


def to_version(path: Path, version: int) -> Path:
    """Make a file one of an earlier format version, without what that did not have."""
    with h5py.File(path, "r+") as file:
        for name, field in SCHEMA.items():
            if field.since > version and name in file:
                del file[name]
        for name in [name for name in file.attrs if name.endswith(COPY)]:
            file.attrs[name.removesuffix(COPY)] = file.attrs[name]
            del file.attrs[name]
        file.attrs.modify("format_version", np.uint32(version))
    return sign(path)


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


def add_digests(path: Path, images_hu: Sequence[tuple[Any, Any]]) -> Path:
    """Make a file of format version 1 one of version 2; a file of version 2 stays as it is.

    Parameters
    ----------
    images_hu : sequence of tuple of ndarray
        Input and target of every pair, HU.
    """
    with h5py.File(path, "r+") as file:
        if file.attrs["format_version"] >= 2:
            return path
        file.attrs.modify("format_version", np.uint32(2))
        for side, images in zip(("input", "target"), zip(*images_hu, strict=True), strict=True):
            raw = (np.asarray(image, "<f4").tobytes() for image in images)
            digests = [xxhash.xxh3_64_intdigest(data) for data in raw]
            file[f"pair/{side}_digest"] = np.array(digests, "<u8")
    return sign(path)


def sign(path: Path) -> Path:
    """Give an h5 file that was edited the checksum of what its header and its tables hold now."""
    with h5py.File(path, "r+") as file:
        apart = []
        for name in (*bulk_names("views" if "views" in file else "patches"), REST):
            start = file[name].id.get_offset()
            apart.append((start, start + file[name].id.get_storage_size()))
    with open(path, "r+b") as raw:
        digest = rest_digest(raw.fileno(), path.stat().st_size, apart)
        raw.seek(apart[-1][0])
        raw.write(digest)
    return path


def patch_set(*files: Path) -> list[bytes]:
    """Return the bytes of every pair of patches of some h5 files, in an order of their own."""
    out = []
    for path in files:
        with h5py.File(path) as file:
            both = np.stack([file[name][...] for name in ("input", "target")], axis=1)
        out += [one.tobytes() for one in both]
    return sorted(out)
