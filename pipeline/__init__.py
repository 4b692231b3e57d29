"""Creates data sets: from patient folders to one h5 file of patches, and its report.

>>> from pipeline import Config, make_patches
>>> summary = make_patches(Config("raw_data", "results/patches.h5"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.run import make_patches
    from pipeline.summary import Summary

__all__ = ["Config", "Summary", "make_patches"]

_MODULES = {"Config": "config", "Summary": "summary", "make_patches": "run"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `--help` loads no numpy."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
