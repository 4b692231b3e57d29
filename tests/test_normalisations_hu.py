"""Normalisations in HU: fixed windows, figures of a whole data set, and what undoes them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ctpatches.file import PatchFile, denormalise
from ctpatches.normalisation import fixed_affine, statistics_of
from tests.editing import edit
from tests.reading import read_patches
from tests.running import called, ranks_of
from tests.scans import write_patient, write_slice, write_tree
from utils import Affine, img_pair_normalization

FIXED = ("hu_window", "dataset_unity", "dataset_std")
FORM = ("--patch-size", "p24", "--output-fname", "out.h5", "--no-report")


def hu_of(path: Path) -> NDArray[np.float64]:
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array.astype(np.float64)
    hu: NDArray[np.float64] = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return np.where(stored == dataset.get("PixelPaddingValue"), -1024, hu)


def naive_figures(images: Sequence[NDArray[Any]], kind: str) -> tuple[float, float]:
    """Return what `dataset_*` subtracts and divides by, from all pixels at once."""
    values = [float(v) for image in images for v in image.ravel()]
    if kind == "dataset_unity":
        return min(values), max(values) - min(values)
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two scanners' patients, of other sizes and with padding; read only."""
    root = tmp_path_factory.mktemp("scanners") / "scans"
    write_patient(root, "A", 3, slope=1, intercept=-1024)
    write_patient(root, "B", 2, slope=0.5, intercept=-1000, shape=(56, 88), PixelPaddingValue=0)
    write_patient(root, "C", 2, slope=2, intercept=-2000)
    return root


def made(root: Path, folder: Path, *options: str) -> Path:
    ended = called(folder, "--input-folder", root, *FORM, *options)
    assert ended.status == 0, ended.err
    return folder / "out.h5"


def table(path: Path, name: str) -> list[Any]:
    with h5py.File(path) as file:
        return list(file[f"pair/{name}"][...].tolist())


def input_images(path: Path, root: Path) -> list[NDArray[np.float64]]:
    return [hu_of(root / name.decode()) for name in table(path, "input_file")]


# --- the figures -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dataset_unity", "dataset_std"])
def test_the_figures_are_those_of_all_pixels_of_all_input_images(scans, tmp_path, kind):
    path = made(scans, tmp_path, "--normalization-type", kind)
    offset, divisor = naive_figures(input_images(path, scans), kind)
    for side in ("input", "target"):
        assert table(path, f"{side}_offset") == pytest.approx([offset] * 7, rel=1e-13)
        assert table(path, f"{side}_divisor") == pytest.approx([divisor] * 7, rel=1e-13)


@pytest.mark.parametrize("kind", ["dataset_unity", "dataset_std"])
def test_the_figures_are_of_the_pairs_that_were_drawn(scans, tmp_path, kind):
    path = made(scans, tmp_path, "--normalization-type", kind, "--random_N", "1")
    images = input_images(path, scans)
    assert len(images) == 3
    found = table(path, "input_offset") + table(path, "input_divisor")
    offset, divisor = naive_figures(images, kind)
    assert found == pytest.approx([offset] * 3 + [divisor] * 3, rel=1e-13)


@pytest.mark.parametrize("kind", ["dataset_unity", "dataset_std"])
def test_split_figures_are_of_the_training_patients_alone(scans, tmp_path, kind):
    sides = tmp_path / "sides.txt"
    sides.write_text("train A\ntrain C\nval B\ntest D\n")
    root = tmp_path / "scans"
    for name in ("A", "B", "C"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(scans / name)
    write_patient(root, "D", 1)
    made_by = ("--split-file", str(sides), "--normalization-type", kind)
    ended = called(tmp_path, "--input-folder", root, *FORM, *made_by)
    assert ended.status == 0, ended.err
    files = {side: tmp_path / f"out_{side}.h5" for side in ("train", "val", "test")}
    offset, divisor = naive_figures(input_images(files["train"], root), kind)
    for path in files.values():
        for side in ("input", "target"):
            pairs = len(table(path, "rows"))
            assert table(path, f"{side}_offset") == pytest.approx([offset] * pairs, rel=1e-13)
            assert table(path, f"{side}_divisor") == pytest.approx([divisor] * pairs, rel=1e-13)


def test_two_ranks_find_the_same_figures_and_make_the_same_bytes(scans, tmp_path):
    jobs = []
    for kind in FIXED:
        call = ["--input-folder", str(scans), "--patch-size", "p24", "--normalization-type", kind]
        call.append("--no-report")
        assert called(tmp_path, *call, "--output-fname", f"serial_{kind}.h5").status == 0
        jobs.append([*call, "--mpi_run", "--output-fname", f"ranks_{kind}.h5"])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    assert ranks_of(2, "jobs.py", tmp_path, "jobs.json").status == 0
    for kind in FIXED:
        serial, parallel = (tmp_path / f"{how}_{kind}.h5" for how in ("serial", "ranks"))
        assert table(serial, "input_offset") == table(parallel, "input_offset")
        assert serial.read_bytes() == parallel.read_bytes()


HU_WINDOW = (-1024.0, 3072.0)
images = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    elements=st.integers(-32768, 32767).map(float),
)


@given(st.lists(images, min_size=1, max_size=5), st.sampled_from(["dataset_unity", "dataset_std"]))
def test_statistics_of_images_combine_to_those_of_all_pixels(several, kind):
    found = fixed_affine(kind, HU_WINDOW, [statistics_of(i) for i in several])
    assert found is not None
    offset, divisor = naive_figures(several, kind)
    assert found.offset == pytest.approx(offset, rel=1e-12, abs=1e-9)
    assert found.divisor == pytest.approx(divisor, rel=1e-12, abs=1e-9)


def test_figures_far_from_zero_lose_nothing():
    rng = np.random.default_rng(0)
    several = [(30000 + rng.integers(0, 2, (32, 32))).astype(np.float32) for _ in range(9)]
    found = fixed_affine("dataset_std", HU_WINDOW, [statistics_of(i) for i in several])
    assert found is not None
    expected = naive_figures(several, "dataset_std")
    assert (found.offset, found.divisor) == pytest.approx(expected, rel=1e-12)


# --- the values ------------------------------------------------------------------------------


def views(root: Path, path: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the HU images of every pair of a file."""
    sides = (table(path, f"{side}_file") for side in ("input", "target"))
    return [
        (hu_of(root / a.decode()), hu_of(root / b.decode())) for a, b in zip(*sides, strict=True)
    ]


@pytest.mark.parametrize(
    ("window", "options"),
    [((-1024.0, 3072.0), ()), ((-160.0, 240.0), ("--hu-window", "-160", "240"))],
    ids=["default", "abdomen"],
)
def test_hu_window_clips_and_scales_to_0_and_1(scans, tmp_path, window, options):
    path = made(scans, tmp_path, "--normalization-type", "hu_window", *options)
    low, high = window
    pairs = views(scans, path)
    with PatchFile(path) as file:
        for i in range(0, len(file), 3):
            origin = file.provenance(i)
            for side, image in zip(("input", "target"), pairs[origin.pair], strict=True):
                there = image[origin.row : origin.row + 24, origin.col : origin.col + 24]
                clipped = there.clip(low, high).astype(np.float32)
                expected = (clipped - np.float32(low)) / np.float32(high - low)
                np.testing.assert_array_equal(file[side][i, 0], expected)
        lowest, highest = file["input"][...].min(), file["input"][...].max()
    assert 0 <= lowest < highest <= 1


@pytest.mark.parametrize("kind", ["dataset_unity", "dataset_std"])
def test_both_images_are_normalised_by_the_statistics_of_the_data_set(scans, tmp_path, kind):
    path = made(scans, tmp_path, "--normalization-type", kind)
    pairs = views(scans, path)
    by = [np.float32(f) for f in naive_figures([low for low, _ in pairs], kind)]
    with PatchFile(path) as file:
        for i in range(0, len(file), 3):
            origin = file.provenance(i)
            for side, image in zip(("input", "target"), pairs[origin.pair], strict=True):
                there = image[origin.row : origin.row + 24, origin.col : origin.col + 24]
                expected = (there.astype(np.float32) - by[0]) / by[1]
                np.testing.assert_array_equal(file[side][i, 0], expected)


def test_dataset_unity_reaches_0_and_1_over_all_inputs(scans):
    several = [hu_of(p).astype(np.float32) for p in sorted(scans.glob("*/quarter_3mm/*"))]
    fixed = fixed_affine("dataset_unity", HU_WINDOW, [statistics_of(i) for i in several])
    done = [img_pair_normalization(i, i, "dataset_unity", fixed)[0] for i in several]
    assert (min(i.min() for i in done), max(i.max() for i in done)) == (0, 1)


def test_dataset_std_gives_all_inputs_together_mean_0_and_deviation_1(scans):
    several = [hu_of(p).astype(np.float32) for p in sorted(scans.glob("*/quarter_3mm/*"))]
    fixed = fixed_affine("dataset_std", HU_WINDOW, [statistics_of(i) for i in several])
    done = [img_pair_normalization(i, i, "dataset_std", fixed)[0] for i in several]
    together = np.concatenate([i.ravel() for i in done]).astype(np.float64)
    assert together.mean() == pytest.approx(0, abs=1e-6)
    assert together.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", FIXED)
def test_a_data_set_of_one_value_gives_zeros_and_no_nan(tmp_path, kind):
    root = tmp_path / "scans"
    for pair in write_tree(root, {"A": 1}):
        for file in (pair.input_file, pair.target_file):
            edit(root / file, PixelData=np.zeros((64, 80), np.uint16).tobytes())
    path = made(root, tmp_path, "--normalization-type", kind)
    with h5py.File(path) as file:
        assert not file["input"][...].any()
        assert not file["target"][...].any()


@pytest.mark.parametrize("kind", FIXED)
def test_a_fixed_normalisation_does_not_look_at_the_pair(kind):
    fixed = Affine(-500.0, 1000.0)
    image = np.array([[-2000, -100, 3000]], np.float32)
    found = img_pair_normalization(image, image[:, ::-1], kind, fixed)
    assert found[2:] == (fixed, fixed)
    np.testing.assert_array_equal(found[0], found[1][:, ::-1])


@pytest.mark.parametrize(
    "window", [("0", "0"), ("10", "-10"), ("nan", "1"), ("0", "inf"), ("0", "1e-9"), ("0", "1e7")]
)
def test_a_window_without_width_is_a_bad_call(tmp_path, window):
    options = ("--normalization-type", "hu_window", "--hu-window", *window)
    ended = called(tmp_path, "--input-folder", tmp_path, *FORM, *options)
    assert ended.status == 2
    assert "--hu-window" in ended.err


# --- undoing it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_own_figures(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in which every image has figures of its own."""
    options = ("--normalization-type", "unity_independent", "--intensity", "hu")
    return made(scans, tmp_path_factory.mktemp("own"), *options)


@functools.cache
def truth(path: Path, root: Path, side: str) -> NDArray[np.float64]:
    """Return the windows of all patches of a file in HU, as the scans have them."""
    pairs = views(root, path)
    with PatchFile(path) as file:
        origins = [file.provenance(i) for i in range(len(file))]
    which = ("input", "target").index(side)
    return np.stack([pairs[o.pair][which][o.row : o.row + 24, o.col : o.col + 24] for o in origins])


@pytest.mark.parametrize("side", ["input", "target"])
@pytest.mark.parametrize("unit", ["hu", "stored"])
def test_denormalise_takes_the_statistics_of_each_pair(scans, by_own_figures, side, unit):
    with h5py.File(by_own_figures) as file:
        values = file[side][...]
        pairs = file["patch/pair"][...]
    expected = truth(by_own_figures, scans, side)
    if unit == "stored":
        slope, intercept = (
            np.array(table(by_own_figures, f"{side}_{name}"))[pairs][:, None, None]
            for name in ("slope", "intercept")
        )
        expected = (expected - intercept) / slope
    found = denormalise(values, by_own_figures, role=side, unit=unit)
    assert found.shape == values.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("chosen", [[3], [40, 2, 2, 17], slice(10, 30, 7), np.array([1, 50])])
def test_denormalise_takes_some_patches_in_any_order(scans, by_own_figures, chosen):
    values = read_patches(by_own_figures, chosen)[1]
    expected = truth(by_own_figures, scans, "target")[chosen]
    with PatchFile(by_own_figures) as file:
        for given_as in (by_own_figures, str(by_own_figures), file):
            found = denormalise(values, given_as, chosen)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_denormalise_of_one_patch_by_its_number(scans, by_own_figures):
    found = denormalise(read_patches(by_own_figures, 9)[1], by_own_figures, 9)
    np.testing.assert_allclose(found[0], truth(by_own_figures, scans, "target")[9], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_denormalise_takes_what_a_network_gives_out(by_own_figures, dtype):
    values = np.zeros((2, 1, 24, 24), dtype)
    found = denormalise(values, by_own_figures, [0, 1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(table(by_own_figures, "target_offset")[0]))


@pytest.mark.parametrize(
    "wrong", [{"role": "output"}, {"unit": "HU"}, {"patches": [0, 1]}, {}], ids=str
)
def test_denormalise_refuses_what_does_not_fit(by_own_figures, wrong):
    with pytest.raises(ValueError, match=r"expected|values for"):
        denormalise(np.zeros((3, 1, 24, 24)), by_own_figures, **wrong)


# --- extremes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slopes",
    [(1e-9, 1e9), (1e9, 1e-9), (1e9, 1e9), (-1e9, 1e-9)],
    ids=lambda s: f"{s[0]:g} {s[1]:g}",
)
@pytest.mark.parametrize("kind", ["unity_wrt_ld", "std_wrt_ld", "dataset_std", "hu_window"])
def test_extreme_rescale_values_cause_no_warning(tmp_path, slopes, kind):
    """A target that is 10^18 times its input, normalised by a deviation near 0."""
    image = np.ones((64, 80), np.uint16)
    image[30, 30] = 2
    for folder, slope in zip(("low", "full"), slopes, strict=True):
        write_slice(tmp_path / "scans" / "A" / folder / "1.dcm", image, slope=slope, intercept=0)
    options = ["--input-folder", tmp_path / "scans", "--patch-size", "p24", "--intensity", "hu"]
    # Warnings are errors in this process.
    ended = called(tmp_path, *options, "--normalization-type", kind, "--quiet", "--sheets", "1")
    assert (ended.status, ended.out, ended.err) == (0, "", "")
