"""Normalisation, random draws, the configuration in the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.config import Config
from tests import naive
from tests.scans import phantom
from utils import RunError, generator, img_pair_normalization, join_lines, key, printable, quoted

KINDS = ["unity_independent", "unity_wrt_ld", "std_independent", "std_wrt_ld"]
LOW, FULL = (image.astype(np.float32) for image in phantom((20, 30), 4))


# --- normalisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_normalisation_equals_the_naive_one(kind):
    low, full, _, _ = img_pair_normalization(LOW, FULL, kind)
    by_low = naive.constants(LOW, kind)
    by_full = by_low if kind.endswith("wrt_ld") else naive.constants(FULL, kind)
    for found, image, by in ((low, LOW, by_low), (full, FULL, by_full)):
        assert found.dtype == np.float32
        one_by_one = [[(pixel - by[0]) / by[1] for pixel in row] for row in image]
        np.testing.assert_array_equal(found, np.array(one_by_one, np.float32))


def test_none_leaves_pixels_as_stored():
    low, full, _, _ = img_pair_normalization(LOW, FULL, "None")
    np.testing.assert_array_equal(low, LOW)
    np.testing.assert_array_equal(full, FULL)


def test_unity_independent_brings_each_image_to_0_and_1():
    for image in img_pair_normalization(LOW, FULL, "unity_independent")[:2]:
        assert (image.min(), image.max()) == (0, 1)


def test_unity_wrt_ld_measures_the_target_by_the_low_dose_image():
    low = np.array([[100, 300]], np.float32)
    full = np.array([[50, 400]], np.float32)
    found = img_pair_normalization(low, full, "unity_wrt_ld")
    assert found[0].tolist() == [[0, 1]]
    assert found[1].tolist() == [[-0.25, 1.5]]


def test_std_independent_gives_each_image_mean_0_and_deviation_1():
    low = np.array([[1, 3]], np.float32)
    full = np.array([[10, 30]], np.float32)
    found = img_pair_normalization(low, full, "std_independent")
    assert found[0].tolist() == found[1].tolist() == [[-1, 1]]


def test_std_wrt_ld_measures_the_target_by_the_low_dose_image():
    low = np.array([[1, 3]], np.float32)
    full = np.array([[10, 30]], np.float32)
    assert img_pair_normalization(low, full, "std_wrt_ld")[1].tolist() == [[8, 28]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 1000, 0.1, -3024])
def test_a_constant_image_gives_zeros(kind, value):
    flat = np.full((37, 41), value, np.float32)
    for image in img_pair_normalization(flat, flat, kind)[:2]:
        assert not image.any()
        assert image.dtype == np.float32


@pytest.mark.parametrize("kind", ["unity_wrt_ld", "std_wrt_ld"])
def test_a_constant_low_dose_image_leaves_no_nan_in_the_target(kind):
    flat = np.full(FULL.shape, 5, np.float32)
    target = img_pair_normalization(flat, FULL, kind)[1]
    assert not target.any()


@pytest.mark.parametrize("kind", [*KINDS, "None"])
def test_normalisation_leaves_its_arguments_alone(kind):
    low, full = LOW.copy(), FULL.copy()
    img_pair_normalization(low, full, kind)
    np.testing.assert_array_equal(low, LOW)
    np.testing.assert_array_equal(full, FULL)


@pytest.mark.parametrize("kind", [*KINDS, "None"])
def test_the_constants_undo_the_normalisation(kind):
    low, full, low_affine, full_affine = img_pair_normalization(LOW, FULL, kind)
    largest = max(LOW.max(), FULL.max())
    for image, affine, original in ((low, low_affine, LOW), (full, full_affine, FULL)):
        found = image * np.float32(affine.divisor) + np.float32(affine.offset)
        np.testing.assert_allclose(found, original, rtol=0, atol=largest * 2**-22)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 65535)
    ),
    st.sampled_from(KINDS),
)
def test_no_image_gives_nan(image, kind):
    for found in img_pair_normalization(image, image[::-1], kind)[:2]:
        assert np.isfinite(found).all()


# --- random draws ----------------------------------------------------------------------------


@given(st.integers(0, 2**63), st.text(max_size=5), st.text(max_size=5))
def test_a_generator_hangs_on_its_arguments_alone(seed, purpose, identity):
    generator(seed + 1, purpose, identity).random()
    again = [generator(seed, purpose, identity).integers(0, 2**63, 3).tolist() for _ in range(2)]
    assert again[0] == again[1]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.text("ab", max_size=3), st.text("ab", max_size=3)),
        unique=True,
    )
)
def test_other_arguments_give_another_generator(arguments):
    assert len({key(*each) for each in arguments}) == len(arguments)


def test_where_one_argument_ends_and_the_next_begins_matters():
    assert key(0, "ab", "c") != key(0, "a", "bc")
    assert key(1, "1a") != key(11, "a")


def test_a_name_that_is_not_utf8_is_a_key_like_any_other():
    assert key(0, "pairs", "caf\udce9") != key(0, "pairs", "café")


def test_draws_stay_the_same_from_version_to_version():
    # A data set must come out the same next year: these numbers may never change.
    assert generator(0, "pairs", "P1").integers(0, 1000, 5).tolist() == [139, 25, 676, 612, 772]


# --- the configuration in the file -----------------------------------------------------------


def test_the_json_holds_neither_paths_nor_how_it_was_run():
    here = Config("/data/in", output_fname="/data/out.h5", mpi_run=True, overwrite=True)
    there = Config("elsewhere", output_fname="other.h5")
    assert here.as_json() == there.as_json()
    assert "data" not in here.as_json()
    assert "mpi" not in here.as_json()


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 24},
        {"overlap": 3},
        {"edge": "pad"},
        {"normalization_type": "unity_wrt_ld"},
        {"tensor_format": "tf"},
        {"random_N": 7},
        {"rot_augment": True},
        {"ds_augment": True},
        {"air_threshold": True},
        {"air_rule": "body", "air_threshold": True},
        {"min_body": 0.2, "air_rule": "body", "air_threshold": True},
        {"air_threshold_hu": -700.0, "air_threshold": True},
        {"air_fraction": 0.2, "air_threshold": True},
        {"blurr_n_noise": True},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_json_holds_what_decides_the_patches(change):
    name, value = next(iter(change.items()))
    assert json.loads(Config("in", **change).as_json())[name] == value
    assert json.loads(Config("in").as_json())[name] != value


# --- messages --------------------------------------------------------------------------------


def test_a_name_with_a_line_break_stays_on_one_line():
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert "\n" not in quoted("a\nb")


def test_one_problem_is_one_line_and_several_are_a_list():
    assert join_lines("in x", ["a is bad"]) == "in x: a is bad"
    assert join_lines("in x", ["a is bad", "b is bad"]) == "in x:\n  a is bad\n  b is bad"


def test_a_long_list_is_whole():
    lines = join_lines("in x", [f"file {i}" for i in range(600)]).splitlines()
    assert lines == ["in x:", *(f"  file {i}" for i in range(600))]


def test_failed_runs_end_with_1():
    assert RunError("x").status == 1
