"""The air rule `body`: which pixels are body, and which windows contain enough of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import patching
from patching import Grid, body_mask
from pipeline.config import Config
from pipeline.survey import plan_pairs
from tests import naive
from tests.faults import one_error
from tests.running import called
from tests.scans import write_slice
from utils import Image

AIR, FOAM, LUNG, TISSUE, BONE = -1000, -930, -860, 40, 800
SIZE = 256


def air(size: int = SIZE, hu: float = AIR) -> Image:
    return np.full((size, size), hu, np.float32)


def draw(image: Image, hu: float, centre: tuple[int, int], axes: tuple[int, int]) -> Any:
    """Draw an ellipse of one density, and return where it is."""
    inside = np.zeros(image.shape, np.uint8)
    cv2.ellipse(inside, centre, axes, 0, 0, 360, 1, cv2.FILLED)
    image[inside > 0] = hu
    return inside > 0


def draw_table(image: Image) -> None:
    """Draw a table top: two curved plates, five pixels thick, with foam between them."""
    between = np.zeros(image.shape, np.uint8)
    for below in (215, 240):
        cv2.ellipse(between, (SIZE // 2, below - 400), (500, 400), 0, 60, 120, 1, 5)
        image[between > 0] = 150
    foam = np.cumsum(between, axis=0) > 0
    image[foam & (between == 0)] = FOAM


def draw_chest(image: Image, centre: tuple[int, int] = (128, 120)) -> Any:
    """Draw a body with two lungs, a vessel in each, and a trachea; return where the body is."""
    body = draw(image, TISSUE, centre, (90, 62))
    for side in (-42, 42):
        lung = centre[0] + side, centre[1]
        draw(image, LUNG, lung, (32, 40))
        draw(image, TISSUE, lung, (6, 6))
    draw(image, AIR, centre, (6, 6))
    return body


def blurred(image: Image, noise_hu: float) -> Image:
    """Return an image as a scanner sees it: edges are not sharp, and there is noise."""
    noise = noise_hu * np.random.default_rng(0).standard_normal(image.shape)
    return (cv2.GaussianBlur(image, (0, 0), 0.7) + noise).astype(np.float32)


def share(part: Any, whole: Any) -> float:
    """Return how alike two masks are: the Dice coefficient."""
    return float(2 * (part & whole).sum() / (part.sum() + whole.sum()))


# --- the mask --------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([AIR, FOAM, -910, LUNG, -500, -499, TISSUE, TISSUE]),
    ),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_the_body_is_that_of_the_naive_reference(coarse, factor, seed):
    image = coarse.repeat(factor, axis=0).repeat(factor, axis=1)
    rng = np.random.default_rng(seed)
    image[rng.random(image.shape) < 0.02] = TISSUE
    image[rng.random(image.shape) < 0.02] = AIR
    np.testing.assert_array_equal(body_mask(image), naive.body_mask(image))


def test_lungs_vessels_and_trachea_are_body_and_the_table_is_not():
    image = air()
    draw_table(image)
    body = draw_chest(image)
    np.testing.assert_array_equal(body_mask(image).astype(bool), body)


@pytest.mark.parametrize("noise_hu", [20, 150])
@pytest.mark.parametrize("background", [AIR, -1024])
def test_noise_changes_no_more_than_the_rim_of_the_body(noise_hu, background):
    image = air(hu=background)
    draw_table(image)
    body = draw_chest(image)
    assert share(body_mask(blurred(image, noise_hu)).astype(bool), body) > 0.985


def test_arms_and_hands_beside_the_body_are_body():
    image = air()
    draw_table(image)
    expected = draw_chest(image)
    for centre, axes in (((16, 130), (13, 17)), ((240, 90), (9, 6)), ((128, 24), (80, 16))):
        expected |= draw(image, TISSUE, centre, axes)
        draw(image, BONE, centre, (4, 4))
    expected = naive.opened(expected)  # the tips of a narrow ellipse are thin
    np.testing.assert_array_equal(body_mask(image).astype(bool), expected)


def test_two_legs_are_body():
    image = air()
    draw_table(image)
    expected = draw(image, TISSUE, (80, 120), (40, 44)) | draw(image, TISSUE, (176, 122), (38, 42))
    np.testing.assert_array_equal(body_mask(image).astype(bool), expected)


def test_a_blanket_a_head_holder_and_a_rail_are_not_body():
    image = air()
    for radius in (100, 104, 108):  # folds
        cv2.ellipse(image, (128, 120), (radius + 10, radius), 0, 180, 360, -300, 2)
    cv2.ellipse(image, (128, 120), (70, 80), 0, 10, 170, 200, 6)
    expected = draw(image, TISSUE, (128, 110), (45, 55))
    image[240:249, 120:129] = 200  # a rail
    np.testing.assert_array_equal(body_mask(image).astype(bool), expected)


def test_a_thin_plate_that_touches_the_body_is_cut_off():
    image = air()
    expected = draw_chest(image)
    image[183:187] = 150  # the last row of the body is 182
    found = body_mask(image).astype(bool)
    np.testing.assert_array_equal(found[:183], expected[:183])
    assert not found[183:, :100].any()
    assert not found[183:, 156:].any()


def wide_body() -> tuple[Image, Any]:
    """Return a body wider than the image, above a table, and where the body is."""
    image = air()
    draw_table(image)
    body = draw(image, TISSUE, (128, 110), (160, 80))
    draw(image, LUNG, (80, 110), (40, 50))
    return image, body


def test_a_body_wider_than_the_image_leaves_the_table_below_it_outside():
    image, body = wide_body()
    np.testing.assert_array_equal(body_mask(image).astype(bool), body)
    found = body_mask(blurred(image, 150)).astype(bool)
    assert share(found, body) > 0.985
    assert not found[200:].any()


def test_a_large_lung_does_not_make_the_air_around_the_body_lung():
    image = air()
    expected = np.zeros(image.shape, np.uint8)
    expected[6:-6, 6:-6] = 1
    image[6:-6, 6:-6] = TISSUE
    image[16:-16, 16:-16] = LUNG
    np.testing.assert_array_equal(body_mask(image), expected)


@pytest.mark.parametrize(
    "crop",
    [np.s_[60:180, 60:196], np.s_[:120, :], np.s_[120:, 128:], np.s_[90:150, 60:110]],
    ids=["heart", "upper half", "lower right quarter", "lung and its vessel"],
)
def test_lungs_that_are_open_to_the_edge_of_the_image_are_body(crop):
    image = air()
    draw_table(image)
    draw(image, TISSUE, (128, 120), (90, 62))
    expected = draw_chest(image)
    image[114:127, 122:135] = TISSUE  # no trachea
    found = body_mask(np.ascontiguousarray(image[crop])).astype(bool)
    np.testing.assert_array_equal(found, expected[crop])


def test_lungs_that_are_open_to_a_circular_field_of_view_are_body():
    image = air()
    draw_chest(image)
    image = np.ascontiguousarray(image[60:180, 68:188])
    rows, cols = np.indices(image.shape)
    radius = np.hypot(rows - 59.5, cols - 59.5)
    image[radius > 60] = -1024
    found = body_mask(image)
    assert found[radius <= 58].all()
    assert not found[radius > 62].any()


def test_air_that_a_scanner_stores_as_minus_1024_is_not_taken_for_padding():
    image = air(hu=-1024)
    draw_table(image)
    cv2.ellipse(image, (128, 120), (115, 100), 0, 180, 360, -700, 3)  # a blanket
    body = draw_chest(image)
    np.testing.assert_array_equal(body_mask(image).astype(bool), body)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 5), (30, 40), (3, 300)])
@pytest.mark.parametrize(
    ("hu", "expected"), [(-1024, 0), (AIR, 0), (FOAM, 0), (LUNG, 1), (TISSUE, 1), (3071, 1)]
)
def test_an_image_of_one_density_is_body_or_not(shape, hu, expected):
    found = body_mask(np.full(shape, hu, np.float32))
    assert found.shape == shape
    assert found.dtype == np.uint8
    assert (found == expected).all()


def test_without_a_body_there_is_none():
    image = air()
    draw_table(image)
    for one in (image, blurred(image, 30), blurred(air(), 30)):
        assert not body_mask(one).any()


def test_noise_in_lung_is_not_taken_for_padding():
    assert body_mask(blurred(air(hu=LUNG), 150)).all()


def test_the_image_is_left_alone():
    image = air()
    draw_chest(image)
    image.flags.writeable = False
    before = image.copy()
    body_mask(image)
    np.testing.assert_array_equal(image, before)


# --- the windows -----------------------------------------------------------------------------


def config_of(**options: Any) -> Config:
    rule = {"air_threshold": True, "air_rule": "body"}
    return Config("", **{"patch_size": 10, "overlap": 2, **rule, **options})


@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(4, 16), st.integers(4, 16))),
    st.integers(1, 6).flatmap(lambda s: st.tuples(st.just(s), st.integers(0, s // 2))),
    st.sampled_from(["shift", "pad"]),
    st.sampled_from([0, 0.1, 0.25, 0.5, 0.9]),
)
def test_windows_with_enough_body_are_kept_and_no_others(mask, size_overlap, edge, min_body):
    size, overlap = size_overlap
    config = config_of(patch_size=size, overlap=overlap, edge=edge, min_body=min_body)
    grid = Grid(mask.shape, config)
    if not len(grid):
        return
    large = np.zeros((400, 400), bool)
    large[: mask.shape[0], : mask.shape[1]] = mask
    expected = [
        int(large[r : r + size, c : c + size].sum()) > min_body * size**2
        for r, c in zip(*grid.windows, strict=True)
    ]
    found = patching.kept_windows(mask.astype(np.float32), grid, config)
    assert found.tolist() == expected


@pytest.mark.parametrize("min_body", [0.1, 0.29, 0.57])
def test_a_window_with_just_the_fraction_is_left_out(min_body):
    view = np.zeros((10, 10), np.float32)
    limit = round(100 * min_body)
    config = config_of(min_body=min_body)
    grid = Grid((10, 10), config)
    for pixels, kept in ((limit, False), (limit + 1, True)):
        view.ravel()[:pixels] = 1
        assert patching.kept_windows(view, grid, config).tolist() == [kept]


@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_at_every_scale_a_pixel_is_body_if_at_least_half_of_it_is(edge):
    image = air()
    draw_table(image)
    draw_chest(image)
    config = config_of(ds_augment=True, edge=edge)
    mask = body_mask(image).astype(np.float32)
    (part,) = plan_pairs(image.shape, config, [image])
    for kept, scale in zip(part.kept_masks(), config.scales, strict=True):
        view = naive.downscale(mask, scale) >= 0.5
        grid = Grid(view.shape, config)
        # float64, so that 0.1 is not above 0.1.
        padded = grid.pad(view.astype(np.float32), 0).astype(np.float64)
        body = [padded[r : r + 10, c : c + 10].mean() for r, c in zip(*grid.windows, strict=True)]
        assert kept.tolist() == [fraction > 0.1 for fraction in body]
        assert 0 < kept.sum() < len(kept)


def test_lung_is_kept_by_the_body_and_left_out_by_its_pixels():
    image = air()
    draw_chest(image)
    draw(image, LUNG, (86, 120), (32, 40))  # no vessel
    grid = Grid(image.shape, config_of(patch_size=24, overlap=4))
    view = {"patch": image, "body": body_mask(image).astype(np.float32)}
    kept = {
        rule: patching.kept_windows(one, grid, config_of(air_rule=rule))
        for rule, one in view.items()
    }
    (here,) = np.flatnonzero((grid.windows[0] == 100) & (grid.windows[1] == 80))
    assert not kept["patch"][here]
    assert kept["body"][here]


# --- runs ------------------------------------------------------------------------------------


def write_pair(root: Path, target: Image, number: int) -> None:
    """Write a pair: a target, and its input with more noise."""
    for role, image in (("quarter", blurred(target, 30)), ("full", target)):
        stored = np.clip(image + 1024, 0, 4095).astype(np.uint16)
        write_slice(root / f"P/{role}_3mm/{number}.dcm", stored, z=3.0 * number, instance=number)


def test_a_run_names_the_rule_in_its_summary_file_and_report(tmp_path):
    image = air()
    draw_table(image)
    draw_chest(image)
    write_pair(tmp_path / "scans", image, 1)
    words = ["--input-folder", "scans", "--output-fname", "x.h5", "--patch-size", "p24"]
    words += ["--air_threshold", "--air-rule", "body", "--min-body", "0.25", "--verbose"]
    words += ["--sheets", "0"]
    ended = called(tmp_path, *words)
    assert (ended.status, ended.err) == (0, "")
    outside = int(re.search(r"^windows outside the body +(\d+)$", ended.out, re.M)[1])  # type: ignore[index]
    kept = 169 - outside
    assert re.search(
        rf"^patient +pairs +kept +outside +patches\nP +1 +{kept} +{outside} ", ended.out, re.M
    )
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file["input"]) == kept
        stored = json.loads(file.attrs["configuration"])
        assert (stored["air_rule"], stored["min_body"]) == ("body", 0.25)
    page = (tmp_path / "sanity_check/x/report.html").read_text()
    assert "Kept are windows with more than 25 % of the pixels in the target" in page
    assert f"{outside} windows outside the body" in page
    planned = called(tmp_path, *words, "--dry-run")
    assert f"windows outside the body     {outside}\n" in planned.out


def test_scans_without_a_body_are_an_error(tmp_path):
    image = air()
    draw_table(image)
    write_pair(tmp_path / "scans", image, 1)
    words = ("--input-folder", "scans", "--output-fname", "x.h5", "--patch-size", "p24")
    ended = called(tmp_path, *words, "--air_threshold", "--air-rule", "body")
    one_error(
        ended,
        "no patch: --air_threshold left out all 169 windows, none with more than 10 % of the "
        "pixels in the target's body; are these the right slices?",
        status=1,
    )
