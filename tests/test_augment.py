"""Downscaling, orientations, blur and noise."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

import augment
from ctpatches.orientations import upright
from ctpatches.schema import ORIENTATIONS
from tests import naive
from tests.cutting import oriented
from tests.scans import phantom

IMAGE = phantom((64, 80), 1)[0].astype(np.float32)


# --- downscaling -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "scale", "expected"),
    [
        ((512, 512), 0.8, (409, 409)),
        ((512, 512), 0.6, (307, 307)),
        ((64, 80), 0.8, (51, 64)),
        ((64, 80), 0.6, (38, 48)),
        ((64, 80), 1.0, (64, 80)),
    ],
)
def test_a_view_has_the_lengths_times_the_scale_rounded_down(shape, scale, expected):
    assert augment.view_shape(shape, scale) == expected
    assert augment.downscale(np.zeros(shape, np.float32), scale).shape == expected


@pytest.mark.parametrize("scale", [0.8, 0.6])
def test_downscaling_is_opencvs_area_interpolation(scale):
    expected = cv2.resize(IMAGE, (int(80 * scale), int(64 * scale)), interpolation=cv2.INTER_AREA)
    found = augment.downscale(IMAGE, scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [0.8, 0.6])
def test_downscaling_is_the_mean_over_the_area_of_a_pixel(scale):
    small = augment.downscale(IMAGE, scale)
    np.testing.assert_allclose(small, naive.area_mean(IMAGE, *small.shape), atol=0.01)


def test_at_scale_1_the_image_stays_itself():
    np.testing.assert_array_equal(augment.downscale(IMAGE, 1.0), IMAGE)


# --- orientations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, [[1, 2, 3], [4, 5, 6]]),
        (1, [[3, 6], [2, 5], [1, 4]]),
        (2, [[6, 5, 4], [3, 2, 1]]),
        (3, [[4, 1], [5, 2], [6, 3]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[3, 2, 1], [6, 5, 4]]),
    ],
    ids=ORIENTATIONS,
)
def test_the_codes_mean_what_their_names_say(code, expected):
    assert oriented([[1, 2, 3], [4, 5, 6]], code).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 5])
def test_upright_inverts_every_orientation(size):
    patches = np.random.default_rng(0).random((6, size, size), np.float32)
    codes = np.array([3, 0, 5, 2, 1, 4], np.uint8)
    turned = np.array([oriented(p, c) for p, c in zip(patches, codes, strict=True)])
    np.testing.assert_array_equal(upright(turned, codes), patches)


# --- which images are blurred or noisy -------------------------------------------------------

NAMES = [f"P{i % 7}/low/{i:03d}" for i in range(50)]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 10, 50])
def test_two_fifths_are_blurred_two_fifths_noisy_the_rest_left(n):
    kinds = Counter(augment.draw_degradations(NAMES[:n], 0))
    expected = {"blur": round(0.4 * n), "noise": round(0.4 * n)}
    expected[""] = n - sum(expected.values())
    assert kinds == Counter(expected)


def test_the_choice_does_not_hang_on_the_order_of_the_pairs():
    chosen = dict(zip(NAMES, augment.draw_degradations(NAMES, 3), strict=True))
    backwards = NAMES[::-1]
    assert dict(zip(backwards, augment.draw_degradations(backwards, 3), strict=True)) == chosen


def test_the_choice_hangs_on_the_seed():
    assert augment.draw_degradations(NAMES, 0) != augment.draw_degradations(NAMES, 1)


# --- blur and noise --------------------------------------------------------------------------


def test_blur_is_the_mean_of_three_by_three_pixels():
    found = augment.degrade(IMAGE, "blur", np.random.default_rng(0), 8)
    assert found.dtype == np.float32
    expected = [
        [IMAGE[r - 1 : r + 2, c - 1 : c + 2].mean(dtype=np.float64) for c in range(1, 79)]
        for r in range(1, 63)
    ]
    np.testing.assert_allclose(found[1:-1, 1:-1], expected, rtol=1e-6)


def test_noise_has_its_standard_deviation_and_no_offset():
    image, level = np.tile(IMAGE, (8, 8)), 8
    noise = augment.degrade(image, "noise", np.random.default_rng(0), level) - image
    assert noise.dtype == np.float32
    # 300,000 draws: five standard errors of a deviation and of a mean.
    assert noise.std() == pytest.approx(level, rel=5 / np.sqrt(2 * noise.size))
    assert noise.mean() == pytest.approx(0, abs=5 * level / np.sqrt(noise.size))


def test_noise_is_gaussian_in_its_tails():
    image = np.full((512, 512), 1000, np.float32)
    z = np.abs(augment.degrade(image, "noise", np.random.default_rng(1), 10) - image) / 10
    # Parts beyond one, two and three standard deviations, within five standard errors.
    for limit, part in ((1, 0.3173), (2, 0.0455), (3, 0.0027)):
        error = 5 * np.sqrt(part * (1 - part) / z.size)
        assert (z > limit).mean() == pytest.approx(part, abs=error)


def test_noise_is_the_generators():
    found = [augment.degrade(IMAGE, "noise", np.random.default_rng(s), 8) for s in (1, 1, 2)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).mean() > 0.9


def test_an_image_that_is_left_stays_itself():
    np.testing.assert_array_equal(augment.degrade(IMAGE, "", np.random.default_rng(0), 8), IMAGE)


@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_degrading_leaves_its_argument_alone(kind):
    image = IMAGE.copy()
    augment.degrade(image, kind, np.random.default_rng(0), 8)
    np.testing.assert_array_equal(image, IMAGE)
