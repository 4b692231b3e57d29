"""The real scans: known counts of patches, and every pixel where the file says it is from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import patching
from tests import naive, provenance
from tests.running import REPO, called, ranks

P55 = "--patch-size p55 --rot_augment --ds_augment --air_threshold"


def options(ldct: Path, file: Path, how: str) -> list[str]:
    return ["--input-folder", str(ldct), "--output-fname", str(file), "--no-report", *how.split()]


def patches(file: Path) -> int:
    with h5py.File(file) as opened:
        return len(opened["input"])


@pytest.fixture
def made(ldct: Path, tmp_path: Path) -> Iterator[Path]:
    """Return where a test may put a file of some hundred MB; it goes when the test ends."""
    yield tmp_path / "out.h5"
    (tmp_path / "out.h5").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def p55(ldct: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Make the files of the main job with both edges."""
    folder = tmp_path_factory.mktemp("ldct")
    files = {edge: folder / f"{edge}.h5" for edge in ("shift", "pad")}
    for edge, file in files.items():
        ended = called(folder, *options(ldct, file, f"{P55} --edge {edge}"))
        assert (ended.status, ended.err) == (0, "")
    yield files
    for file in files.values():
        file.unlink()


EDGES = ["shift", "pad"]


@pytest.mark.parametrize(("edge", "expected"), [("shift", 3 * 1678), ("pad", 3 * 1552)])
def test_the_main_job_makes_exactly_so_many_patches(p55, edge, expected):
    assert patches(p55[edge]) == expected


@pytest.mark.parametrize("edge", EDGES)
def test_every_patch_turned_back_is_the_pixels_of_its_slice(p55, ldct, edge):
    assert provenance.wrong_patches(p55[edge], ldct) == []


@pytest.mark.parametrize("edge", EDGES)
def test_the_windows_are_those_of_the_naive_reference(p55, ldct, edge):
    with h5py.File(p55[edge]) as file:
        names = [file[f"pair/{side}_file"][...] for side in ("input", "target")]
    pairs = [(ldct / low.decode(), ldct / full.decode()) for low, full in zip(*names, strict=True)]
    expected = provenance.expected_windows(
        pairs, size=55, overlap=8, edge=edge, scales=(1.0, 0.8, 0.6), air_threshold=True
    )
    found = provenance.windows(p55[edge])
    assert list(found) == list(expected)
    assert {codes[0] for codes in found.values()} == {0}
    assert {codes[1] for codes in found.values()} == {1, 2, 3}
    assert {codes[2] for codes in found.values()} == {4, 5}


@pytest.mark.parametrize(
    ("folder", "edge", "expected"),
    [("ldct", "shift", 1419), ("ldct", "pad", 1406), ("raw", "shift", 1533), ("raw", "pad", 1529)],
)
def test_the_body_rule_keeps_all_windows_with_more_than_a_tenth_of_body(
    ldct, made, folder, edge, expected
):
    root = ldct if folder == "ldct" else REPO / "raw_data"
    how = f"--ds_augment --air_threshold --air-rule body --edge {edge}"
    assert called(made.parent, *options(root, made, how)).status == 0
    with h5py.File(made) as file:
        names = [name.decode() for name in file["pair/target_file"][...]]
    with_body = set()
    for index, name in enumerate(names):
        mask = patching.body_mask(provenance.stored_pixels(root / name) - 1024).astype(np.float32)
        for scale in (1.0, 0.8, 0.6):
            view = naive.downscale(mask, scale) >= 0.5
            starts = naive.starts(len(view), 55, 8, edge)
            view = np.pad(view, (0, 55))
            with_body |= {
                (index, scale, row, col)
                for row in starts
                for col in starts
                if view[row : row + 55, col : col + 55].mean() > 0.1
            }
    assert with_body == provenance.windows(made).keys()
    assert len(with_body) == expected


def test_the_pairs_are_those_of_equal_names(p55):
    # In these folders, and only by luck, the two slices of a pair have one name.
    with h5py.File(p55["shift"]) as file:
        names = [
            [Path(name.decode()).name for name in file[f"pair/{side}_file"][...]]
            for side in ("input", "target")
        ]
        assert file["pair/patient"][...].tolist() == [b"L096"] * 4 + [b"L143"] * 4
    assert names[0] == names[1]


@pytest.mark.parametrize("edge", EDGES)
def test_without_the_air_threshold_there_are_6024(ldct, made, edge):
    how = f"--patch-size p55 --rot_augment --ds_augment --edge {edge}"
    assert called(made.parent, *options(ldct, made, how)).status == 0
    assert patches(made) == 6024


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("p96", 568),
        ("p75", 977),
        ("p64", 1114),
        ("p42", 2883),
        ("p32", 4295),
        ("p24", 7900),
        ("p12", 43067),
    ],
)
def test_other_sizes_make_exactly_so_many_patches(ldct, made, size, expected):
    how = f"--patch-size {size} --ds_augment --air_threshold"
    assert called(made.parent, *options(ldct, made, how)).status == 0
    assert patches(made) == expected


@pytest.mark.parametrize("extra", ["", "--hand_over messages"], ids=["written", "sent"])
def test_three_ranks_make_the_bytes_of_the_serial_run(ldct, p55, made, extra):
    ended = ranks(3, made.parent, *options(ldct, made, f"{P55} --mpi_run {extra}"))
    assert (ended.status, ended.err) == (0, "")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (made, p55["shift"])]
    assert digests[0] == digests[1]


def test_unaugmented_patches_cover_every_slice(ldct, made):
    how = "--patch-size p64 --overlap 0"
    assert called(made.parent, *options(ldct, made, how)).status == 0
    with h5py.File(made) as file:
        pair, row, col = (file[f"patch/{name}"][...] for name in ("pair", "row", "col"))
        names = file["pair/target_file"][...]
        targets = file["target"][:, 0]
    for index, name in enumerate(names):
        whole = np.full((512, 512), np.nan, np.float32)
        for i in np.flatnonzero(pair == index):
            whole[row[i] : row[i] + 64, col[i] : col[i] + 64] = targets[i]
        np.testing.assert_array_equal(whole, provenance.stored_pixels(ldct / name.decode()))
