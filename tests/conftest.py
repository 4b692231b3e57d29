"""What the tests share: a small tree of made-up scans, and the real ones where they are."""

from __future__ import annotations

import gc
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.faults import EARLIER, argv
from tests.running import REPO, called
from tests.scans import Made, write_tree

# The same examples on every machine, and no judging by the clock.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# A process of the tests holds all of them and many packages: looking for garbage among these takes
# a tenth of its time, at Python's usual thresholds of 700, 10 and 10.
gc.set_threshold(20_000, 20, 20)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts its background that way, and runs would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output that exists, in a folder of its own."""
    path = tmp_path / "out" / "mine.h5"
    path.parent.mkdir()
    path.write_bytes(EARLIER)
    return path


@pytest.fixture(scope="module")
def whole(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of the unbroken serial run on the tree."""
    folder = tmp_path_factory.mktemp("whole")
    ended = called(folder, *argv(tree.root, folder / "mine.h5"))
    assert ended.status == 0, ended.err
    return (folder / "mine.h5").read_bytes()
