"""Patches put together again: the slice itself, and a DICOM file that a viewer takes."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from ctpatches import __main__ as command
from ctpatches import stitch
from ctpatches.dicom_export import write_dicom
from ctpatches.stitch_command import check_texts
from ctpatches.stitching import blend
from pipeline.options import PATCH_OVERLAPS
from tests.editing import edit
from tests.naive import downscale
from tests.running import called, run, serial
from tests.scans import Made, write_patient, write_slice
from utils import CallError, RunError

COMMAND: list[str | Path] = [sys.executable, "-m", "ctpatches", "stitch"]
SHAPE = (128, 141)
NORMALISATIONS = (
    *("unity_independent", "unity_wrt_ld", "std_independent", "std_wrt_ld"),
    *("hu_window", "dataset_unity", "dataset_std"),
)


@dataclass(frozen=True)
class File:
    """An h5 file and the pairs in it, in its order."""

    path: Path
    root: Path
    pairs: list[Made]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> File:
    """Two pairs of one patient; no h5 file yet."""
    root = tmp_path_factory.mktemp("scans")
    return File(root, root, write_patient(root, "A", 2, shape=SHAPE))


Maker = Callable[..., File]


@pytest.fixture(scope="module")
def make(scans: File, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Return a function that makes a file with options, once for the same ones."""
    made: dict[Any, File] = {}

    def make(*options: str, of: File | None = None) -> File:
        source = of or scans
        key = (source.root, *options)
        if key not in made:
            path = tmp_path_factory.mktemp("files") / "out.h5"
            where = ("--input-folder", source.root, "--output-fname", path, "--no-report")
            ended = called(path.parent, *where, *options)
            assert ended.status == 0, ended.err
            made[key] = File(path, source.root, source.pairs)
        return made[key]

    return make


def patches_of(file: File, pair: int, role: str = "target") -> NDArray[np.float32]:
    """Return the patches of a pair as they are in the file."""
    with h5py.File(file.path) as opened:
        start, n = (int(opened[f"pair/{name}"][pair]) for name in ("first_patch", "patches"))
        return np.asarray(opened[role][start : start + n])


def column(file: File, pair: int, name: str) -> NDArray[Any]:
    """Return what the file says of each patch of a pair."""
    with h5py.File(file.path) as opened:
        return np.asarray(opened[f"patch/{name}"][:][opened["patch/pair"][:] == pair])


def images_of(made: Made) -> dict[str, NDArray[Any]]:
    """Return the stored values of both slices of a pair."""
    return {"input": made.input, "target": made.target}


# --- the slice again -------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("size", [*(f"p{n}" for n in PATCH_OVERLAPS), "p37"])
def test_every_file_gives_back_the_slices_bit_for_bit(size: str, edge: str, make: Maker) -> None:
    custom = ("--overlap", "11") if size == "p37" else ()
    file = make("--patch-size", size, "--edge", edge, *custom)
    for pair, made in enumerate(file.pairs):
        for role, stored in images_of(made).items():
            image = stitch(None, file.path, pair, role, unit="stored")
            assert image.dtype == np.float32
            assert image.tobytes() == stored.astype(np.float32).tobytes()
            np.testing.assert_array_equal(stitch(None, file.path, pair, role), stored - 1024.0)


AUGMENTED = ("--patch-size", "p42", "--rot_augment", "--ds_augment")


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("layout", ["torch", "tf"])
@pytest.mark.parametrize("scale", [1, 0.8, 0.6])
def test_every_view_of_an_augmented_file_comes_back(
    scale: float, layout: str, edge: str, make: Maker
) -> None:
    file = make(*AUGMENTED, "--edge", edge, "--tensor-format", layout)
    for pair, made in enumerate(file.pairs):
        for role, stored in images_of(made).items():
            image = stitch(None, file.path, pair, role, scale, unit="file")
            np.testing.assert_array_equal(image, downscale(stored.astype(np.float32), scale))


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_the_normalisation_is_undone(kind: str, make: Maker) -> None:
    file = make("--patch-size", "p42", "--normalization-type", kind)
    for pair, made in enumerate(file.pairs):
        for role, stored in images_of(made).items():
            image = stitch(None, file.path, pair, role)
            np.testing.assert_allclose(image, stored - 1024.0, rtol=0, atol=1e-3)
            image = stitch(None, file.path, pair, role, unit="stored")
            np.testing.assert_allclose(image, stored, rtol=0, atol=1e-3)


def test_hu_by_slope_and_intercept(make: Maker, tmp_path: Path) -> None:
    pairs = write_patient(tmp_path, "A", 1, shape=SHAPE, slope=0.5, intercept=-900)
    scans = File(tmp_path, tmp_path, pairs)
    for options in ((), ("--intensity", "hu")):
        file = make("--patch-size", "p42", *options, of=scans)
        wanted = pairs[0].target * 0.5 - 900
        np.testing.assert_array_equal(stitch(None, file.path, 0), wanted)
        np.testing.assert_array_equal(stitch(None, file.path, 0, unit="stored"), pairs[0].target)


def test_air_that_was_left_out_is_nan_or_as_asked(make: Maker) -> None:
    file = make("--patch-size", "p24", "--air_threshold")
    covered = np.zeros(SHAPE, bool)
    for row, col in zip(column(file, 0, "row"), column(file, 0, "col"), strict=True):
        covered[row : row + 24, col : col + 24] = True
    assert 0 < covered.sum() < covered.size
    image = stitch(None, file.path, 0)
    np.testing.assert_array_equal(np.isnan(image), ~covered)
    np.testing.assert_array_equal(image[covered], file.pairs[0].target[covered] - 1024.0)
    filled = stitch(None, file.path, 0, fill=-1024)
    np.testing.assert_array_equal(filled, np.where(covered, image, -1024))


def test_a_pair_of_nothing_but_air_is_all_fill(make: Maker, tmp_path: Path) -> None:
    pairs = write_patient(tmp_path, "A", 1, shape=SHAPE)
    for side in ("quarter", "full"):
        air = np.zeros(SHAPE, np.uint16)
        write_slice(tmp_path / f"A/{side}_3mm/air.dcm", air, z=30, instance=9)
    file = make("--air_threshold", "--anatomy-check", "off", of=File(tmp_path, tmp_path, pairs))
    assert np.isnan(stitch(None, file.path, 1)).all()
    empty = np.empty((0, 55, 55), np.float32)
    assert (stitch(empty, file.path, 1, fill=-1024) == -1024).all()


# --- a network's output ----------------------------------------------------------------------


def naive_mean(patches: Any, rows: Any, cols: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the weighted mean at every pixel, one pixel at a time."""
    size = patches.shape[-1]
    out = np.full(shape, np.nan)
    for r in range(shape[0]):
        for c in range(shape[1]):
            total = weights = 0.0
            for patch, row, col in zip(patches, rows, cols, strict=True):
                i, j = r - int(row), c - int(col)
                if 0 <= i < size and 0 <= j < size:
                    weight = math.prod(
                        1e-3 + math.sin(math.pi * (k + 0.5) / size) ** 2 for k in (i, j)
                    )
                    total += weight * float(patch[i, j])
                    weights += weight
            if weights:
                out[r, c] = total / weights
    return out


def test_where_patches_differ_the_mean_is_weighted() -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(0, 100, (6, 8, 8)).astype(np.float32)
    rows, cols = [0, 0, 5, 5, 9, 0], [0, 6, 0, 6, 3, 0]
    found = blend(patches, rows, cols, (14, 13))
    np.testing.assert_allclose(found, naive_mean(patches, rows, cols, (14, 13)), rtol=1e-6)


windows = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 16)), max_size=12)
floats = st.floats(-(2.0**100), 2.0**100, width=32)


@given(windows, st.integers(1, 9), st.lists(floats, min_size=1, max_size=7))
def test_equal_overlaps_blend_to_themselves(
    starts: list[tuple[int, int]], size: int, values: list[float]
) -> None:
    shape = (20, 17)
    # An image that goes on past its border, as `--edge pad` has it.
    image = np.resize(np.array(values, np.float32), (30, 27))
    cut = [image[r : r + size, c : c + size] for r, c in starts]
    patches = np.array(cut, np.float32).reshape(-1, size, size)
    covered = np.zeros_like(image, bool)
    for row, col in starts:
        covered[row : row + size, col : col + size] = True
    found = blend(patches, [r for r, _ in starts], [c for _, c in starts], shape)
    wanted = np.where(covered, image, np.float32(np.nan))[:20, :17]
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


@given(st.lists(st.floats(-5000, 5000, width=32), min_size=2, max_size=9))
def test_a_blend_lies_between_what_is_blended(values: list[float]) -> None:
    patches = np.tile(np.array(values, np.float32)[:, None, None], (1, 4, 4))
    found = blend(patches, [0] * len(values), [0] * len(values), (4, 4))
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5, atol=1e-3)
    assert found.min() >= min(values)
    assert found.max() <= max(values)


@pytest.mark.parametrize("shape", [(42, 42), (1, 42, 42), (42, 42, 1)])
def test_values_may_have_any_layout_and_be_those_of_one_scale(
    shape: tuple[int, ...], make: Maker
) -> None:
    file = make(*AUGMENTED)
    values = patches_of(file, 1).reshape(-1, *shape)
    of_scale = np.isclose(column(file, 1, "scale"), 0.8)
    for given_ in (values, values[of_scale], values.astype(np.float64)):
        image = stitch(given_, file.path, 1, scale=0.8, unit="stored")
        wanted = downscale(file.pairs[1].target.astype(np.float32), 0.8)
        np.testing.assert_array_equal(image, wanted)


def test_all_orientations_of_a_window_count(make: Maker) -> None:
    file = make("--patch-size", "p42", "--rot_augment")
    flat = patches_of(file, 0) * 0
    turned = column(file, 0, "orientation") > 0
    flat[turned] = 3  # two of the three patches of each window
    np.testing.assert_allclose(stitch(flat, file.path, 0, unit="stored"), 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.zeros((3, 42, 42)),
            "expected: 16 patches of 42 x 42, or all 16 of the pair, or all 32 of",
        ),
        (np.zeros((16, 42, 41)), "expected: 16 patches of 42 x 42"),
        (np.zeros((16, 2, 42, 42)), "expected: 16 patches of 42 x 42"),
        (np.zeros(16), "expected: 16 patches of 42 x 42"),
        (np.full((16, 42, 42), np.nan), "values contain NaN"),
        (np.full((16, 42, 42), np.inf), "values contain NaN or infinity"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: Any, words: str, make: Maker) -> None:
    file = make("--patch-size", "p42")
    with pytest.raises(ValueError, match=words):
        stitch(values, file.path, 0)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"pair": 2}, IndexError, "pair 2 of 2; expected: 0 to 1"),
        ({"pair": -1}, IndexError, "pair -1 of 2"),
        ({"scale": 0.8}, ValueError, r"scale 0\.8; the file has: 1"),
        ({"role": "both"}, ValueError, "expected: input or target"),
        ({"unit": "mm"}, ValueError, "hu, stored, file"),
    ],
)
def test_what_is_not_there_is_refused(
    arguments: dict[str, Any], kind: type[Exception], words: str, make: Maker
) -> None:
    file = make("--patch-size", "p42")
    with pytest.raises(kind, match=words):
        stitch(None, file.path, **{"pair": 0, **arguments})


# --- DICOM -----------------------------------------------------------------------------------

ITEM = pydicom.Dataset()
ITEM.ReferencedSOPClassUID = CTImageStorage
ITEM.add_new(0x00281052, "DS", "-1024")
ITEM.add_new(0x00280106, "US", 513)
TAGS: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Zoë^Ünal",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "KERNEL"],
    "StudyInstanceUID": generate_uid(),
    "SeriesInstanceUID": generate_uid(),
    "FrameOfReferenceUID": generate_uid(),
    "SmallestImagePixelValue": 3,
    "PixelPaddingValue": 0,
    "RequestAttributesSequence": [ITEM],
    "WindowCenter": [40, -600],
    "WindowWidth": [400, 1500],
    "GantryDetectorTilt": 0,
}
KEPT = (
    *("SOPClassUID", "Modality", "PatientName", "PatientID", "StudyInstanceUID", "SliceThickness"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("InstanceNumber", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation"),
    *("WindowCenter", "WindowWidth", "GantryDetectorTilt", "RequestAttributesSequence"),
)


def derive(
    image: NDArray[np.float32], source: Path, out: Path, description: str = "test"
) -> dict[tuple[float, float], int]:
    """Write a slice of the series 2.25.7; return the pixels that were clipped, by range."""
    return write_dicom(image, str(source), math.nan, str(out), "2.25.7", description)


def stored_image(dtype: type = np.uint16, shape: tuple[int, int] = (7, 9)) -> NDArray[Any]:
    low, top = {"u1": (0, 256), "u2": (0, 4096), "i2": (-1000, 2000)}[np.dtype(dtype).str[1:]]
    return np.random.default_rng(5).integers(low, top, shape).astype(dtype)


@pytest.mark.parametrize(
    "syntax",
    [
        *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian),
        *(RLELossless, JPEG2000Lossless),
    ],
)
def test_a_derived_slice_is_the_source_with_new_pixels(syntax: Any, tmp_path: Path) -> None:
    stored = stored_image(shape=(64, 72))
    path = write_slice(tmp_path / "source.dcm", stored, z=12.5, syntax=syntax, **TAGS)
    before = path.read_bytes()
    image = np.linspace(-1024, 3071, stored.size, dtype=np.float32).round().reshape(64, 72)
    clipped = derive(image, path, tmp_path / "new" / "out.dcm", description="denoised")
    assert clipped == {(-1024, 3071): 0}
    source, derived = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "new" / "out.dcm")
    np.testing.assert_array_equal(derived.pixel_array.astype(float) - 1024, image)
    for name in KEPT:
        assert derived[name].value == source[name].value, name
    assert str(derived.PatientName) == "Zoë^Ünal"
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "KERNEL"]
    assert derived.SeriesInstanceUID == "2.25.7" != source.SeriesInstanceUID
    assert derived.SOPInstanceUID == derived.file_meta.MediaStorageSOPInstanceUID
    assert derived.SOPInstanceUID != source.SOPInstanceUID
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert derived.SeriesDescription == derived.DerivationDescription == "denoised"
    assert "SmallestImagePixelValue" not in derived
    assert "PixelPaddingValue" not in derived
    assert path.read_bytes() == before
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.dcm"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.25, -100), (2, 0)])
def test_hu_are_rounded_to_what_can_be_stored(
    slope: float, intercept: float, dtype: type, tmp_path: Path
) -> None:
    stored = stored_image(dtype)
    path = write_slice(tmp_path / "s.dcm", stored, slope=slope, intercept=intercept)
    hu = (stored.astype(float) * slope + intercept + 0.4 * slope).astype(np.float32)
    derive(hu, path, tmp_path / "out.dcm")
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, stored)


def test_hu_beyond_what_can_be_stored_are_clipped_and_counted_and_nan_is_air(
    tmp_path: Path,
) -> None:
    for dtype, ends in ((np.uint16, (0, 4095)), (np.int16, (-32768, 32767))):
        path = write_slice(tmp_path / "s.dcm", stored_image(dtype), intercept=-2000)
        hu = np.zeros((7, 9), np.float32)
        hu[0, :3] = -1e6, 1e6, np.nan
        clipped = derive(hu, path, tmp_path / "out.dcm")
        found = pydicom.dcmread(tmp_path / "out.dcm").pixel_array
        assert found[0, :4].tolist() == [*ends, 976, 2000]
        assert clipped == {(ends[0] - 2000, ends[1] - 2000): 2}


def test_rounding_is_not_clipping_but_air_that_cannot_be_stored_is(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s.dcm", stored_image(), slope=-0.5, intercept=1100)
    hu = np.full((7, 9), 1100.2, np.float32)
    hu[0, 0] = -947.7  # rounds to the last value
    assert derive(hu, path, tmp_path / "out.dcm") == {(-947.5, 1100): 0}
    hu[0, :2] = np.nan, 1100.3  # rounds to -1
    assert derive(hu, path, tmp_path / "out.dcm") == {(-947.5, 1100): 2}


def test_a_source_that_breaks_rules_in_other_tags_will_do(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s.dcm", stored_image(), PatientAge="045Y")
    # Of the same lengths: an age that is none, a character that the set does not have.
    path.write_bytes(path.read_bytes().replace(b"045Y", b"\xe9\xe9 1"))
    derive(np.zeros((7, 9), np.float32), path, tmp_path / "out.dcm")
    assert (pydicom.dcmread(tmp_path / "out.dcm").pixel_array == 1024).all()
    assert b"\xe9\xe9 1" in (tmp_path / "out.dcm").read_bytes()


def test_slices_may_share_a_series(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s.dcm", stored_image())
    for number in range(3):
        derive(np.zeros((7, 9), np.float32), path, tmp_path / f"{number}.dcm")
    made = [pydicom.dcmread(tmp_path / f"{number}.dcm") for number in range(3)]
    assert {one.SeriesInstanceUID for one in made} == {"2.25.7"}
    assert len({one.SOPInstanceUID for one in made}) == 3


def test_every_call_without_a_series_uid_makes_a_new_valid_one(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = make("--patch-size", "p42"), tmp_path / "out.dcm"
    uids = set()
    for _ in range(2):
        words = (file.path, "--pair", 0, "--source", file.root, "--output", out, "--overwrite")
        assert call(capsys, *words)[0] == 0
        uids.add(pydicom.dcmread(out).SeriesInstanceUID)
    assert len(uids) == 2
    assert all(uid.is_valid for uid in uids)


def test_a_wrong_shape_text_or_source_is_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s.dcm", stored_image())
    image, out = np.zeros((7, 9), np.float32), tmp_path / "out.dcm"
    with pytest.raises(ValueError, match=r"9 x 7 pixels; .* has 7 x 9"):
        derive(image.T, path, out)
    for text in ("é", "a\\b", "a\nb", "x" * 65):
        with pytest.raises(CallError, match="plain ASCII"):
            check_texts(None, text)
    with pytest.raises(CallError, match="series UID 'one'"):
        check_texts("one", "test")
    (tmp_path / "no.dcm").write_bytes(b"no slice")
    with pytest.raises(RunError, match="DICOM file"):
        derive(image, tmp_path / "no.dcm", out)
    with pytest.raises(RunError, match="No such file"):
        derive(image, tmp_path / "none.dcm", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Modality": "MR"}, r"s.dcm: Modality 'MR'; expected: CT"),
        ({"NumberOfFrames": 2}, "2 frames; expected: one slice per file"),
        (
            {"PhotometricInterpretation": "RGB"},
            "Interpretation 'RGB'; expected: MONOCHROME2",
        ),
        ({"BitsStored": 17}, "17 of 16 bits stored; expected: at most 16"),
        ({"RescaleSlope": None}, "no RescaleSlope or RescaleIntercept; expected: both"),
        ({"RescaleSlope": 0}, "RescaleSlope 0; expected: any other"),
        ({"RescaleSlope": [1, 2]}, r"has a damaged header \(TypeError\)"),
    ],
)
def test_a_source_that_no_slice_derives_from_is_refused(
    tags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_slice(tmp_path / "s.dcm", stored_image())
    edit(path, **tags)
    with pytest.raises(RunError, match=message):
        derive(np.zeros((7, 9), np.float32), path, tmp_path / "out.dcm")
    assert not (tmp_path / "out.dcm").exists()


# --- the command line ------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Call the command; return its status, what it printed and its error."""
    status = command.main(["stitch", *(str(word) for word in words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_writes_an_array(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42")
    out = tmp_path / "new" / "slice.npy"
    words = (file.path, "--pair", 1, "--role", "input", "--unit", "stored", "--output", out)
    assert call(capsys, *words)[::2] == (0, "")
    np.testing.assert_array_equal(np.load(out), file.pairs[1].input)
    status, _, error = call(capsys, *words)
    assert (status, error.count("\n")) == (2, 1)
    assert "exists; add --overwrite" in error
    assert call(capsys, *words, "--overwrite")[0] == 0


def test_the_command_writes_dicom(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42", "--normalization-type", "dataset_std")
    for options, source in (
        ((), file.pairs[1].target_file),
        (("--role", "input"), file.pairs[1].input_file),
    ):
        out = tmp_path / f"{len(options)}.dcm"
        place = ("--source", file.root, "--output", out)
        status, said, error = call(capsys, file.path, "--pair", 1, *options, *place)
        assert (status, error) == (0, "")
        original, derived = pydicom.dcmread(file.root / source), pydicom.dcmread(out)
        np.testing.assert_array_equal(derived.pixel_array, original.pixel_array)
        assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
        assert source in said
        assert derived.SeriesInstanceUID in said


def test_the_command_takes_a_networks_output(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42", "--normalization-type", "std_wrt_ld")
    np.save(tmp_path / "values.npy", patches_of(file, 0))
    uid = generate_uid()
    words = (file.path, "--pair", 0, "--values", tmp_path / "values.npy")
    place = ("--source", file.root, "--series-uid", uid, "--output", tmp_path / "out.dcm")
    status, _, error = call(capsys, *words, *place)
    assert (status, error) == (0, "")
    source = pydicom.dcmread(file.root / file.pairs[0].input_file)
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    np.testing.assert_array_equal(derived.pixel_array, file.pairs[0].target)
    # It was made from the input slice, whatever it looks like.
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert derived.SeriesInstanceUID == uid


def test_the_slice_itself_may_be_named_but_not_another(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42", "--anonymize")
    words = (file.path, "--pair", 0, "--output", tmp_path / "out.dcm", "--source")
    status, _, error = call(capsys, *words, file.root)
    assert status == 1
    assert "its name is a pseudonym" in error
    status, _, error = call(capsys, *words, file.root / file.pairs[1].target_file)
    assert status == 1
    assert "lies at -147 mm, the pair at -150 mm" in error
    assert call(capsys, *words, file.root / file.pairs[0].target_file)[0] == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("FILE",), 2, "required: --output (see --help)"),
        (("FILE", "--output", "x.npy"), 2, "--pair --patient --all is required"),
        (("FILE", "--pair", "0", "--output", "x.png"), 2, "a name ending in .dcm, .npy or .nii.gz"),
        (("FILE", "--pair", "0", "--output", "x.dcm"), 2, "DICOM needs --source"),
        (("FILE", "--pair", "x", "--output", "x.npy"), 2, "--pair: invalid int"),
        (
            ("FILE", "--pair", "0", "--output", "x.npy", "--rol", "input"),
            2,
            "unknown option --rol; did you mean --role? (see --help)",
        ),
        (("FILE", "--all", "--series_uid", "1", "--source=.", "--output=x"), 2, "--series-uid is"),
        (
            ("FILE", "--pair", "0", "--scale", "0.8", "--source", ".", "--output", "x.dcm"),
            2,
            "no source slice has --scale 0.8",
        ),
        (
            ("FILE", "--pair", "0", "--description", "é", "--source", ".", "--output", "x.dcm"),
            2,
            "plain ASCII",
        ),
        (("FILE", "--pair", "7", "--output", "x.npy"), 1, "pair 7 of 2"),
        (("FILE", "--pair", "0", "--scale", "0.8", "--output", "x.npy"), 1, "the file has: 1"),
        (("FILE", "--pair", "0", "--values", "no.npy", "--output", "x.npy"), 1, "No such file"),
        (
            ("FILE", "--pair", "0", "--values", "PIPE", "--output", "x.npy"),
            1,
            "is not a regular file",
        ),
        (
            ("FILE", "--pair", "0", "--values", "CUT:x", "--output", "x.npy"),
            1,
            "is not an HDF5 file, or was truncated",
        ),
        (
            ("FILE", "--pair", "0", "--values", "TEXT", "--output", "x.npy"),
            1,
            "cannot be read as .npy",
        ),
        (
            ("FILE", "--pair", "0", "--values", "FILE", "--output", "x.npy"),
            1,
            ":DATASET, one of: 'checksum', 'input', 'target'",
        ),
        (
            ("FILE", "--pair", "0", "--values", "EMPTY:x", "--output", "x.npy"),
            1,
            "has no dataset 'x'",
        ),
        (("none.h5", "--pair", "0", "--output", "x.npy"), 1, "'none.h5': No such file"),
        (("TEXT", "--pair", "0", "--output", "x.npy"), 1, "is not an HDF5 file"),
        (("FILE", "--pair", "0", "--output", "/dev/null/x.npy"), 1, "cannot write"),
    ],
)
def test_a_wrong_call_ends_in_one_line(
    words: tuple[str, ...],
    status: int,
    message: str,
    make: Maker,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = make("--patch-size", "p42")
    (tmp_path / "text").write_text("text")
    with h5py.File(tmp_path / "empty.h5", "w") as empty:
        empty["x"] = h5py.Empty("f4")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "empty.h5").read_bytes()[:700])
    os.mkfifo(tmp_path / "pipe")
    meant: dict[str, object] = {"FILE": file.path}
    meant |= {name.upper(): tmp_path / name for name in ("text", "pipe")}
    meant |= {f"{name.upper()}:x": f"{tmp_path / name}.h5:x" for name in ("empty", "cut")}
    found, _, error = call(capsys, *(meant.get(word, word) for word in words))
    assert found == status
    assert error.startswith("ctpatches: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


def test_a_source_slice_is_never_replaced(make: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    file = make("--patch-size", "p42")
    source = file.root / file.pairs[0].target_file
    before = source.read_bytes()
    words = (file.path, "--pair", 0, "--source", file.root, "--output", source, "--overwrite")
    status, _, error = call(capsys, *words)
    assert status == 2
    assert "is the source slice" in error
    assert source.read_bytes() == before


def test_it_runs_from_the_shell(tmp_path: Path, scans: File) -> None:
    made = serial(tmp_path, "--input-folder", scans.root, "--output-fname", "out.h5", "--no-report")
    assert made.status == 0, made.err
    command_line: list[str | Path] = [*COMMAND, "out.h5", "--pair", "1"]
    ended = run([*command_line, "--output", "t.npy"], tmp_path)
    assert (ended.status, ended.out, ended.err) == (0, "output     t.npy\n", "")
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), scans.pairs[1].target - 1024.0)
    assert run([*command_line, "--help"], tmp_path).status == 0


#: What `main.py` prints, too, where standard output is full.
FULL = "ctpatches: error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("streams", "status", "error"),
    [
        (">/dev/full", 1, FULL),
        (">/dev/full 2>&1", 1, ""),
        *((streams, 0, "") for streams in ("2>/dev/full", ">&-", "2>&-", ">&- 2>&-", "| true")),
    ],
)
def test_the_slice_is_written_whatever_the_streams_are_connected_to(
    streams: str, status: int, error: str, tmp_path: Path, make: Maker
) -> None:
    file = make("--patch-size", "p42")
    words = [*COMMAND, file.path, "--pair", "1", "--output", "t.npy"]
    command_line = f"set -o pipefail; {shlex.join(map(str, words))} {streams}"
    ended = run(["bash", "-c", command_line], tmp_path)
    assert (ended.status, ended.err) == (status, error)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), file.pairs[1].target - 1024.0)


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_an_error_that_nobody_hears_has_its_status(
    streams: str, tmp_path: Path, make: Maker
) -> None:
    words = [*COMMAND, "none.h5", "--pair", "1", "--output", "t.npy"]
    ended = run(["bash", "-c", f"{shlex.join(map(str, words))} {streams}"], tmp_path)
    assert (ended.status, ended.out, ended.err) == (1, "", "")


def test_values_of_a_forged_shape_are_refused(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42")
    values = tmp_path / "values.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 42, 42)}
    with open(values, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
    words = (file.path, "--pair", 0, "--values", values, "--output", tmp_path / "x.npy")
    status, _, error = call(capsys, *words)
    assert (status, error.count("\n")) == (1, 1)
    assert "cannot be read as .npy" in error


def test_the_command_counts_the_pixels_that_it_clips(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make("--patch-size", "p42")
    np.save(tmp_path / "values.npy", patches_of(file, 0) * 0 + 4096)  # 12 bits can be stored
    words = (file.path, "--pair", 0, "--values", tmp_path / "values.npy", "--source", file.root)
    status, said, error = call(capsys, *words, "--output", tmp_path / "out.dcm")
    assert (status, error) == (0, "")
    assert (pydicom.dcmread(tmp_path / "out.dcm").pixel_array == 4095).all()
    pixels = SHAPE[0] * SHAPE[1]
    assert f"clipped    {pixels} of {pixels} pixels to -1024 ... 3071 HU\n" in said


def test_without_pydicom_and_nibabel_only_their_formats_are_missing(
    make: Maker, tmp_path: Path
) -> None:
    file = make("--patch-size", "p42")
    code = (
        "import sys\n"
        "sys.modules['pydicom'] = sys.modules['nibabel'] = None\n"  # as where neither is installed
        "from ctpatches.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    without: list[str | Path] = [sys.executable, "-c", code]
    stitched: list[str | Path] = [*without, "stitch", file.path, "--pair", "0", "--output"]
    for words in ([*without, "info", file.path], [*without, "verify", file.path]):
        assert run(words, tmp_path).status == 0
    assert run([*stitched, "x.npy"], tmp_path).status == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), file.pairs[0].target - 1024.0)
    for output, name in (("x.dcm", "DICOM"), ("x.nii", "NIfTI")):
        ended = run([*stitched, output, "--source", file.root], tmp_path)
        assert ended.status == 1
        assert ended.err == f"ctpatches: error: {name} needs pydicom: pip install pydicom\n"
