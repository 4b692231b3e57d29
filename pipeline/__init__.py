"""Creates data sets: from patient folders to one h5 file of patches, and its report.

>>> from pipeline import Config, make_patches
>>> summary = make_patches(Config("raw_data", "results/patches.h5"))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.run import Summary, make_patches

__all__ = ["Config", "Summary", "make_patches"]


def __getattr__(name: str) -> object:
    """Import the public names at their first use: the command line answers --help without numpy."""
    if name == "Config":
        from pipeline.config import Config

        return Config
    if name in __all__:
        from pipeline import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
