"""Patches of a file that is not open, and where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctpatches.file import PatchFile, Provenance


def read_patches(path: Path, patches: Any) -> Any:
    """Return input and target of some patches."""
    with PatchFile(path) as file:
        return file.read(patches)


def provenance(path: Path, patch: int) -> Provenance:
    """Return where a patch came from."""
    with PatchFile(path) as file:
        return file.provenance(patch)
