"""Finding folders, reading slices, pairing them by position."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ctpatches.dicom.header import read_slice
from ctpatches.dicom.pixels import read_pixels, to_hu
from pipeline.cohort.patients import Patient, find_patients
from pipeline.config import Config
from tests.running import Ended, called, contents
from tests.scans import find_pairs, phantom, write_patient, write_slice
from utils import CallError

# --- folders ---------------------------------------------------------------------------------


def folders_of(root: Path, *folders: str, **options: Any) -> list[Patient]:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    return find_patients(Config(str(root), **options))


@pytest.mark.parametrize(
    ("low", "full"),
    [
        ("quarter_3mm", "full_3mm"),
        ("quarter_3mm_sharp_sorted", "full_3mm_sharp_sorted"),
        ("Quarter", "FULL"),
        ("low", "high"),
        ("LowDose", "High Dose"),
    ],
)
def test_folders_are_found_by_how_their_names_begin(tmp_path, low, full):
    (found,) = folders_of(tmp_path, f"P1/{low}", f"P1/{full}", "P1/notes")
    assert found.folders == {"input": f"P1/{low}", "target": f"P1/{full}"}


def test_tcia_folders_lie_below_a_folder_for_the_date(tmp_path):
    date = "C002/12-23-2021-NA-NA-1"
    low, full = f"{date}/1.000000-Low Dose Images-1", f"{date}/1.000000-Full Dose Images-2"
    (found,) = folders_of(tmp_path, low, full)
    assert (found.name, found.folders) == ("C002", {"input": low, "target": full})


def test_tcia_projections_beside_the_images_are_named_apart_by_the_option(tmp_path):
    date = "C002/12-23-2021-NA-NA-1"
    low, full = f"{date}/1.000000-Low Dose Images-1", f"{date}/1.000000-Full Dose Images-2"
    (found,) = folders_of(
        tmp_path,
        low,
        full,
        f"{date}/2.000000-Full dose projections-3",
        f"{date}/2.000000-Low dose projections-4",
        input_gen_folder="low dose images*",
        target_gen_folder="full dose images*",
    )
    assert (found.name, found.folders) == ("C002", {"input": low, "target": full})


@pytest.mark.parametrize("pattern", ["full_1mm", "FULL_1MM", "*_1mm", "F*1*", "full_[12]mm"])
def test_a_name_or_a_pattern_chooses_a_folder_whatever_its_case(tmp_path, pattern):
    (found,) = folders_of(
        tmp_path, "P1/quarter", "P1/Full_1mm", "P1/full_3mm", target_gen_folder=pattern
    )
    assert found.folders == {"input": "P1/quarter", "target": "P1/Full_1mm"}


def test_patients_come_in_the_order_of_their_names(tmp_path):
    folders = [f"{patient}/{side}" for patient in ("b", "C", "a") for side in ("low", "full")]
    assert [f.name for f in folders_of(tmp_path, *folders)] == ["C", "a", "b"]


@pytest.mark.parametrize("hidden", [".git", "__MACOSX", "__pycache__"])
def test_hidden_folders_are_no_patients(tmp_path, hidden):
    found = folders_of(tmp_path, "P1/low", "P1/full", f"{hidden}/x")
    assert [f.name for f in found] == ["P1"]


def test_files_beside_the_patients_are_no_patients(tmp_path):
    (tmp_path / "README.md").write_text("scans")
    assert [f.name for f in folders_of(tmp_path, "P1/low", "P1/full")] == ["P1"]


@pytest.mark.parametrize(
    ("side", "folders"),
    [
        ("target", ["P1/quarter", "P1/full_1mm", "P1/full_3mm"]),
        ("input", ["P1/quarter", "P1/low", "P1/full"]),
    ],
)
def test_several_folders_that_fit_are_listed_with_the_option(tmp_path, side, folders):
    with pytest.raises(CallError) as raised:
        folders_of(tmp_path, *folders)
    wanted = folders[1:] if side == "target" else folders[:2]
    names = ", ".join(sorted(folder.removeprefix("P1/") for folder in wanted))
    assert f": {names}; name one with --{side}-gen-folder" in str(raised.value)


@pytest.mark.parametrize(
    ("folders", "option"),
    [(["P1/full"], "--input-gen-folder"), (["P1/low"], "--target-gen-folder")],
    ids=["no input", "no target"],
)
def test_a_missing_folder_names_the_patient_and_the_option(tmp_path, folders, option):
    with pytest.raises(CallError, match=f"'P1'.*{option}"):
        folders_of(tmp_path, *folders)


def test_one_folder_cannot_be_both(tmp_path):
    with pytest.raises(CallError, match="fits both"):
        folders_of(tmp_path, "P1/a", input_gen_folder="a", target_gen_folder="a")


# --- pixels ----------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def read(folder: Path, stored: Any, **options: Any) -> Any:
    write_slice(folder / "one.dcm", stored, **options)
    return read_pixels(str(folder), read_slice(str(folder), "one.dcm"))


@pytest.mark.parametrize(
    ("dtype", "bits", "low", "high"),
    [
        (np.uint16, 12, 0, 4095),
        (np.uint16, 16, 0, 65535),
        (np.int16, 16, -32768, 32767),
        (np.int16, 12, -2048, 2047),
    ],
    ids=["12 bits", "16 bits", "16 bits signed", "12 bits signed"],
)
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian],
    ids=["explicit", "implicit", "big-endian"],
)
def test_native_pixels_are_read_exactly(tmp_path, dtype, bits, low, high, syntax):
    stored = RNG.integers(low, high, (7, 9), endpoint=True).astype(dtype)
    stored[0, :2] = low, high
    found = read(tmp_path, stored, bits_stored=bits, syntax=syntax)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored)


def test_pixels_of_8_bits_are_read_exactly(tmp_path):
    stored = RNG.integers(0, 256, (7, 9)).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path, stored), stored)


@pytest.mark.parametrize(
    "syntax",
    [RLELossless, DeflatedExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless],
    ids=["RLE", "Deflated", "JPEG-LS", "JPEG 2000"],
)
def test_compressed_pixels_are_read_exactly(tmp_path, syntax):
    stored = phantom((33, 40), 0)[0]
    np.testing.assert_array_equal(read(tmp_path, stored, syntax=syntax), stored)


@pytest.mark.parametrize("sign", [0, 1], ids=["unsigned", "signed"])
def test_bits_above_those_stored_are_cleared(tmp_path, sign):
    stored = np.array([[0x7001, 0xF002], [0x0003, 0x17FF]], np.uint16)
    found = read(tmp_path, stored, bits_stored=12, PixelRepresentation=sign)
    assert found.tolist() == [[1, 2], [3, 0x7FF]]


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, 0), (0.5, -1000), (2, 24)])
def test_hu_is_slope_times_value_plus_intercept(tmp_path, slope, intercept):
    stored = RNG.integers(0, 4096, (6, 5)).astype(np.uint16)
    write_slice(tmp_path / "one", stored, slope=slope, intercept=intercept)
    one = read_slice(str(tmp_path), "one")
    expected = [[value * slope + intercept for value in row] for row in stored.tolist()]
    np.testing.assert_array_equal(to_hu(read_pixels(str(tmp_path), one), one), expected)


def test_the_header_says_where_a_slice_lies(tmp_path):
    write_slice(tmp_path / "one", np.zeros((3, 4), np.uint16), z=-12.5, instance=9)
    one = read_slice(str(tmp_path), "one")
    assert (one.rows, one.columns) == (3, 4)
    assert (one.position_mm, one.instance, one.spacing_mm) == (-12.5, 9, (0.75, 0.75))


def test_the_position_is_along_the_normal_of_a_tilted_slice(tmp_path):
    tilted = [1, 0, 0, 0, 0.8, 0.6]  # its normal is (0, -0.6, 0.8)
    write_slice(
        tmp_path / "one",
        np.zeros((3, 4), np.uint16),
        ImagePositionPatient=[5, 10, 20],
        ImageOrientationPatient=tilted,
    )
    assert read_slice(str(tmp_path), "one").position_mm == pytest.approx(10)


# --- pairs -----------------------------------------------------------------------------------


def paired(root: Path, folders: str = "quarter_3mm full_3mm") -> list[tuple[str, str]]:
    found = find_pairs(str(root), "P1", *folders.split())
    assert found.problems == []
    return [(pair.input.file, pair.target.file) for pair in found.pairs]


def test_slices_pair_by_position_whatever_their_names(tmp_path):
    made = write_patient(tmp_path, "P1", 5)
    expected = [(pair.input_file, pair.target_file) for pair in made]
    # Sorted by name, they would pair otherwise.
    assert sorted(full for _, full in expected) != [full for _, full in expected]
    assert paired(tmp_path) == expected


def test_renamed_files_pair_as_before(tmp_path):
    made = write_patient(tmp_path, "P1", 6)
    shuffled = random.Random(1)
    named = {}
    for side in (0, 1):
        files = [(pair.input_file, pair.target_file)[side] for pair in made]
        names = [f"{n}.IMA" for n in range(len(files))]
        shuffled.shuffle(names)
        for file, name in zip(files, names, strict=True):
            named[file] = str(Path(file).with_name(name))
            (tmp_path / file).rename(tmp_path / named[file])
    expected = [(named[pair.input_file], named[pair.target_file]) for pair in made]
    assert paired(tmp_path) == expected


def test_pairs_are_ordered_by_position(tmp_path):
    image = np.zeros((8, 8), np.uint16)
    for name, z in (("a", 30.0), ("b", -60.0), ("c", 0.0)):
        write_slice(tmp_path / "P1/low" / name, image, z=z)
        write_slice(tmp_path / "P1/full" / name, image, z=z)
    names = [Path(low).name for low, _ in paired(tmp_path, "low full")]
    assert names == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("off", "pairs"), [(0.29, 3), (-0.29, 3), (0.31, 0)], ids=["below", "below, back", "above"]
)
def test_positions_may_differ_by_a_tenth_of_the_spacing(tmp_path, off, pairs):
    image = np.zeros((8, 8), np.uint16)
    for number in range(3):
        write_slice(tmp_path / f"P1/low/{number}", image, z=3.0 * number + off)
        write_slice(tmp_path / f"P1/full/{number}", image, z=3.0 * number)
    found = find_pairs(str(tmp_path), "P1", "low", "full")
    assert len(found.pairs) == pairs


def test_without_any_position_slices_pair_by_instance_number(tmp_path):
    image = np.zeros((8, 8), np.uint16)
    for number in range(4):
        for side, name in (("low", number), ("full", 9 - number)):
            write_slice(
                tmp_path / f"P1/{side}/{name}",
                image,
                instance=number,
                ImagePositionPatient=None,
            )
    expected = [(f"P1/low/{n}", f"P1/full/{9 - n}") for n in range(4)]
    assert paired(tmp_path, "low full") == expected


STRAYS = ["readme.txt", "Thumbs.db", ".DS_Store", "LICENSE", "notes.csv", "preview.PNG", "DICOMDIR"]


def test_stray_files_are_counted_and_left_alone(tmp_path):
    made = write_patient(tmp_path, "P1", 2)
    for name in STRAYS:
        (tmp_path / "P1/full_3mm" / name).write_bytes(b"no slice")
    found = find_pairs(str(tmp_path), "P1", "quarter_3mm", "full_3mm")
    assert found.problems == []
    assert found.strays == len(STRAYS)
    assert len(found.pairs) == len(made)


# --- what is refused, seen from the command line ---------------------------------------------


def refused(tmp_path: Path, *options: str) -> Ended:
    """Run on `scans`; check that it ended in an error and left nothing but folders behind."""
    ended = called(tmp_path / "cwd", "--input-folder", tmp_path / "scans", "--patch-size", "p24")
    assert ended.status == 1
    assert ended.err.startswith("main.py: error: ")
    assert not {p for p in contents(tmp_path / "cwd") if re.search(r"\.(h5|partial|png)", p)}
    return ended


def lines_about(file: str, ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if file in line]


def spoil(path: Path, how: str) -> None:
    raw = path.read_bytes()
    where = raw.index(b"\xe0\x7f\x10\x00")
    spoiled = {
        "empty": b"",
        "foreign": b"something else altogether" * 40,
        "cut in the header": raw[: where // 2],
        "cut before the pixels": raw[:where],
        "cut in the pixels": raw[: where + 500],
    }
    path.write_bytes(spoiled[how])


@pytest.mark.parametrize(
    "how",
    ["empty", "foreign", "cut in the header", "cut before the pixels", "cut in the pixels"],
)
@pytest.mark.parametrize("side", ["input", "target"])
def test_a_bad_file_is_named_in_one_line(tmp_path, how, side):
    made = write_patient(tmp_path / "scans", "P1", 3)
    bad = made[1].input_file if side == "input" else made[1].target_file
    spoil(tmp_path / "scans" / bad, how)
    assert len(lines_about(bad, refused(tmp_path))) == 1


def test_pixels_that_do_not_decode_are_named_in_one_line(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 2)
    path = tmp_path / "scans" / made[1].target_file
    write_slice(path, made[1].target, z=made[1].z, syntax=RLELossless)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1500] + bytes(1500))
    assert len(lines_about(made[1].target_file, refused(tmp_path))) == 1


def test_all_bad_files_are_named_at_once(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 3)
    made += write_patient(tmp_path / "scans", "P2", 2)
    bad = [made[0].input_file, made[2].target_file, made[4].target_file]
    for file in bad:
        spoil(tmp_path / "scans" / file, "empty")
    ended = refused(tmp_path)
    assert all(file in ended.err for file in bad)


def test_a_slice_without_its_partner_is_named(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 3)
    (tmp_path / "scans" / made[1].target_file).unlink()
    assert made[1].input_file in refused(tmp_path).err


def test_two_slices_at_one_position_are_named(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 3)
    twin = "P1/full_3mm/twin.dcm"
    write_slice(tmp_path / "scans" / twin, made[1].target, z=made[1].z)
    ended = refused(tmp_path)
    assert made[1].target_file in ended.err
    assert twin in ended.err


@pytest.mark.parametrize(
    ("tags", "values"),
    [
        ({"PixelSpacing": [0.5, 0.5]}, ["0.75", "0.5"]),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, ["-1"]),
        ({"ImagePositionPatient": [-90, -120, -147]}, ["-100", "-90"]),
    ],
    ids=["spacing", "orientation", "position in the plane"],
)
def test_slices_of_other_geometry_are_no_pair(tmp_path, tags, values):
    made = write_patient(tmp_path / "scans", "P1", 3)
    write_slice(tmp_path / "scans" / made[1].target_file, made[1].target, z=made[1].z, **tags)
    ended = refused(tmp_path)
    named = (made[1].input_file, made[1].target_file, *values)
    assert all(text in ended.err for text in named)


def test_slices_of_other_size_are_no_pair(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 3)
    image = phantom((64, 72), 1)[1]
    write_slice(tmp_path / "scans" / made[1].target_file, image, z=made[1].z)
    ended = refused(tmp_path)
    assert all(t in ended.err for t in (made[1].input_file, made[1].target_file, "80", "72"))


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"Modality": "MR"}, "MR"),
        ({"RescaleSlope": 0}, "Slope"),
        ({"RescaleSlope": None}, "Slope"),
        ({"RescaleIntercept": None}, "Intercept"),
        ({"NumberOfFrames": 2}, "frames"),
        ({"SamplesPerPixel": 3}, "samples"),
        ({"PhotometricInterpretation": "RGB"}, "RGB"),
        ({"Rows": 40000}, "40000"),
        ({"Rows": 63}, "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_no_rule_covers_is_refused_by_name(tmp_path, tags, named):
    made = write_patient(tmp_path / "scans", "P1", 2)
    write_slice(tmp_path / "scans" / made[0].target_file, made[0].target, z=made[0].z, **tags)
    (line,) = lines_about(made[0].target_file, refused(tmp_path))
    assert named in line


def test_a_folder_without_slices_is_named(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    for path in (tmp_path / "scans/P1/full_3mm").iterdir():
        path.unlink()
    assert "P1/full_3mm" in refused(tmp_path).err
