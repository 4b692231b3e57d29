"""Patients kept apart: who goes where, who is the same person, and what the three files hold."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import JPEGLosslessSV1, generate_uid

from pipeline.cohort.splitting import draw_subsets, same_persons
from tests.editing import edit, patch_set
from tests.jpeg_lossless import compress
from tests.running import Ended, called, ranks_of
from tests.scans import phantom, write_patient, write_slice
from utils import SUBSETS, RunError

FORM = ("--patch-size", "p24", "--output-fname", "out.h5", "--overwrite", "--no-report")
THIRDS = ("--split", "0.34", "0.33", "0.33")
EVENT, STUDY = generate_uid(), generate_uid()


def run(root: Path, *options: str | Path) -> Ended:
    return called(root.parent, "--input-folder", root, *FORM, *options)


def sides_of(folder: Path) -> dict[str, str]:
    """Return the side of every patient, from the files alone."""
    out: dict[str, str] = {}
    for side in SUBSETS:
        path = folder / f"out_{side}.h5"
        if path.exists():
            with h5py.File(path) as file:
                patients = {name.decode() for name in file["pair/patient"]}
            assert not patients & set(out), "a patient on two sides"
            out |= dict.fromkeys(patients, side)
    return out


def write(root: Path, names: Sequence[str], **tags: Any) -> Path:
    for name in names:
        write_patient(root, name, 1, **tags)
    return root


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ten patients of one pair each; read only."""
    return write(tmp_path_factory.mktemp("ten") / "scans", [f"P{i}" for i in range(10)])


# --- the draw --------------------------------------------------------------------------------


def test_patients_go_to_three_files_in_the_wanted_parts(ten):
    assert run(ten, "--split", "0.8", "0.1", "0.1").status == 0
    sides = sides_of(ten.parent)
    assert sorted(sides) == sorted(path.name for path in ten.iterdir())
    assert Counter(sides.values()) == {"train": 8, "val": 1, "test": 1}
    assert not (ten.parent / "out.h5").exists()


def test_the_three_files_hold_what_one_file_would(ten):
    options = ("--rot_augment", "--blurr_n_noise", "--normalization-type", "unity_wrt_ld")
    assert run(ten, *options).status == 0
    assert run(ten, *options, *THIRDS).status == 0
    whole = patch_set(ten.parent / "out.h5")
    assert patch_set(*(ten.parent / f"out_{side}.h5" for side in SUBSETS)) == whole
    (ten.parent / "out.h5").unlink()


def test_two_ranks_make_the_same_three_files(ten, tmp_path):
    options = ["--input-folder", str(ten), "--patch-size", "p24", *THIRDS, "--no-report"]
    assert called(tmp_path, *options, "--output-fname", "serial.h5").status == 0
    jobs = [[*options, "--mpi_run", "--output-fname", "ranks.h5"]]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    assert ranks_of(2, "jobs.py", tmp_path, "jobs.json").status == 0
    for side in SUBSETS:
        serial, parallel = (tmp_path / f"{how}_{side}.h5" for how in ("serial", "ranks"))
        assert serial.read_bytes() == parallel.read_bytes()


def test_a_part_of_zero_makes_no_file(ten, tmp_path):
    options = ("--patch-size", "p24", "--split", "0.8", "0", "0.2", "--output-fname", "out.h5")
    assert called(tmp_path, "--input-folder", ten, *options, "--no-report").status == 0
    assert {path.name for path in tmp_path.glob("*.h5")} == {"out_train.h5", "out_test.h5"}
    assert Counter(sides_of(tmp_path).values()) == {"train": 8, "test": 2}


def test_the_summary_says_who_is_where(ten):
    ended = run(ten, *THIRDS)
    for side in SUBSETS:
        line = next(line for line in ended.out.splitlines() if line.split()[:1] == [side])
        told = set(re.findall(r"P\d", line))
        assert told == {p for p, where in sides_of(ten.parent).items() if where == side}


def test_the_summary_has_the_actual_and_the_requested_fractions(ten):
    ended = run(ten, "--split", "85", "10", "5")
    assert re.findall(r"^patients.*", ended.out, re.M) == [
        f"{'patients':28} 10",
        f"{'patients in train':28} 8 (80.0%; requested 85.0%)",
        f"{'patients in val':28} 1 (10.0%; requested 10.0%)",
        f"{'patients in test':28} 1 (10.0%; requested 5.0%)",
    ]
    assert "warning" not in ended.out
    assert "patients in" not in run(ten).out


@pytest.mark.parametrize("quiet", [[], ["--quiet"], ["--dry-run"]], ids=str)
def test_a_split_that_few_patients_cannot_have_is_a_warning(tmp_path, quiet):
    root = write(tmp_path / "scans", ["A", "B", "C", "D"])
    ended = run(root, "--split", "0.9", "0.05", "0.05", *quiet)
    assert ended.status == 0
    assert (
        "warning: --split 0.9 0.05 0.05 assigns 2 / 1 / 1 of 4 patients: every subset receives at "
        "least one, and the folders of one person are not separated\n"
    ) in ended.out


def test_fewer_patients_than_sides_is_an_error(tmp_path):
    root = write(tmp_path / "scans", ["A", "B"])
    ended = run(root, *THIRDS)
    assert ended.status == 1
    assert "empty" in ended.err
    assert not list(tmp_path.glob("*.h5"))


def test_a_side_without_a_pair_is_an_error(tmp_path):
    root = write(tmp_path / "scans", ["A", "B", "C"])
    edit(root / "C/full_3mm/0001.dcm", PixelSpacing=[0.5, 0.5])
    ended = run(root, *THIRDS, "--unpaired", "skip")
    assert ended.status == 1
    assert "without a pair" in ended.err
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.parametrize(
    "parts",
    [("0.8", "0.1", "0.2"), ("0.5", "0.1", "0.1"), ("1.2", "-0.1", "-0.1"), ("0", "0.5", "0.5")],
    ids=" ".join,
)
def test_parts_that_do_not_add_up_are_a_bad_call(ten, parts):
    ended = run(ten, "--split", *parts)
    assert ended.status == 2
    assert "--split" in ended.err


groupings = st.lists(st.integers(1, 3), min_size=1, max_size=30).map(
    lambda sizes: [[f"g{i}_{j}" for j in range(n)] for i, n in enumerate(sizes)]
)
splits = st.tuples(st.integers(1, 98), st.integers(0, 98)).filter(lambda ab: sum(ab) <= 100)
parts_of = splits.map(lambda ab: (ab[0] / 100, ab[1] / 100, (100 - ab[0] - ab[1]) / 100))
seeds = st.integers(0, 2**32)


@given(groupings, parts_of, seeds)
def test_every_patient_has_one_side_and_no_side_is_empty(groups, parts, seed):
    wanted = {side for side, part in zip(SUBSETS, parts, strict=True) if part}
    if len(groups) < len(wanted):
        with pytest.raises(RunError, match="empty"):
            draw_subsets(groups, parts, seed)
        return
    found = draw_subsets(groups, parts, seed)
    assert sorted(found) == sorted(itertools.chain(*groups))
    assert set(found.values()) == wanted
    assert all(len({found[patient] for patient in group}) == 1 for group in groups)


@given(st.integers(1, 60), parts_of, seeds)
def test_sides_of_single_patients_have_their_part_to_within_one(patients, parts, seed):
    sizes = [part * patients for part in parts]
    if any(0 < size < 1 for size in sizes):
        return  # such a side gets one patient all the same
    found = Counter(draw_subsets([[f"{i}"] for i in range(patients)], parts, seed).values())
    for side, size in zip(SUBSETS, sizes, strict=True):
        assert abs(found[side] - size) < 1 + 1e-9


@given(groupings.filter(lambda groups: len(groups) >= 3), parts_of, seeds, st.randoms())
def test_the_order_of_patients_does_not_matter(groups, parts, seed, rng):
    shuffled = groups.copy()
    rng.shuffle(shuffled)
    assert draw_subsets(shuffled, parts, seed) == draw_subsets(groups, parts, seed)


def test_the_draw_hangs_on_the_seed():
    groups = [[f"{i}"] for i in range(20)]
    found = [draw_subsets(groups, (0.5, 0.25, 0.25), seed) for seed in range(5)]
    assert all(a != b for a, b in itertools.combinations(found, 2))


def test_every_patient_may_come_to_every_side():
    groups = [[f"{i}"] for i in range(4)]
    seen = Counter(
        pair
        for seed in range(300)
        for pair in draw_subsets(groups, (0.5, 0.25, 0.25), seed).items()
    )
    for patient in "0123":
        # Expected 150, 75 and 75 of 300; five standard deviations are 43 and 38.
        assert abs(seen[patient, "train"] - 150) < 43
        assert abs(seen[patient, "val"] - 75) < 38
        assert abs(seen[patient, "test"] - 75) < 38


# --- the same person -------------------------------------------------------------------------


def four(root: Path, **same: Any) -> Path:
    """Write A, B, C and D, of whom A and C share what is given, in both series."""
    for name in "ABCD":
        write_patient(root, name, 2, **(same if name in "AC" else {}))
    return root


MARKS: dict[str, dict[str, Any]] = {
    "PatientID": {"PatientID": "MRN-4711"},
    "IrradiationEventUID": {"IrradiationEventUID": EVENT},
    "StudyInstanceUID": {"StudyInstanceUID": STUDY},
    "StudyDate with StudyTime": {"StudyDate": "20190731", "StudyTime": "113355.25"},
}


@pytest.mark.parametrize("reason", MARKS)
@pytest.mark.parametrize("seed", ["0", "1"])
def test_one_person_under_two_names_goes_to_one_side_and_the_summary_says_why(
    tmp_path, reason, seed
):
    root = four(tmp_path / "scans", **MARKS[reason])
    ended = run(root, *THIRDS, "--seed", seed)
    assert ended.status == 0
    sides = sides_of(tmp_path)
    assert sides["A"] == sides["C"]
    assert len(set(sides.values())) == 3
    (line,) = (line for line in ended.out.splitlines() if "same person" in line)
    assert "A and C" in line
    assert line.endswith(f"same {reason}")
    assert not any(str(value) in ended.out for value in MARKS[reason].values())


def test_a_mark_in_one_slice_of_one_series_is_enough(tmp_path):
    root = four(tmp_path / "scans")
    edit(root / "A/quarter_3mm/0001.dcm", PatientID="MRN-4711")
    edit(root / "C/full_3mm/0002.dcm", PatientID="MRN-4711")
    assert "A and C are the same person: same PatientID" in run(root, *THIRDS).out


@pytest.mark.parametrize("side", ["quarter_3mm", "full_3mm"])
def test_identical_pixels_of_any_slice_join(tmp_path, side):
    root = four(tmp_path / "scans")
    image = phantom((64, 80), 77)[0]
    write_slice(root / "A/quarter_3mm/0001.dcm", image, z=-147)
    name = "0001.dcm"
    write_slice(root / f"C/{side}/{name}", image, z=-147)
    ended = run(root, *THIRDS, "--anatomy-check", "off")
    assert ended.status == 0, ended.err
    assert "A and C are the same person: same identical pixels" in ended.out
    assert len({sides_of(tmp_path)[name] for name in "AC"}) == 1


def test_identical_hu_join_whatever_the_rescaling_and_the_tags(tmp_path):
    root = four(tmp_path / "scans")
    for side in ("quarter_3mm", "full_3mm"):
        image = phantom((64, 80), 77)[side == "full_3mm"]
        write_slice(root / f"A/{side}/0001.dcm", image, z=-147)
        again = (image + 1000).astype(np.uint16)
        write_slice(root / f"C/{side}/0001.dcm", again, z=-147, bits_stored=16, intercept=-2024)
    ended = run(root, *THIRDS, "--anatomy-check", "off", "--intensity", "hu")
    assert ended.status == 0, ended.err
    assert "A and C are the same person: same identical pixels" in ended.out
    assert len({sides_of(tmp_path)[name] for name in "AC"}) == 1


def test_identical_pixels_join_though_the_file_is_compressed_and_the_pair_not_drawn(tmp_path):
    root = tmp_path / "scans"
    for name in "ABCD":
        write_patient(root, name, 6)
    image = phantom((64, 80), 77)[0]
    for i in range(6):
        z = -150.0 + 3 * i
        write_slice(root / f"A/full_3mm/{6 - i:04d}.dcm", image + i, z=z)
        file = write_slice(root / f"C/full_3mm/{6 - i:04d}.dcm", image + (i + 1) % 6 + 5, z=z)
        compress(file, JPEGLosslessSV1)
    ended = run(root, *THIRDS, "--anatomy-check", "off", "--random_N", "1")
    assert ended.status == 0, ended.err
    assert "A and C are the same person: same identical pixels" in ended.out


def test_images_of_one_value_join_nobody(tmp_path):
    root = four(tmp_path / "scans")
    for name in "AC":
        write_slice(root / f"{name}/full_3mm/0001.dcm", np.zeros((64, 80), np.uint16), z=-147)
    assert "same person" not in run(root, *THIRDS, "--anatomy-check", "off").out


def test_all_reasons_stand_in_one_line(tmp_path):
    root = four(tmp_path / "scans", PatientID="MRN-4711", StudyInstanceUID=STUDY)
    said = run(root, *THIRDS).out
    assert "A and C are the same person: same PatientID, StudyInstanceUID" in said


def test_a_chain_of_marks_joins_all_of_it(tmp_path):
    root = tmp_path / "scans"
    write(root, ["A"], PatientID="MRN-1")
    write(root, ["B"], PatientID="MRN-1", StudyInstanceUID=STUDY)
    write(root, ["C"], PatientID="MRN-3", StudyInstanceUID=STUDY)
    write(root, ["D", "E"])
    assert run(root, *THIRDS).status == 0
    sides = sides_of(tmp_path)
    assert len({sides[name] for name in "ABC"}) == 1


def test_one_person_alone_cannot_be_split(tmp_path):
    root = write(tmp_path / "scans", ["A", "B", "C"], StudyInstanceUID=STUDY)
    ended = run(root, *THIRDS)
    assert ended.status == 1
    assert "empty" in ended.err


@pytest.mark.parametrize(
    "value",
    ["Anonymous", "ANONYMOUS", "anonymized", "removed", "unknown", "", "0", "000000", "N/A"],
)
def test_a_placeholder_for_an_id_joins_nobody(tmp_path, value):
    root = four(tmp_path / "scans", PatientID=value)
    for name in "BD":
        for file in (root / name).rglob("*.dcm"):
            edit(file, PatientID=f"MRN-{name}")
    assert "same person" not in run(root, "--split", "0.5", "0", "0.5").out


@pytest.mark.parametrize(
    "tags",
    [{"PatientID": "LDCT"}, {"StudyDate": "20000101", "StudyTime": "120000"}],
    ids=["PatientID", "StudyDate with StudyTime"],
)
def test_what_all_patients_share_is_a_placeholder(tmp_path, tags):
    root = write(tmp_path / "scans", ["A", "B", "C", "D"], **tags)
    ended = run(root, *THIRDS)
    assert ended.status == 0
    assert "same person" not in ended.out


@pytest.mark.parametrize("tags", [{"StudyDate": "20190731"}, {"StudyTime": "113355"}], ids=str)
def test_a_date_without_a_time_joins_nobody(tmp_path, tags):
    root = four(tmp_path / "scans", **tags)
    assert "same person" not in run(root, "--split", "0.5", "0", "0.5").out


def test_the_same_day_at_another_time_is_another_person(tmp_path):
    root = tmp_path / "scans"
    for i, name in enumerate("ABCD"):
        write(root, [name], StudyDate="20190731", StudyTime=f"1133{i:02d}")
    assert "same person" not in run(root, "--split", "0.5", "0", "0.5").out


def test_real_patients_are_two_persons(ldct, tmp_path):
    options = ("--patch-size", "p96", "--split", "0.5", "0", "0.5", "--output-fname", "out.h5")
    ended = called(tmp_path, "--input-folder", ldct, *options, "--no-report")
    assert ended.status == 0
    assert "same person" not in ended.out
    assert sorted(sides_of(tmp_path)) == ["L096", "L143"]


marks_of = st.dictionaries(
    st.sampled_from("ABCDEFG"),
    st.sets(st.sampled_from([f"{tag} {v}" for tag in ("StudyInstanceUID", "x y") for v in "123"])),
    min_size=1,
)


@given(marks_of)
def test_persons_are_the_connected_parts_of_who_shares_a_mark(marks):
    expected = {name: {name} for name in marks}
    for _ in marks:
        for a, b in itertools.permutations(marks, 2):
            if marks[a] & marks[b] or expected[a] & expected[b]:
                expected[a] = expected[b] = expected[a] | expected[b]
    groups, reasons = same_persons(marks)
    assert sorted(itertools.chain(*groups)) == sorted(marks)
    assert {frozenset(group) for group in groups} == {frozenset(g) for g in expected.values()}
    assert bool(reasons) == any(len(group) > 1 for group in groups)


# --- the split file --------------------------------------------------------------------------


def split_file(folder: Path, text: str) -> Path:
    path = folder / "sides.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_split_file_says_who_is_where(tmp_path):
    root = write(tmp_path / "scans", ["A", "B", "a name with spaces", "D"])
    text = "# our split\n\ntrain A\n  val B\r\ntest  a name with spaces\ntrain D\n"
    ended = run(root, "--split-file", split_file(tmp_path, text))
    assert ended.status == 0, ended.err
    expected = {"A": "train", "B": "val", "a name with spaces": "test", "D": "train"}
    assert sides_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train A\nval B\n", ["'C' is in no subset", "test is left empty"]),
        ("train A\nval B\ntest C\nval A\n", ["'A' is in two subsets"]),
        ("train A\nval B\ntest C\ntest X\n", ["line 4", "'X'"]),
        ("train A\nval B\ntest c\n", ["line 3", "'c'", "did you mean C?"]),
        ("train A\nval B\nTEST C\n", ["line 3", "'TEST C'", "train or val or test"]),
        ("A\nval B\ntest C\n", ["line 1", "'A'"]),
        ("train A\ntrain B\ntest C\n", ["val is left empty"]),
        ("", ["'A' is in no subset", "'B' is in no subset", "'C' is in no subset"]),
    ],
    ids=[
        "patient left out",
        "in two subsets",
        "no such",
        "lower case",
        "no such subset",
        "no subset",
        "empty",
        "blank",
    ],
)
def test_a_split_file_that_does_not_fit_is_refused_saying_all_that_is_wrong(tmp_path, text, said):
    root = write(tmp_path / "scans", ["A", "B", "C"])
    ended = run(root, "--split-file", split_file(tmp_path, text))
    assert ended.status == 2
    assert all(part in ended.err for part in ["--split-file", *said])
    assert not list(tmp_path.glob("*.h5"))


def test_a_split_file_that_parts_one_person_is_refused(tmp_path):
    root = write(tmp_path / "scans", ["A", "B"], PatientID="MRN-4711")
    write(root, ["C"])
    ended = run(root, "--split-file", split_file(tmp_path, "train A\ntest B\nval C\n"))
    assert ended.status == 2
    assert "A, B are the same person" in ended.err


@pytest.mark.parametrize("how", ["missing", "folder", "binary"])
def test_a_split_file_that_cannot_be_read_is_named(ten, tmp_path, how):
    path = tmp_path / "sides.txt"
    if how == "folder":
        path.mkdir()
    elif how == "binary":
        path.write_bytes(b"train \xff\xfe\n")
    ended = run(ten, "--split-file", path)
    assert ended.status == 2
    assert "sides.txt" in ended.err


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no /dev/zero")
def test_a_split_file_without_an_end_is_refused(ten, tmp_path):
    ended = run(ten, "--split-file", "/dev/zero")
    assert ended.status == 2
    assert "more than 10000000 characters" in ended.err


def test_split_and_split_file_exclude_each_other(ten, tmp_path):
    ended = run(ten, *THIRDS, "--split-file", split_file(tmp_path, ""))
    assert ended.status == 2
    assert "--split" in ended.err
