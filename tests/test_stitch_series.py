"""Whole series from patches: DICOM, .npy and NIfTI files, and pixels without a patch."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from ctpatches import __main__ as command
from ctpatches import convert, stitch, stitch_command
from ctpatches.messages import RunError
from ctpatches.stitching import Image
from tests.editing import edit
from tests.running import called
from tests.scans import AXIAL, Made, phantom, write_slice, write_tree

SHAPE = (100, 120)
PATIENTS = {"A": 3, "B": 2}
#: Axial with a rotated table, and a plane oblique to all axes.
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


class Files:
    """A folder of scans and h5 files of it: `full` covers every pixel, `air` leaves out air."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "scans"
        self.pairs = write_tree(self.root, PATIENTS, shape=SHAPE)
        for name, options in (("full", ()), ("air", ("--air_threshold", "--rot_augment"))):
            path = folder / f"{name}.h5"
            where = ("--input-folder", self.root, "--output-fname", path, "--no-report")
            ended = called(folder, *where, "--patch-size", "p24", *options)
            assert ended.status == 0, ended.err
        self.full, self.air = folder / "full.h5", folder / "air.h5"

    def of(self, patient: str) -> list[Made]:
        return [pair for pair in self.pairs if pair.patient == patient]

    def covered(self) -> NDArray[np.bool_]:
        """Return which pixels of each pair are in a patch of `air`."""
        out = np.zeros((len(self.pairs), *SHAPE), bool)
        with h5py.File(self.air) as file:
            for pair, row, col in zip(
                *(file[f"patch/{n}"][:] for n in ("pair", "row", "col")), strict=True
            ):
                out[pair, row : row + 24, col : col + 24] = True
        return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("series"))


class Called:
    """The command was called with some words."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        self.status = command.main(["stitch", *map(str, words)])
        self.out, self.err = capsys.readouterr()


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- DICOM -----------------------------------------------------------------------------------


def test_all_patients_become_dicom_series(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    ended = Called(capsys, files.full, "--all", "--source", files.root, "--output", out)
    assert (ended.status, ended.err) == (0, "")
    expected = [f"{pair.patient}/{Path(pair.target_file).name}" for pair in files.pairs]
    assert contents(tmp_path) == sorted(f"new/out/{name}" for name in expected)
    uids: dict[str, set[str]] = {name: set() for name in PATIENTS}
    for pair, name in zip(files.pairs, expected, strict=True):
        derived = pydicom.dcmread(out / name)
        source = pydicom.dcmread(files.root / pair.target_file)
        np.testing.assert_array_equal(derived.pixel_array, pair.target)
        assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        uids[pair.patient].add(derived.SeriesInstanceUID)
    assert [len(found) for found in uids.values()] == [1, 1]
    assert uids["A"] != uids["B"]
    for patient, (uid,) in uids.items():
        reader = sitk.ImageSeriesReader()
        assert reader.GetGDCMSeriesIDs(str(out / patient)) == (uid,)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out / patient)))
        volume = sitk.GetArrayFromImage(reader.Execute())
        np.testing.assert_array_equal(volume, [p.target - 1024.0 for p in files.of(patient)])
        assert f"patient    {patient}, {PATIENTS[patient]} slices\nseries     {uid}\n" in ended.out


def test_a_series_is_replaced_as_a_whole_and_nothing_else_is_lost(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (files.full, "--patient", "B", "--source", files.root, "--output", tmp_path)
    assert Called(capsys, *words).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "B").iterdir()}
    ended = Called(capsys, *words)
    assert (ended.status, "exists; add --overwrite" in ended.err) == (2, True)
    (tmp_path / "B" / "notes.txt").write_text("mine")
    ended = Called(capsys, *words, "--overwrite")
    assert (ended.status, "notes.txt' is not of this series" in ended.err) == (1, True)
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "B" / "notes.txt").unlink()
    assert Called(capsys, *words, "--overwrite", "--series-uid", "2.25.7").status == 0
    assert contents(tmp_path) == sorted(f"B/{path.name}" for path in before)
    assert {pydicom.dcmread(path).SeriesInstanceUID for path in before} == {"2.25.7"}


def test_a_failure_leaves_no_part_of_a_series(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(files.full) as file:
        values = file["target"][:]
        values[int(file["pair/first_patch"][2])] = np.nan  # in the last slice of A
    np.save(tmp_path / "values.npy", values)
    words = (files.full, "--all", "--values", tmp_path / "values.npy", "--source", files.root)
    ended = Called(capsys, *words, "--output", tmp_path / "out")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "values contain NaN" in ended.err
    assert contents(tmp_path) == ["values.npy"]


def test_ctrl_c_ends_in_one_line_and_leaves_complete_series_only(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(values: Any, file: Any, pair: int, *options: Any) -> Image:
        if pair == PATIENTS["A"] + 1:  # the last slice of B
            signal.raise_signal(signal.SIGINT)
        return stitch(values, file, pair, *options)

    monkeypatch.setattr(stitch_command, "stitch", interrupted)
    ended = Called(capsys, files.full, "--all", "--source", files.root, "--output", tmp_path)
    assert (ended.status, ended.err) == (130, "ctpatches: error: interrupted\n")
    expected = [f"A/{Path(pair.target_file).name}" for pair in files.of("A")]
    assert contents(tmp_path) == sorted(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["A"]


def test_a_folder_of_source_slices_is_never_replaced(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(files.root, tmp_path / "scans"))
    (root / "B").rename(root / "old")
    (root / "B").symlink_to(root / "old" / "full_3mm")  # where the series would be written
    for role in ("full", "quarter"):
        (root / "old" / "full_3mm" / f"{role}_3mm").symlink_to(root / "old" / f"{role}_3mm")
    before = contents(root / "old")
    words = (files.full, "--patient", "B", "--source", root, "--output", root, "--overwrite")
    ended = Called(capsys, *words)
    assert (ended.status, "is the source slice" in ended.err) == (2, True)
    assert contents(root / "old") == before


# --- volumes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [("v.npy",), ("folder", "--format", "npy")])
def test_a_volume_is_in_the_order_of_positions(
    output: tuple[str, ...], files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (files.full, "--patient", "A", "--role", "input", "--unit", "stored", "--output")
    ended = Called(capsys, *words, tmp_path / output[0], *output[1:])
    assert (ended.status, ended.err) == (0, "")
    path = tmp_path / output[0] if len(output) == 1 else tmp_path / "folder" / "A.npy"
    volume = np.load(path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, [pair.input for pair in files.of("A")])


def test_a_nifti_file_has_the_values_and_the_geometry_of_the_slices(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nibabel = pytest.importorskip("nibabel")
    words = (files.full, "--all", "--source", files.root, "--format", "nifti")
    ended = Called(capsys, *words, "--output", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert contents(tmp_path) == ["A.nii.gz", "B.nii.gz"]
    image = nibabel.load(tmp_path / "A.nii.gz")
    expected = np.array([pair.target - 1024.0 for pair in files.of("A")])
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0), expected)
    # Row 0 and column 0 lie 100 mm to the right and 120 mm to the front of the patient.
    affine = [[-0.75, 0, 0, 100], [0, -0.75, 0, 120], [0, 0, 3, -150], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, np.array(affine), atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    single = (files.full, "--pair", 1, "--source", files.root, "--output", tmp_path / "one.nii")
    assert Called(capsys, *single).status == 0
    one = nibabel.load(tmp_path / "one.nii")
    np.testing.assert_allclose(one.affine[:3, 2:], [[0, 100], [0, 120], [3, -147]], atol=1e-5)


def oblique_slices(folder: Path, orientation: tuple[float, ...], distances_mm: Any) -> list[Path]:
    """Write slices at distances along the normal of a plane."""
    normal = np.cross(orientation[:3], orientation[3:])
    out = []
    for number, distance_mm in enumerate(distances_mm):
        position = (np.array([-100.0, -120.0, 30.0]) + distance_mm * normal).tolist()
        tags = {"ImagePositionPatient": position, "ImageOrientationPatient": list(orientation)}
        tags |= {"PixelSpacing": [0.7, 0.9], "SeriesInstanceUID": "2.25.1"}
        image = phantom((20, 30), number)[1]
        out.append(write_slice(folder / f"{number}.dcm", image, instance=number + 1, **tags))
    return out


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("step_mm", [2.5, -2.5])
def test_simpleitk_finds_the_same_geometry_in_nifti_and_dicom(
    orientation: tuple[float, ...], step_mm: float, tmp_path: Path
) -> None:
    pytest.importorskip("nibabel")
    from ctpatches.nifti_export import affine, write_nifti

    paths = oblique_slices(tmp_path, orientation, np.arange(4) * step_mm)
    volume: Image = np.array([pydicom.dcmread(p).pixel_array - 1024.0 for p in paths], np.float32)
    to_mm = affine([(str(path), np.nan) for path in paths], "v.nii.gz")
    write_nifti(volume, to_mm, str(tmp_path / "v.nii.gz"))
    found = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), volume)
    for number, path in enumerate(paths):
        source = sitk.ReadImage(str(path))
        for column, row in ((0, 0), (29, 0), (0, 19)):
            place = source.TransformIndexToPhysicalPoint((column, row, 0))
            here = found.TransformIndexToPhysicalPoint((column, row, number))
            np.testing.assert_allclose(here, place, atol=1e-3)


def test_slices_without_one_affine_map_are_refused_for_nifti(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    from ctpatches.nifti_export import affine

    def sources(distances_mm: Any) -> list[tuple[str, float]]:
        return [(str(p), np.nan) for p in oblique_slices(tmp_path, OBLIQUE, distances_mm)]

    affine(sources([0, 3.01, 6, 8.99]), "v.nii")  # rounded positions
    with pytest.raises(RunError, match=r"'v.nii': slices lie 3 to 6 mm apart; NIfTI has one"):
        affine(sources([0, 3, 9, 12]), "v.nii")
    with pytest.raises(RunError, match="0 to 0 mm apart"):
        affine(sources([3, 3]), "v.nii")
    turned = sources([0, 3])
    edit(Path(turned[1][0]), PixelSpacing=[0.7, 0.8])
    with pytest.raises(RunError, match="slices differ in ImageOrientationPatient or PixelSpacing"):
        affine(turned, "v.nii")
    edit(Path(turned[1][0]), PixelSpacing=None)
    with pytest.raises(RunError, match="a slice has no valid PixelSpacing"):
        affine(turned, "v.nii")


def test_slices_of_two_sizes_are_no_volume_but_a_dicom_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, shape in enumerate([(64, 80), (64, 81)]):
        for folder, image in zip(("quarter", "full"), phantom(shape, number), strict=True):
            path = tmp_path / "scans" / "A" / f"{folder}_3mm" / f"{number}.dcm"
            write_slice(path, image, z=3.0 * number, instance=number + 1)
    made = ("--input-folder", tmp_path / "scans", "--output-fname", tmp_path / "out.h5")
    assert called(tmp_path, *made, "--no-report", "--anatomy-check", "off").status == 0
    words = (tmp_path / "out.h5", "--patient", "A", "--source", tmp_path / "scans", "--output")
    ended = Called(capsys, *words, tmp_path / "v.npy")
    assert (ended.status, "slices of 'A' differ in size; write DICOM" in ended.err) == (1, True)
    assert Called(capsys, *words, tmp_path / "out").status == 0


# --- pixels without a patch ------------------------------------------------------------------


def test_pixels_without_a_patch_are_counted_with_a_warning(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = ~files.covered()
    pixels = empty.size
    assert 0 < empty.sum() < pixels
    ended = Called(capsys, files.air, "--all", "--format", "npy", "--output", tmp_path)
    assert ended.status == 0
    of_a = empty[: PATIENTS["A"]]
    share = f"{of_a.sum()} of {of_a.size} pixels ({of_a.mean():.2%})"
    assert f"patient    A, 3 slices\nno patch   {share}: NaN\n" in ended.out
    warning = f"ctpatches: warning: {empty.sum()} of {pixels} pixels have no patch and are NaN; "
    assert ended.err.startswith(warning)
    assert ended.err.count("\n") == 1
    np.testing.assert_array_equal(np.isnan(np.load(tmp_path / "A.npy")), of_a)
    words = ("--pair", 0, "--source", files.root, "--output", tmp_path / "a.dcm")
    ended = Called(capsys, files.air, *words)
    assert "pixels have no patch and are air, -1024 HU; --fill input" in ended.err
    assert (pydicom.dcmread(tmp_path / "a.dcm").pixel_array[empty[0]] == 0).all()
    ended = Called(capsys, files.full, "--pair", 0, "--output", tmp_path / "full.npy")
    assert ended.out + ended.err == f"output     {tmp_path / 'full.npy'}\n"


def test_they_can_be_filled_with_a_number(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--pair", 1, "--fill", "-7.5", "--output", tmp_path / "v.npy")
    ended = Called(capsys, files.air, *words)
    assert (ended.status, ended.err) == (0, "")
    assert "%): -7.5\n" in ended.out
    covered = files.covered()[1]
    expected = np.where(covered, files.pairs[1].target - 1024.0, -7.5)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    np.testing.assert_array_equal(stitch(None, files.air, 1, fill=-7.5), expected)


def test_they_can_be_filled_with_the_input_slice(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (files.air, "--all", "--source", files.root, "--fill", "input", "--output", tmp_path)
    ended = Called(capsys, *words)
    assert (ended.status, ended.err) == (0, "")
    assert "%): the input slice\n" in ended.out
    assert Called(capsys, *words, "--format", "npy").status == 0
    covered = files.covered()
    for pair, made in enumerate(files.pairs):
        expected = np.where(covered[pair], made.target, made.input)
        derived = pydicom.dcmread(tmp_path / made.patient / Path(made.target_file).name)
        np.testing.assert_array_equal(derived.pixel_array, expected)
        fill = (made.input - 1024.0).astype(np.float32)
        image = stitch(None, files.air, pair, fill=fill)
        np.testing.assert_array_equal(image, expected - 1024.0)
    np.testing.assert_array_equal(np.load(tmp_path / "B.npy")[-1], image)


def test_an_input_slice_that_changed_fills_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(files.root, tmp_path / "scans"))
    words = (files.air, "--pair", 0, "--source", root, "--fill", "input", "--output")
    changed = files.pairs[0].input.copy()
    changed[0, 0] += 1
    for image, problem in (
        (changed, "has other pixels than the patches were cut from"),
        (changed[:-1], "has 99 x 120 pixels; expected: 100 x 120"),
    ):
        write_slice(root / files.pairs[0].input_file, image, z=files.pairs[0].z)
        ended = Called(capsys, *words, tmp_path / "v.npy")
        assert (ended.status, problem in ended.err) == (1, True), ended.err
    assert not (tmp_path / "v.npy").exists()


# --- a network's output ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npy", "h5", "patient"])
def test_values_may_be_for_a_whole_file_or_for_a_patient(
    kind: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(files.full) as file:
        first, n = (int(file[f"pair/{name}"][3]) for name in ("first_patch", "patches"))
        values = np.rint(file["target"][:] * 0.5)
    if kind == "patient":
        values = values[first:]
    path = str(tmp_path / "values.npy")
    np.save(path, values)
    if kind == "h5":
        path = str(tmp_path / "values.h5")
        with h5py.File(path, "w") as file:
            file["net/output"] = values
        path += ":net/output"
    words = (files.full, "--patient", "B", "--values", path, "--source", files.root)
    ended = Called(capsys, *words, "--output", tmp_path / "out")
    assert (ended.status, ended.err) == (0, "")
    for made in files.of("B"):
        derived = pydicom.dcmread(tmp_path / "out" / "B" / Path(made.input_file).name)
        np.testing.assert_array_equal(derived.pixel_array, np.rint(made.target * 0.5))
    image = stitch(values, files.full, 3, unit="stored")
    np.testing.assert_array_equal(image, np.rint(files.pairs[3].target * 0.5))
    np.save(tmp_path / "short.npy", values[: n + 1])
    short = ("--patient", "B", "--values", tmp_path / "short.npy", "--output", "x.npy")
    ended = Called(capsys, files.full, *short)
    assert (ended.status, f"values for {n + 1} patches; expected: " in ended.err) == (1, True)


def test_clipped_pixels_of_a_series_are_counted(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(files.full) as file:
        values = file["target"][:] + 3000
    np.save(tmp_path / "v.npy", values)
    words = (files.full, "--patient", "A", "--values", tmp_path / "v.npy", "--source", files.root)
    ended = Called(capsys, *words, "--output", tmp_path / "out")
    pixels = np.array([pair.target for pair in files.of("A")])
    clipped = int((pixels > 4095 - 3000).sum())
    assert clipped
    assert f"clipped    {clipped} of {pixels.size} pixels to -1024 ... 3071 HU\n" in ended.out


def test_of_a_file_of_views_values_cannot_be_its_patches(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "views.h5"
    convert(files.full, path, store="views")
    ended = Called(capsys, path, "--pair", 0, "--values", f"{path}:input", "--output", "x.npy")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "no dataset 'input'; expected: --role input without --values" in ended.err


# --- invalid calls ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--pair 0 --all --output x.npy", 2, "not allowed with argument --pair"),
        ("--patient C --output x.npy", 1, "no patient 'C'; expected: one of: 'A', 'B'"),
        ("--all --output x.npy", 2, "for a series; expected: a folder, and --format npy"),
        ("--patient A --output x.dcm", 2, "for a series; expected: a folder, and --format dicom"),
        ("--patient A --output x", 2, "DICOM needs --source, the input folder"),
        ("--patient A --output x.nii.gz", 2, "NIfTI needs --source, the input folder"),
        (
            "--patient A --source FILE --output x",
            2,
            "is not a folder; DICOM needs the input",
        ),
        ("--pair 0 --fill input --output x.npy", 2, "--fill input needs --source"),
        ("--pair 0 --fill air --output x.npy", 2, "'air'; expected: a number or input"),
        ("--pair 0 --fill nan --output x.npy", 2, "'nan'; expected: a number or input"),
        ("--pair 0 --fill input --source FILE --output x.npy", 2, "--fill input needs the input"),
        ("--pair 0 --fill input --unit file --source . --output x.npy", 2, "expected: hu"),
        ("--pair 0 --fill input --scale 0.8 --source . --output x.npy", 2, "no source slice has"),
        ("--all --source . --series-uid 2.25.1 --output x", 2, "--series-uid is that of one"),
        ("--all --source . --output x", 1, "no slice './A/full_3mm/0003.dcm'"),
        ("--pair 0 --values FILE:none --output x.npy", 1, "has no dataset 'none'; expected: --val"),
        ("--pair 0 --values no.h5:input --output x.npy", 1, "'no.h5': No such"),
        ("--pair 9 --source . --output x.nii", 1, "pair 9 of 5; expected: 0 to 4"),
    ],
)
def test_an_invalid_call_ends_in_one_line_and_writes_nothing(
    words: str,
    status: int,
    message: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ".nii" in words:
        pytest.importorskip("nibabel")
    monkeypatch.chdir(tmp_path)
    ended = Called(capsys, files.full, *words.replace("FILE", str(files.full)).split())
    assert (ended.status, ended.err.count("\n")) == (status, 1)
    assert message in ended.err
    assert not list(tmp_path.iterdir())


def test_nifti_without_nibabel_ends_in_one_line(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)  # as where it is not installed
    words = ("--patient", "A", "--source", files.root, "--output", tmp_path / "x.nii.gz")
    ended = Called(capsys, files.full, *words)
    assert ended.err == "ctpatches: error: NIfTI needs nibabel: pip install nibabel\n"
    assert ended.status == 1


def test_a_forged_name_of_a_patient_writes_nowhere_else(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = Path(shutil.copy(files.full, tmp_path / "forged.h5"))
    with h5py.File(forged, "r+") as file:
        names = file["pair/patient"]
        width = names.dtype.itemsize
        del file["pair/patient"]
        file["pair/patient"] = np.array([b"../up"] * len(files.pairs), f"S{max(width, 5)}")
    words = ("--all", "--format", "npy", "--output", tmp_path / "a" / "b")
    ended = Called(capsys, forged, *words)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "names the patient '../up'" in ended.err
    assert contents(tmp_path) == ["forged.h5"]
