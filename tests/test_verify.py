"""Checksums: whatever single bit of a finished file is turned over, `--verify` says so."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

import h5_read
from tests.editing import flip
from tests.running import called, serial
from tests.scans import write_tree

BULK = ["input", "target", *(f"patch/{name}" for name in h5_read.PATCH_COLUMNS)]


@dataclass(frozen=True)
class Whole:
    """A finished file, and where its parts lie."""

    path: Path
    size: int
    extents: dict[str, tuple[int, int]]
    names: list[str]
    first: list[int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a small file made with every augmentation; read only."""
    folder = tmp_path_factory.mktemp("whole")
    write_tree(folder / "scans", {"A": 3, "B": 2})
    options = ["--input-folder", "scans", "--patch-size", "p24", "--output-fname", "out.h5"]
    options += ["--rot_augment", "--blurr_n_noise", "--normalization-type", "std_wrt_ld"]
    assert called(folder, *options, "--no-report").status == 0
    path = folder / "out.h5"
    extents: dict[str, tuple[int, int]] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and item.size:
            start = item.id.get_offset()
            extents[name] = (start, start + item.id.get_storage_size())

    with h5py.File(path) as file:
        file.visititems(note)
        names = [name.decode() for name in file["pair/input_file"]]
        first = [*file["pair/first_patch"][...].tolist(), len(file["input"])]
    return Whole(path, path.stat().st_size, extents, names, first)


@pytest.fixture
def copy(whole: Whole, tmp_path: Path) -> Path:
    """Return a copy of that file, to be damaged."""
    return Path(shutil.copyfile(whole.path, tmp_path / "copy.h5"))


def owner(whole: Whole, offset: int) -> str:
    """Return the input file of the pair whose block a byte belongs to; '' for any other byte."""
    for name in BULK:
        start, stop = whole.extents[name]
        if start <= offset < stop:
            patch = (offset - start) * whole.first[-1] // (stop - start)
            pair = int(np.searchsorted(whole.first, patch, side="right")) - 1
            return whole.names[pair]
    return ""


def is_named(whole: Whole, damages: list[str], offset: int) -> bool:
    """Tell whether the damage of one byte is reported where it is, and nowhere else."""
    name = owner(whole, offset)
    return len(damages) == 1 and (name in damages[0] if name else "pair 0" not in damages[0])


def test_a_whole_file_has_no_damage(whole):
    assert h5_read.verify(str(whole.path)) == []


@pytest.mark.parametrize("draw", range(60))
def test_one_bit_anywhere_is_named(whole, copy, draw):
    rng = np.random.default_rng([3, draw])
    offset, bit = int(rng.integers(whole.size)), int(rng.integers(8))
    flip(copy, offset, bit)
    damages = h5_read.verify(str(copy))
    assert is_named(whole, damages, offset), (offset, bit, damages)


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("at", ["first", "last"])
def test_one_bit_of_every_dataset_is_named(whole, copy, at, bit):
    damages = {}
    for name, (start, stop) in whole.extents.items():
        offset = start if at == "first" else stop - 1
        flip(copy, offset, bit)
        damages[name] = h5_read.verify(str(copy))
        flip(copy, offset, bit)
        if name in BULK:
            assert is_named(whole, damages[name], offset), damages[name]
    assert {*BULK, "checksum", "pair/checksum", "pair/first_patch"} <= set(damages)
    assert [name for name, found in damages.items() if not found] == []


@pytest.mark.parametrize("pair", range(5))
@pytest.mark.parametrize("name", BULK)
def test_damage_of_a_block_names_its_pair_and_its_patches(whole, copy, name, pair):
    start, stop = whole.extents[name]
    a_patch = (stop - start) // whole.first[-1]
    first, after = whole.first[pair : pair + 2]
    for offset in (start + first * a_patch, start + after * a_patch - 1):
        flip(copy, offset, 4)
        (damage,) = h5_read.verify(str(copy))
        flip(copy, offset, 4)
        assert whole.names[pair] in damage
        assert [int(n) for n in re.findall(r"\d+", damage.partition("patches")[2])] == [
            first,
            after - 1,
        ]


def test_every_damaged_pair_is_named(whole, copy):
    start, stop = whole.extents["target"]
    a_patch = (stop - start) // whole.first[-1]
    for pair in (0, 2, 4):
        flip(copy, start + whole.first[pair] * a_patch)
    damages = h5_read.verify(str(copy))
    assert [name for line in damages for name in whole.names if name in line] == [
        whole.names[i] for i in (0, 2, 4)
    ]


#: Names and places of what h5py looks up, as they stand in the bytes: damaged, they lead elsewhere.
@pytest.mark.parametrize("word", [b"checksum", b"input_file", b"patches", b"patch", b"complete"])
@pytest.mark.parametrize("bit", range(7))
def test_a_damaged_name_in_the_header_is_reported_and_nothing_is_raised(whole, copy, word, bit):
    content = whole.path.read_bytes()
    places = [match.start() for match in re.finditer(word, content)]
    assert places
    for offset in places:
        flip(copy, offset, bit)
        assert h5_read.verify(str(copy)), offset
        flip(copy, offset, bit)


@pytest.mark.parametrize("value", [b"\0", b"\xff"])
def test_a_gap_between_datasets_that_is_written_on_is_named(whole, copy, value):
    taken = np.zeros(whole.size, bool)
    for start, stop in whole.extents.values():
        taken[start:stop] = True
    content = np.frombuffer(whole.path.read_bytes(), np.uint8)
    gaps = np.flatnonzero(~taken & (content != value[0]))
    offset = int(gaps[-1])
    with open(copy, "r+b") as file:
        file.seek(offset)
        file.write(value)
    assert len(h5_read.verify(str(copy))) == 1


# --- files that are not whole ----------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 100, 4096, 0.5, 0.99])
def test_a_truncated_file_is_named(whole, copy, lost):
    os.truncate(copy, int(whole.size * (1 - lost)) if lost < 1 else whole.size - int(lost))
    assert h5_read.verify(str(copy))


def test_an_empty_file_is_named(copy):
    os.truncate(copy, 0)
    assert h5_read.verify(str(copy))


def test_bytes_after_the_end_are_named(copy):
    with open(copy, "ab") as file:
        file.write(b"\0")
    assert len(h5_read.verify(str(copy))) == 1


def test_two_patches_that_changed_places_are_named(whole, copy):
    with h5py.File(copy, "r+") as file:
        file["input"][[0, 1]] = file["input"][[0, 1]][::-1]
    assert any(whole.names[0] in line for line in h5_read.verify(str(copy)))


def test_a_file_that_is_not_complete_is_named(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs.modify("complete", np.uint8(0))
    assert "not complete" in h5_read.verify(str(copy))[0]


def test_an_h5_file_of_another_tool_is_named(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["input"] = np.zeros(3)
    assert "no file of this tool" in h5_read.verify(str(tmp_path / "other.h5"))[0]


# --- the command line ------------------------------------------------------------------------


def test_the_command_ends_with_0_for_a_whole_file_and_writes_nothing(whole):
    before = whole.path.read_bytes()
    ended = serial(whole.path.parent, "--verify", "out.h5")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("out.h5: ")
    assert whole.path.read_bytes() == before


def test_the_command_names_every_bad_file_and_ends_with_1(whole, copy):
    flip(copy, whole.extents["input"][0])
    foreign = copy.with_name("text.h5")
    foreign.write_text("no h5 file")
    ended = called(copy.parent, "--verify", foreign, copy, whole.path, "missing.h5")
    assert ended.status == 1
    lines = ended.err.splitlines()
    assert len(lines) == len(ended.errors) == 3
    for line, said in zip(lines, ("text.h5", whole.names[0], "missing.h5"), strict=True):
        assert said in line
    assert ended.out.startswith(str(whole.path))


def test_the_command_reports_damage_in_a_table_without_a_traceback(whole, copy):
    flip(copy, whole.extents["pair/first_patch"][0] + 7, 7)
    ended = called(copy.parent, "--verify", copy)
    assert ended.status == 1
    assert ended.errors == ended.err.splitlines() != []


def test_a_folder_is_no_file_to_verify(tmp_path):
    ended = called(tmp_path, "--verify", tmp_path)
    assert ended.status == 1
    assert len(ended.errors) == 1
