"""Is it the same anatomy: pairs whose position tags lie are found, true ones not accused."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.editing import edit, swap
from tests.running import Ended, called
from tests.scans import PATIENTS, Made, write_patient

FORM = ("--patch-size", "p24", "--output-fname", "out.h5", "--no-report")
#: Every two of a patient's four slices.
SWAPS = list(itertools.combinations(range(4), 2))


def run(root: Path, *options: str) -> Ended:
    return called(root.parent, "--input-folder", root, *FORM, *options)


def accused(text: str) -> set[str]:
    """Return the input files that the lines of a message or a summary begin with."""
    return set(re.findall(r"([^\s:]+) differs from its target", text))


def rms_hu(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other.astype(float)) ** 2)))


@pytest.mark.parametrize("swapped", SWAPS, ids=str)
@pytest.mark.parametrize("side", ["input", "target"])
def test_two_slices_swapped_in_position_are_both_named(tmp_path, swapped, side):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 4)
    chosen = [made[i] for i in swapped]
    swap("ImagePositionPatient", *(root / getattr(m, f"{side}_file") for m in chosen))
    ended = run(root)
    assert ended.status == 1
    assert accused(ended.err) == {m.input_file for m in chosen}
    assert all(m.target_file in ended.err for m in chosen)


@pytest.mark.parametrize("patient", ["L096", "L143"])
@pytest.mark.parametrize("swapped", SWAPS, ids=str)
def test_two_real_slices_swapped_in_position_are_both_named(ldct, tmp_path, patient, swapped):
    root = tmp_path / "copy"
    shutil.copytree(ldct / patient, root / patient)
    names = sorted(p.name for p in (root / patient).glob("full*/*"))
    chosen = [f"{patient}/full_3mm_sharp_sorted/{names[i]}" for i in swapped]
    swap("ImagePositionPatient", *(root / file for file in chosen))
    ended = run(root)
    assert ended.status == 1
    assert accused(ended.err) == {file.replace("/full", "/quarter") for file in chosen}
    assert all(file in ended.err for file in chosen)


def shifted(root: Path) -> list[Made]:
    """Write a patient whose targets all carry the position of their neighbour above."""
    made = write_patient(root, "A", 4)
    places = [m.z for m in made]
    for one, z in zip(made, [*places[1:], places[0]], strict=True):
        edit(root / one.target_file, ImagePositionPatient=[-100, -120, z])
    return made


def test_a_series_that_is_shifted_by_one_slice_is_found_whole(tmp_path):
    root = tmp_path / "scans"
    made = shifted(root)
    assert accused(run(root).err) == {m.input_file for m in made}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_drawn_from_a_shifted_series_are_found_by_slices_that_were_not_drawn(tmp_path, seed):
    root = tmp_path / "scans"
    made = shifted(root)
    options = ("--random_N", "2", "--seed", str(seed), "--anatomy-check", "warn")
    said = accused(run(root, *options).out)
    with h5py.File(tmp_path / "out.h5") as file:
        drawn = {name.decode() for name in file["pair/input_file"]}
    # Each input's own target lies one place up, but the last one's at the other end of the series.
    first, last = made[0].input_file, made[-1].input_file
    assert said == (drawn if first in drawn else drawn - {last})


def test_the_message_has_both_figures(tmp_path):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 2)
    swap("ImagePositionPatient", *(root / m.target_file for m in made))
    said = run(root).err
    for own, other in (made, made[::-1]):
        line = next(part for part in said.splitlines() if own.input_file in part)
        wrong, right = rms_hu(own.input, other.target), rms_hu(own.input, own.target)
        assert re.findall(r"by (\d+) HU", line) == [f"{wrong:.0f}", f"{right:.0f}"]


def test_the_figures_are_in_hu_whatever_the_slope(tmp_path):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 2, slope=0.5, intercept=-1000)
    swap("ImagePositionPatient", *(root / m.target_file for m in made))
    line = next(part for part in run(root).err.splitlines() if made[0].input_file in part)
    figures = [int(figure) for figure in re.findall(r"by (\d+) HU", line)]
    wrong = rms_hu(made[0].input, made[1].target) / 2
    right = rms_hu(made[0].input, made[0].target) / 2
    assert figures == pytest.approx([wrong, right], abs=1)


def test_warn_goes_on_and_names_both_in_the_summary(tmp_path):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 3)
    swap("ImagePositionPatient", *(root / m.target_file for m in made[:2]))
    ended = run(root, "--anatomy-check", "warn")
    assert ended.status == 0
    assert accused(ended.out) == {m.input_file for m in made[:2]}
    assert (tmp_path / "out.h5").exists()


def test_off_goes_on_in_silence(tmp_path):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 2)
    swap("ImagePositionPatient", *(root / m.target_file for m in made))
    ended = run(root, "--anatomy-check", "off")
    assert ended.status == 0
    assert not accused(ended.out + ended.err)


def test_an_error_leaves_no_file(tmp_path):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 2)
    swap("ImagePositionPatient", *(root / m.target_file for m in made))
    run(root)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


def test_the_pairs_of_all_patients_are_named_at_once(tmp_path):
    root = tmp_path / "scans"
    expected = set()
    for name in ("A", "B"):
        made = write_patient(root, name, 3)
        swap("ImagePositionPatient", *(root / m.target_file for m in made[1:]))
        expected |= {m.input_file for m in made[1:]}
    assert accused(run(root).err) == expected


def test_true_pairs_are_not_accused(tree, tmp_path):
    ended = called(tmp_path, "--input-folder", tree.root, *FORM, "--anatomy-check", "warn")
    assert ended.status == 0
    assert f"{sum(PATIENTS.values())}" in ended.out
    assert not accused(ended.out)


def test_real_pairs_are_not_accused(ldct, tmp_path):
    options = ("--patch-size", "p96", "--anatomy-check", "warn", "--output-fname", "out.h5")
    ended = called(tmp_path, "--input-folder", ldct, *options)
    assert ended.status == 0
    assert not accused(ended.out)
