"""Reads data sets: patches, their provenance and their HU, for training and for checking."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctpatches.conversion import convert
    from ctpatches.file import PatchFile
    from ctpatches.stitching import stitch

__all__ = ["PatchFile", "convert", "stitch"]
__version__ = "0.1.0"

_MODULES = {"PatchFile": "file", "convert": "conversion", "stitch": "stitching"}


def __getattr__(name: str) -> Any:
    # On first use: modules that need neither NumPy nor h5py can be imported where these cannot.
    if name in _MODULES:
        return getattr(importlib.import_module(f"ctpatches.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
