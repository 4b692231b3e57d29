"""Pairing by anatomy: what two slices must share, and what is said where they do not."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from ctpatches.dicom.slice_file import Slice
from pipeline.cohort.pairing import pair_slices, tolerance_mm
from pipeline.cohort.patients import Patient
from pipeline.model import Pair
from tests.editing import edit, patch_set
from tests.running import Ended, called
from tests.scans import Made, find_pairs, phantom, write_patient, write_slice

FORM = ("--patch-size", "p24", "--output-fname", "out.h5", "--overwrite", "--no-report")


def run(root: Path, *options: str) -> Ended:
    return called(root.parent, "--input-folder", root, *FORM, *options)


def paired(root: Path) -> Patient:
    """Return what the pairing makes of patient A."""
    return find_pairs(str(root), "A", "quarter_3mm", "full_3mm")


def files(pairs: Iterable[Pair | Made]) -> list[tuple[str, str]]:
    """Return the names of the two files of each pair."""
    return [
        (p.input_file, p.target_file) if isinstance(p, Made) else (p.input.file, p.target.file)
        for p in pairs
    ]


def refused(root: Path, *options: str) -> str:
    """Return what a run says that stops at the pairing, and leaves nothing behind."""
    ended = run(root, *options)
    assert ended.status == 1
    assert ended.out == ""
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    return ended.err


def one_line_with(text: str, *names: str) -> str:
    """Return the only line that holds the first name, which holds the others too."""
    lines = [line for line in text.splitlines() if names[0] in line]
    assert len(lines) == 1, text
    assert all(name in lines[0] for name in names), text
    return lines[0]


def patient(root: Path, slices: int = 4, name: str = "A", **tags: Any) -> list[Made]:
    return write_patient(root, name, slices, **tags)


# --- only the position counts ----------------------------------------------------------------


def shuffled_copy(source: Path, copy: Path, seed: int) -> Path:
    """Copy a tree with every file renamed at random, so that no order of names is left."""
    rng = random.Random(seed)
    for folder in sorted(p for p in source.glob("*/*") if p.is_dir()):
        (copy / folder.relative_to(source)).mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            name = f"{rng.getrandbits(40):x}"
            shutil.copyfile(file, copy / folder.relative_to(source) / name)
    return copy


def test_a_shuffled_renamed_copy_gives_the_same_patches(tree, tmp_path):
    copy = shuffled_copy(tree.root, tmp_path / "copy", 1)
    for root in (tree.root, copy):
        ended = called(tmp_path, "--input-folder", root, *FORM, "--output-fname", f"{root.name}.h5")
        assert ended.status == 0
    expected = patch_set(tmp_path / f"{tree.root.name}.h5")
    assert len(set(expected)) == len(expected) > 0
    assert patch_set(tmp_path / "copy.h5") == expected


def test_a_shuffled_renamed_copy_of_real_scans_gives_the_same_patches(ldct, tmp_path):
    copy = shuffled_copy(ldct, tmp_path / "copy", 2)
    form = ("--patch-size", "p96", "--air_threshold", "--ds_augment", "--no-report")
    for root, name in ((ldct, "real.h5"), (copy, "copy.h5")):
        ended = called(tmp_path, "--input-folder", root, *form, "--output-fname", name)
        assert ended.status == 0
    expected = patch_set(tmp_path / "real.h5")
    assert len(expected) > 300
    assert patch_set(tmp_path / "copy.h5") == expected


def test_instance_numbers_and_uids_do_not_pair(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)
    for i, pair in enumerate(made):
        for j, file in enumerate((pair.input_file, pair.target_file)):
            numbers = {"InstanceNumber": (7 * i + 5 * j) % 11}
            uids = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
            edit(root / file, **numbers, **{uid: generate_uid() for uid in uids})
    assert files(paired(root).pairs) == files(made)


# --- no partner ------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", range(4))
@pytest.mark.parametrize("side", ["input", "target"])
def test_a_removed_slice_is_an_error_that_names_its_partner(tmp_path, gone, side):
    root = tmp_path / "scans"
    pair = patient(root)[gone]
    both = {"input": pair.input_file, "target": pair.target_file}
    (root / both.pop(side)).unlink()
    said = refused(root)
    one_line_with(said, *both.values())
    assert "--unpaired skip" in said


@pytest.mark.parametrize("gone", range(4))
def test_a_removed_target_of_real_scans_is_an_error_that_names_its_partner(ldct, tmp_path, gone):
    root = tmp_path / "copy"
    shutil.copytree(ldct, root)
    file = sorted((root / "L143").glob("full*/*"))[gone]
    file.unlink()
    said = refused(root)
    one_line_with(said, f"L143/quarter_3mm_sharp_sorted/{file.name}")


def test_unpaired_skip_goes_on_with_the_rest_and_lists_what_it_left_out(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)
    run(root)
    whole = patch_set(tmp_path / "out.h5")
    (root / made[1].target_file).unlink()
    ended = run(root, "--unpaired", "skip")
    assert (ended.status, ended.err) == (0, "")
    one_line_with(ended.out, made[1].input_file)
    rest = patch_set(tmp_path / "out.h5")
    assert len(rest) == len(whole) * 3 // 4
    assert set(rest) < set(whole)


def test_unpaired_skip_leaves_out_both_slices_of_a_mismatch(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)
    edit(root / made[2].target_file, PixelSpacing=[0.5, 0.5])
    ended = run(root, "--unpaired", "skip")
    assert ended.status == 0
    one_line_with(ended.out, made[2].input_file, made[2].target_file)
    expected = {p.tobytes() for m in (made[i] for i in (0, 1, 3)) for p in corner(m)}
    assert {first[: 24 * 24 * 4] for first in patch_set(tmp_path / "out.h5")} >= expected


def corner(made: Made) -> list[np.ndarray[Any, Any]]:
    return [made.input[:24, :24].astype(np.float32)]


def test_unpaired_skip_with_nothing_left_is_an_error(tmp_path):
    root = tmp_path / "scans"
    for pair in patient(root, 2):
        edit(root / pair.target_file, PixelSpacing=[0.5, 0.5])
    ended = run(root, "--unpaired", "skip")
    assert ended.status == 1
    assert "no pair is left" in ended.err


def test_unpaired_skip_does_not_go_on_without_a_file_that_cannot_be_read(tmp_path):
    root = tmp_path / "scans"
    pair = patient(root)[0]
    (root / pair.input_file).write_bytes(b"")
    assert pair.input_file in refused(root, "--unpaired", "skip")


# --- two at one place ------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["quarter_3mm", "full_3mm"])
@pytest.mark.parametrize("apart", [0.0, 0.005])
def test_two_slices_at_one_position_are_named_together(tmp_path, side, apart):
    root = tmp_path / "scans"
    made = patient(root)[1]
    there = made.input_file if side == "quarter_3mm" else made.target_file
    write_slice(root / f"A/{side}/twice.dcm", phantom((64, 80), 9)[0], z=made.z + apart)
    one_line_with(refused(root), "twice.dcm", there)


def test_unpaired_skip_takes_neither_of_two_slices_at_one_position(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)
    write_slice(root / "A/full_3mm/twice.dcm", made[1].target, z=made[1].z)
    ended = run(root, "--unpaired", "skip")
    assert ended.status == 0
    one_line_with(ended.out, "twice.dcm", made[1].target_file)
    taken = {first[: 24 * 24 * 4] for first in patch_set(tmp_path / "out.h5")}
    assert corner(made[0])[0].tobytes() in taken
    assert corner(made[1])[0].tobytes() not in taken


# --- mismatches ------------------------------------------------------------------------------

TILTED = [0.995, 0.0998749, 0.0, -0.0998749, 0.995, 0.0]


@pytest.mark.parametrize(
    ("tags", "values"),
    [
        ({"PixelSpacing": [0.75, 0.8]}, [r"0.75\0.75", r"0.75\0.8"]),
        ({"PixelSpacing": [0.8, 0.75]}, [r"0.75\0.75", r"0.8\0.75"]),
        ({"PixelSpacing": None}, [r"0.75\0.75", "missing"]),
        ({"ImageOrientationPatient": TILTED}, [r"1\0\0\0\1\0", "0.995"]),
        ({"ImagePositionPatient": [-100, -110, -147]}, [r"-100\-120", r"-100\-110"]),
        ({"ImagePositionPatient": [-100.02, -120, -147]}, [r"-100\-120", r"-100.02\-120"]),
    ],
    ids=["spacing of columns", "of rows", "missing", "orientation", "place", "place by 0.02 mm"],
)
def test_a_mismatch_names_both_files_and_both_values(tmp_path, tags, values):
    root = tmp_path / "scans"
    made = patient(root)[1]
    edit(root / made.target_file, **tags)
    line = one_line_with(refused(root), made.input_file, made.target_file)
    assert next(iter(tags)) in line
    assert all(value in line for value in values)


@pytest.mark.parametrize(
    ("shape", "said"), [((56, 80), ("Rows", "64", "56")), ((64, 72), ("Columns", "80", "72"))]
)
def test_another_size_names_both_files_and_both_values(tmp_path, shape, said):
    root = tmp_path / "scans"
    made = patient(root)[1]
    write_slice(root / made.target_file, made.target[: shape[0], : shape[1]], z=made.z)
    one_line_with(refused(root), made.input_file, made.target_file, *said)


def test_another_modality_names_the_file_and_the_value(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)[1]
    edit(root / made.target_file, Modality="PT")
    one_line_with(refused(root), made.target_file, "'PT'")


def test_another_irradiation_event_names_both_files_and_prints_no_uid(tmp_path):
    root = tmp_path / "scans"
    uids = generate_uid(), generate_uid()
    made = patient(root, IrradiationEventUID=uids[0])[1]
    edit(root / made.target_file, IrradiationEventUID=uids[1])
    said = refused(root)
    one_line_with(said, made.input_file, made.target_file, "IrradiationEventUID")
    assert not any(uid in said for uid in uids)


def test_an_irradiation_event_that_one_slice_lacks_refuses_nothing(tmp_path):
    root = tmp_path / "scans"
    made = patient(root, IrradiationEventUID=generate_uid())[1]
    edit(root / made.target_file, IrradiationEventUID=None)
    assert len(paired(root).pairs) == 4


def test_all_problems_of_all_patients_are_listed_at_once(tmp_path):
    root = tmp_path / "scans"
    a, b = patient(root), patient(root, name="B")
    (root / a[0].target_file).unlink()
    edit(root / a[2].target_file, PixelSpacing=[0.5, 0.5])
    write_slice(root / "B/full_3mm/twice.dcm", b[3].target, z=b[3].z)
    (root / b[0].input_file).unlink()
    edit(root / b[1].input_file, ImageOrientationPatient=TILTED)
    said = refused(root)
    one_line_with(said, a[0].input_file)
    one_line_with(said, a[2].input_file, a[2].target_file)
    one_line_with(said, "B/full_3mm/twice.dcm", b[3].target_file)
    one_line_with(said, b[0].target_file)
    # Tilted, it lies at another position along its own normal or is a mismatch: named either way.
    assert b[1].input_file in said


def test_a_hundred_unpaired_slices_are_all_listed(tmp_path):
    root = tmp_path / "scans"
    image = phantom((24, 24), 0)[0]
    for i in range(101):
        write_slice(root / f"A/low/{i:03d}", image, z=3 * i)
    write_slice(root / "A/full/000", image, z=0)
    said = refused(root)
    assert sorted(set(re.findall(r"A/low/\d+", said))) == [f"A/low/{i:03d}" for i in range(1, 101)]


# --- the position ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "step"),
    [
        ([1, 0, 0, 0, 1, 0], (0, 0, 3)),
        ([0, 1, 0, 0, 0, -1], (-3, 0, 0)),
        ([1, 0, 0, 0, 0, -1], (0, 3, 0)),
        ([1, 0, 0, 0, 0.8, -0.6], (0, 1.8, 2.4)),
    ],
    ids=["axial", "sagittal", "coronal", "tilted gantry"],
)
def test_the_position_is_that_along_the_normal(tmp_path, orientation, step):
    root = tmp_path / "scans"
    made = patient(root)
    for i, pair in enumerate(made):
        at = [round(-100 + i * s, 3) for s in step]
        for file in (pair.input_file, pair.target_file):
            tags = {"ImageOrientationPatient": orientation, "ImagePositionPatient": at}
            edit(root / file, **tags)
    found = paired(root)
    assert sorted(files(found.pairs)) == files(made)
    gaps = np.diff([pair.input.position_mm or 0.0 for pair in found.pairs])
    np.testing.assert_allclose(gaps, 3, atol=1e-6)


@pytest.mark.parametrize(("off", "pairs"), [(0.0, 4), (0.26, 4), (0.31, 3), (-0.26, 4), (-0.31, 3)])
def test_positions_may_differ_by_a_tenth_of_the_spacing(tmp_path, off, pairs):
    root = tmp_path / "scans"
    made = patient(root)[1]
    edit(root / made.target_file, ImagePositionPatient=[-100, -120, made.z + off])
    assert len(paired(root).pairs) == pairs


@pytest.mark.parametrize(("off", "pairs"), [(0.009, 4), (0.011, 3)])
def test_of_very_thin_slices_positions_may_differ_by_a_hundredth_of_a_millimetre(
    tmp_path, off, pairs
):
    root = tmp_path / "scans"
    for i, pair in enumerate(patient(root, SliceThickness=0.05)):
        for file in (pair.input_file, pair.target_file):
            edit(root / file, ImagePositionPatient=[-100, -120, 0.05 * i])
        if i == 2:
            edit(root / pair.target_file, ImagePositionPatient=[-100, -120, 0.1 + off])
    assert len(paired(root).pairs) == pairs


def slice_at(name: str, position: float) -> Slice:
    plane = (0.0, 0.0)
    axial = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return Slice(name, 9, 9, position, plane, axial, (1.0, 1.0), 3.0, 1, 1, 0, 0, "<u2", 12)


@given(
    st.lists(st.integers(0, 30), unique=True, max_size=12),
    st.lists(st.integers(0, 30), unique=True, max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_two_series_pair_where_and_only_where_positions_meet(inputs, targets, rng):
    def shaken(at: int) -> float:
        return 3 * at + float(rng.uniform(-0.1, 0.1))

    rng.shuffle(inputs)
    out = Patient("A")
    sides = [
        [slice_at(f"{side}{at}", shaken(at)) for at in places]
        for side, places in (("i", inputs), ("t", targets))
    ]
    pair_slices(out, sides[0], sides[1])
    both = sorted(set(inputs) & set(targets))
    assert [(p.input.file, p.target.file) for p in out.pairs] == [(f"i{z}", f"t{z}") for z in both]
    lone = {f"i{z}" for z in set(inputs) - set(targets)}
    lone |= {f"t{z}" for z in set(targets) - set(inputs)}
    assert {re.split("[ :]", str(line))[0] for line in out.problems} == lone
    assert len(out.problems) == len(lone)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_the_tolerance_is_a_tenth_of_the_smallest_spacing(steps):
    positions = np.cumsum([0, *steps]) / 10
    slices = [slice_at("a", float(at)) for at in positions]
    spacing = min(min(steps) / 10, 3.0)  # no more than the thickness
    assert tolerance_mm(slices) == pytest.approx(max(0.01, spacing / 10))


# --- without positions -----------------------------------------------------------------------


def without_positions(root: Path, numbers: list[list[int | None]]) -> list[Made]:
    """Write a patient whose slices have no position, with these Instance Numbers."""
    made = patient(root, len(numbers))
    for pair, both in zip(made, numbers, strict=True):
        for file, number in zip((pair.input_file, pair.target_file), both, strict=True):
            edit(root / file, ImagePositionPatient=None, InstanceNumber=number)
    return made


def test_without_positions_slices_pair_by_instance_number_and_the_summary_says_so(tmp_path):
    root = tmp_path / "scans"
    made = without_positions(root, [[7, 7], [3, 3], [5, 5]])
    ended = run(root)
    assert ended.status == 0
    assert "patient A: no positions, paired by InstanceNumber" in ended.out
    found = set(patch_set(tmp_path / "out.h5"))
    corners = [[side[:24, :24] for side in (pair.input, pair.target)] for pair in made]
    assert {np.array(both, np.float32).tobytes() for both in corners} <= found


def test_with_positions_nothing_pairs_by_instance_number(tmp_path):
    root = tmp_path / "scans"
    patient(root)
    assert not paired(root).by_instance


def test_instance_numbers_that_differ_are_unpaired(tmp_path):
    root = tmp_path / "scans"
    made = without_positions(root, [[1, 1], [2, 4], [3, 3]])
    said = refused(root)
    one_line_with(said, made[1].input_file)
    one_line_with(said, made[1].target_file)


def test_without_positions_every_slice_needs_an_instance_number(tmp_path):
    root = tmp_path / "scans"
    without_positions(root, [[1, 1], [2, None], [3, 3]])
    assert "InstanceNumber" in refused(root)
    assert "InstanceNumber" in refused(root, "--unpaired", "skip")


def test_without_positions_an_instance_number_that_comes_twice_is_refused_naming_both(tmp_path):
    root = tmp_path / "scans"
    made = without_positions(root, [[1, 1], [2, 2], [2, 3]])
    one_line_with(refused(root), made[1].input_file, made[2].input_file)


def test_instance_numbers_pair_nothing_where_some_slices_have_a_position(tmp_path):
    root = tmp_path / "scans"
    made = patient(root)
    edit(root / made[1].target_file, ImagePositionPatient=None)
    assert made[1].target_file in refused(root)
