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

from ctpatches.checksums import verify
from ctpatches.schema import PATCH_COLUMNS
from tests.editing import add_digests, edit, flip, sign, to_version
from tests.running import Ended, called, serial
from tests.scans import Made, write_slice, write_tree

BULK = ["input", "target", *(f"patch/{name}" for name in PATCH_COLUMNS)]


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
    assert verify(str(whole.path)) == []


@pytest.mark.parametrize("draw", range(60))
def test_one_bit_anywhere_is_named(whole, copy, draw):
    rng = np.random.default_rng([3, draw])
    offset, bit = int(rng.integers(whole.size)), int(rng.integers(8))
    flip(copy, offset, bit)
    damages = verify(str(copy))
    assert is_named(whole, damages, offset), (offset, bit, damages)


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("at", ["first", "last"])
def test_one_bit_of_every_dataset_is_named(whole, copy, at, bit):
    damages = {}
    for name, (start, stop) in whole.extents.items():
        offset = start if at == "first" else stop - 1
        flip(copy, offset, bit)
        damages[name] = verify(str(copy))
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
        (damage,) = verify(str(copy))
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
    damages = verify(str(copy))
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
        assert verify(str(copy)), offset
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
    assert len(verify(str(copy))) == 1


# --- files that are not whole ----------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 100, 4096, 0.5, 0.99])
def test_a_truncated_file_is_named(whole, copy, lost):
    os.truncate(copy, int(whole.size * (1 - lost)) if lost < 1 else whole.size - int(lost))
    assert verify(str(copy))


def test_an_empty_file_is_named(copy):
    os.truncate(copy, 0)
    assert verify(str(copy))


def test_bytes_after_the_end_are_named(copy):
    with open(copy, "ab") as file:
        file.write(b"\0")
    assert len(verify(str(copy))) == 1


def test_two_patches_that_changed_places_are_named(whole, copy):
    with h5py.File(copy, "r+") as file:
        file["input"][[0, 1]] = file["input"][[0, 1]][::-1]
    assert any(whole.names[0] in line for line in verify(str(copy)))


def test_a_file_that_is_not_complete_is_named(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs.modify("complete", np.uint8(0))
    assert "not complete" in verify(str(copy))[0]


def test_an_h5_file_of_another_tool_is_named(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["input"] = np.zeros(3)
    assert "not a file of ctpatches" in verify(str(tmp_path / "other.h5"))[0]


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


# --- was it made from these scans? -----------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """An input folder, the pairs in it, and a file that was made from them."""

    root: Path
    made: list[Made]
    file: Path

    def verify(self, *files: Path) -> Ended:
        """Verify the file, or others, against the scans."""
        return called(self.root, "--verify", *(files or [self.file]), "--input-folder", self.root)


def make_job(folder: Path, *options: str) -> Job:
    made = write_tree(folder / "scans", {"A": 2, "B": 1}, slope=0.5, intercept=-1000)
    where = ("--input-folder", folder / "scans", "--output-fname", folder / "out.h5")
    ended = called(folder, *where, "--patch-size", "p24", "--no-report", *options)
    assert ended.status == 0, ended.err
    hu = [(0.5 * pair.input - 1000, 0.5 * pair.target - 1000) for pair in made]
    return Job(folder / "scans", made, add_digests(folder / "out.h5", hu))


@pytest.fixture(params=["named", "anonymised"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """Make a file with the names of its slices, or with pseudonyms."""
    return make_job(tmp_path, *(["--anonymize"] if request.param == "anonymised" else []))


def test_a_file_is_made_from_its_scans(job):
    write_slice(job.root / "A" / "full_3mm" / "new.dcm", job.made[0].target + 1)
    (job.root / "notes.txt").write_text("no slice")
    (job.root / "A" / "loop").symlink_to(job.root)
    ended = job.verify()
    assert (ended.status, ended.err) == (0, "")
    said = f"undamaged; made from the scans in '{job.root}' (3 pairs)"
    assert ended.out == f"{job.file}: {said}\n"


def test_headers_that_are_no_pixels_do_not_matter(job):
    for made in job.made:
        edit(job.root / made.input_file, PatientName="Other", RescaleIntercept="-1000.0")
    assert job.verify().status == 0


def change_slices(job: Job) -> None:
    """Change the HU of two slices: a stored value of one, the intercept of the other."""
    made = job.made[1]
    other = made.input.copy()
    other[0, 0] ^= 1
    write_slice(job.root / made.input_file, other, slope=0.5, intercept=-1000)
    edit(job.root / job.made[2].target_file, RescaleIntercept=-1001)


def test_slices_that_differ_are_counted_and_the_first_is_named(job):
    change_slices(job)
    ended = job.verify()
    first = f"have other pixels, the first: '{job.made[1].input_file}'"
    if b"in_0001" in job.file.read_bytes():
        first = "are not among them, the first: the input of pair 1"
    reason = f"not made from the scans in '{job.root}': 2 of 6 slices {first}"
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"main.py: error: '{job.file}': {reason}\n"


def test_slices_that_are_missing_or_damaged_are_counted(tmp_path):
    job = make_job(tmp_path)
    (job.root / job.made[0].target_file).unlink()
    (job.root / job.made[1].target_file).write_bytes(b"no slice")
    (error,) = job.verify().errors
    first = f"{job.made[0].target_file}: cannot be read: No such file or directory"
    assert error.endswith(f"': 2 of 6 slices cannot be read, the first: {first}")
    change_slices(job)
    (error,) = job.verify().errors
    first = f"the first: '{job.made[1].input_file}'"
    assert f"': 2 of 6 slices have other pixels, {first}; 2 of 6 slices cannot be read" in error


def test_other_scans_of_the_same_names_are_told_apart(tmp_path):
    job = make_job(tmp_path)
    write_tree(tmp_path / "other", {"A": 2, "B": 1}, seed=7, slope=0.5, intercept=-1000)
    ended = called(tmp_path, "--verify", job.file, "--input-folder", tmp_path / "other")
    assert ended.status == 1
    assert "6 of 6 slices have other pixels" in ended.err


def test_a_file_of_version_1_holds_no_digests(tmp_path):
    job = make_job(tmp_path)
    ended = job.verify(to_version(job.file, 1))
    assert ended.status == 1
    reason = "holds no digests of its scans (format version 1)"
    assert ended.err == f"main.py: error: '{job.file}': {reason}\n"


@pytest.mark.parametrize("name", ["../scans/A/x.dcm", "/etc/passwd", "A/../../x", ".."])
def test_a_stored_name_that_leads_out_of_the_folder_is_not_followed(name, tmp_path):
    job = make_job(tmp_path)
    with h5py.File(job.file, "r+") as file:
        file["pair/target_file"][0] = name.encode()
    (error,) = job.verify(sign(job.file)).errors
    assert f"names the slice '{name}'; expected: a path below an input folder" in error


def test_a_damaged_file_is_not_compared(tmp_path):
    job = make_job(tmp_path)
    with h5py.File(job.file) as file:
        start = file["input"].id.get_offset()
    flip(job.file, start)
    change_slices(job)
    (error,) = job.verify().errors
    assert error.endswith("is damaged")


def test_a_folder_that_is_not_there_is_an_invalid_call(tmp_path):
    ended = called(tmp_path, "--verify", "out.h5", "--input-folder", tmp_path / "none")
    assert (ended.status, len(ended.errors)) == (2, 1)
    assert ended.errors[0].endswith("/none' is not a folder; expected: that of the scans")
