"""What the tests share: a small tree of made-up scans, and the real ones where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.running import REPO
from tests.scans import Made, write_tree

# The same examples on every machine, and no judging by the clock.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@dataclass(frozen=True)
class Tree:
    """An input folder and the pairs that it holds, in the order of the file."""

    root: Path
    pairs: list[Made]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Ten pairs of three patients; read only."""
    root = tmp_path_factory.mktemp("tree") / "scans"
    return Tree(root, write_tree(root))


@pytest.fixture(scope="session")
def ldct() -> Path:
    """Return the folder of real scans, eight pairs of two patients; no part of the project."""
    folder = REPO.parent / "shared" / "data" / "ldct"
    if not folder.is_dir():
        pytest.skip("the real scans are not on this machine")
    return folder
