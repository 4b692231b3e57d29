"""Windows, the air mask, cutting, and the block of a pair."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import patching
from ctpatches.dicom.header import read_slice
from ctpatches.views import window_starts
from patching import Block, Grid
from pipeline.config import NORMALIZATIONS, Config
from pipeline.filling import make_block
from pipeline.model import Names, Pair, PairPlan
from pipeline.options import PATCH_OVERLAPS
from pipeline.survey import plan_pairs
from tests import naive
from tests.cutting import patches_of
from tests.scans import phantom, write_slice
from utils import Affine


@st.composite
def sizes_and_overlaps(draw: Any, most: int = 24) -> tuple[int, int]:
    size = draw(st.integers(1, most))
    overlap: int = draw(st.integers(0, size - 1))
    return size, overlap


lengths = st.integers(1, 90)


def grid_of(shape: Any, size: int, overlap: int, edge: str = "shift") -> Grid:
    return Grid(tuple(shape), Config("", patch_size=size, overlap=overlap, edge=edge))


# --- where windows begin ---------------------------------------------------------------------


@given(lengths, sizes_and_overlaps())
def test_shift_starts_equal_the_naive_ones(length, size_overlap):
    size, overlap = size_overlap
    found = window_starts(length, size, overlap, "shift")
    assert found.tolist() == naive.starts(length, size, overlap, "shift")


@given(lengths, sizes_and_overlaps().filter(lambda so: 2 * so[1] <= so[0]))
def test_pad_starts_equal_the_formula(length, size_overlap):
    size, overlap = size_overlap
    found = window_starts(length, size, overlap, "pad")
    assert found.tolist() == naive.starts(length, size, overlap, "pad")


@given(lengths, sizes_and_overlaps())
def test_shift_covers_every_pixel_and_none_beyond(length, size_overlap):
    size, overlap = size_overlap
    covered = {
        pixel
        for start in window_starts(length, size, overlap, "shift")
        for pixel in range(start, start + size)
    }
    assert covered == (set(range(length)) if length >= size else set())


@given(lengths, sizes_and_overlaps(), st.sampled_from(["shift", "pad"]))
def test_starts_ascend_inside_the_view(length, size_overlap, edge):
    size, overlap = size_overlap
    starts = window_starts(length, size, overlap, edge).tolist()
    assert starts == sorted(set(starts))
    assert all(0 <= start < length for start in starts)


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("size", PATCH_OVERLAPS)
@pytest.mark.parametrize("length", [512, 409, 307])
def test_named_sizes_have_the_naive_starts(length, size, edge):
    overlap = PATCH_OVERLAPS[size]
    found = window_starts(length, size, overlap, edge)
    assert found.tolist() == naive.starts(length, size, overlap, edge)


@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        ("shift", [0, 47, 94, 141, 188, 235, 282, 329, 376, 423, 457]),
        ("pad", [0, 39, 86, 133, 180, 227, 274, 321, 368, 415, 462]),
    ],
)
def test_starts_of_p55_on_512_pixels(edge, expected):
    assert window_starts(512, 55, 8, edge).tolist() == expected


def test_the_presets_are_those_of_the_specification():
    expected = {96: 12, 75: 11, 64: 4, 55: 8, 42: 6, 32: 4, 24: 4, 12: 4}
    assert expected == PATCH_OVERLAPS


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("shape", [(23, 80), (80, 23), (23, 23)])
def test_a_view_smaller_than_a_patch_gives_no_window(shape, edge):
    grid = grid_of(shape, 24, 4, edge)
    assert len(grid) == 0
    assert grid.windows[0].tolist() == []


@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_a_view_of_the_size_of_a_patch_gives_a_window_at_its_corner(edge):
    rows, cols = grid_of((24, 24), 24, 0, edge).windows
    assert (rows.tolist(), cols.tolist()) == ([0], [0])


@given(lengths, lengths, sizes_and_overlaps(), st.sampled_from(["shift", "pad"]))
def test_windows_go_row_by_row(height, width, size_overlap, edge):
    size, overlap = size_overlap
    rows, cols = grid_of((height, width), size, overlap, edge).windows
    by_row, by_col = (window_starts(n, size, overlap, edge) for n in (height, width))
    assert list(zip(rows, cols, strict=True)) == list(itertools.product(by_row, by_col))


# --- the air rule `patch` --------------------------------------------------------------------

PATCH_RULE = Config("")


def positions(grid: Grid) -> list[tuple[int, int]]:
    return [(int(r), int(c)) for r, c in zip(*grid.windows, strict=True)]


def naive_mask(view: Any, grid: Grid, *limits: float) -> list[bool]:
    large = np.full((400, 400), -1024, np.float32)
    large[: view.shape[0], : view.shape[1]] = view
    windows = (large[r : r + grid.size, c : c + grid.size] for r, c in positions(grid))
    return [naive.is_kept(window, *limits) for window in windows]


#: The thresholds, the next floats above them, and some on either side.
AT_THE_THRESHOLDS = [
    *(-1024, -924, np.nextafter(np.float32(-924), np.float32(0)), -900),
    *(-824, np.nextafter(np.float32(-824), np.float32(0)), -823, 0, 1000),
]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(4, 16), st.integers(4, 16)),
        elements=st.sampled_from(AT_THE_THRESHOLDS),
    ),
    st.integers(1, 6).flatmap(lambda s: st.tuples(st.just(s), st.integers(0, s // 2))),
    st.sampled_from(["shift", "pad"]),
    st.sampled_from([(-824.0, 0.1), (-824.0, 0.0), (-900.0, 0.5), (0.0, 0.25), (-1024.0, 0.9)]),
)
def test_the_air_mask_equals_a_loop_over_patches(view, size_overlap, edge, limits):
    size, overlap = size_overlap
    grid = grid_of(view.shape, size, overlap, edge)
    rule = Config("", air_threshold=True, air_threshold_hu=limits[0], air_fraction=limits[1])
    if len(grid):
        found = patching.kept_windows(view, grid, rule).tolist()
        assert found == naive_mask(view, grid, *limits)


@pytest.mark.parametrize(
    ("tissue", "kept"), [(10, False), (11, True)], ids=["10 of 100", "11 of 100"]
)
def test_more_than_a_tenth_of_the_pixels_must_be_tissue(tissue, kept):
    view = np.full((10, 10), -900, np.float32)
    view.ravel()[:tissue] = -823
    assert patching.kept_windows(view, grid_of((10, 10), 10, 0), PATCH_RULE).tolist() == [kept]


def test_a_pixel_of_just_minus_824_hu_is_no_tissue():
    view = np.full((10, 10), -824, np.float32)
    assert patching.kept_windows(view, grid_of((10, 10), 10, 0), PATCH_RULE).tolist() == [False]


@pytest.mark.parametrize(
    ("lift", "kept"), [(0, False), (1, True)], ids=["mean of -924", "mean above -924"]
)
def test_the_mean_must_lie_above_minus_924_hu(lift, kept):
    # 20 pixels at -524 and 80 at -1024 have a mean of -924.
    view = np.full((10, 10), -1024, np.float32)
    view.ravel()[:20] = -524
    view[-1, -1] += lift
    assert patching.kept_windows(view, grid_of((10, 10), 10, 0), PATCH_RULE).tolist() == [kept]


def test_the_tissue_limit_is_rounded_down():
    # int(0.1 x 7 x 7) = 4: five pixels are more.
    view = np.full((7, 7), -900, np.float32)
    view.ravel()[:5] = 0
    assert patching.kept_windows(view, grid_of((7, 7), 7, 0), PATCH_RULE).tolist() == [True]
    view.ravel()[4] = -900
    assert patching.kept_windows(view, grid_of((7, 7), 7, 0), PATCH_RULE).tolist() == [False]


def config_of(**options: Any) -> Config:
    return Config("", **{"patch_size": 24, "overlap": 4, **options})


@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_the_kept_mask_survives_packing(edge):
    config = config_of(patch_size=12, ds_augment=True, air_threshold=True, edge=edge)
    target = phantom((64, 80), 1)[1].astype(np.float32) - 1024
    (part,) = plan_pairs(target.shape, config, [target])
    for view, scale in enumerate(config.scales):
        small = naive.downscale(target, scale)
        grid = grid_of(small.shape, 12, 4, edge)
        expected = naive_mask(small, grid)
        assert part.kept_masks()[view].tolist() == expected
        assert 0 < sum(expected) < len(expected)
    assert part.kept_windows == sum(mask.sum() for mask in part.kept_masks())


def test_without_the_target_every_window_is_kept():
    (part,) = plan_pairs((64, 80), config_of(ds_augment=True), [None])
    assert part.numbers == (3 * 4, 3 * 3, 2 * 3)
    assert part.kept_windows == 12 + 9 + 6


def test_views_smaller_than_a_patch_count_no_windows():
    (part,) = plan_pairs((64, 80), config_of(patch_size=50, ds_augment=True), [None])
    assert part.numbers == (4, 4, 0)


# --- cutting ---------------------------------------------------------------------------------


@given(st.integers(5, 14), st.integers(5, 14), st.integers(1, 5), st.data())
def test_a_patch_is_cut_and_then_turned_whatever_its_code(height, width, size, data):
    view = np.arange(height * width, dtype=np.float32).reshape(height, width)
    n = data.draw(st.integers(1, 8))
    rows = data.draw(arrays.arrays(np.int32, n, elements=st.integers(0, view.shape[0] - size)))
    cols = data.draw(arrays.arrays(np.int32, n, elements=st.integers(0, view.shape[1] - size)))
    codes = data.draw(arrays.arrays(np.uint8, n, elements=st.integers(0, 5)))
    block = Block(
        views={"input": [view]},
        starts=[0, n],
        size=size,
        scale=np.ones(n, np.float32),
        row=rows,
        col=cols,
        orientation=codes,
    )
    for patch, row, col, code in zip(patches_of(block, "input"), rows, cols, codes, strict=True):
        window = view[row : row + size, col : col + size]
        np.testing.assert_array_equal(patch, naive.TURNED[int(code)](window))


# --- orientations of a view ------------------------------------------------------------------


def test_without_rot_augment_every_patch_is_as_it_is():
    codes = patching.draw_orientations(5, False, 0, "a", 1.0)
    assert codes.tolist() == [[0]] * 5


def test_with_rot_augment_a_window_gives_itself_a_turn_and_a_flip():
    codes = patching.draw_orientations(600, True, 0, "a", 1.0)
    assert [set(column.tolist()) for column in codes.T] == [{0}, {1, 2, 3}, {4, 5}]


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"identity": "b"}, {"scale": 0.8}],
    ids=["seed", "pair", "scale"],
)
def test_orientations_depend_on_seed_pair_and_scale(changed):
    def draw(seed: int = 0, identity: str = "a", scale: float = 1.0) -> Any:
        return patching.draw_orientations(100, True, seed, identity, scale).tolist()

    assert draw() == draw()
    assert draw() != draw(**changed)


# --- the block of a pair ---------------------------------------------------------------------


def pair_on_disk(folder: Path, slope: float = 1, intercept: float = -1024) -> tuple[Pair, Any, Any]:
    images = phantom((64, 80), 2, 3)
    for name, image in zip(("low", "full"), images, strict=True):
        write_slice(folder / name, image, slope=slope, intercept=intercept)
    pair = Pair("P", *(read_slice(str(folder), name) for name in ("low", "full")))
    return pair, images[0].astype(np.float32), images[1].astype(np.float32)


def made_of(
    pair: Pair,
    low: Any,
    full: Any,
    config: Config,
    degradation: str = "",
    fixed: Affine | None = None,
) -> Any:
    hu = (full * pair.target.slope + pair.target.intercept).astype(np.float32)
    (windows,) = plan_pairs(full.shape, config, [hu if config.air_threshold else None])
    planned = PairPlan(pair, Names("", "", ""), windows, degradation, fixed, ())
    return make_block(planned, low.copy(), full.copy(), config)


def block_of(*arguments: Any) -> Any:
    return made_of(*arguments)[0]


KINDS = ["None", "unity_independent", "unity_wrt_ld", "std_independent", "std_wrt_ld"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, -1024), (0.5, -1000)], ids=["in HU steps", "in half HU steps"]
)
def test_a_block_equals_the_naive_pair(tmp_path, kind, edge, slope, intercept):
    pair, low, full = pair_on_disk(tmp_path, slope, intercept)
    config = config_of(
        edge=edge,
        normalization_type=kind,
        rot_augment=True,
        ds_augment=True,
        air_threshold=True,
    )
    block = block_of(pair, low, full, config)
    expected = naive.patches_of_pair(
        low,
        full,
        size=24,
        overlap=4,
        edge=edge,
        kind=kind,
        scales=(1.0, 0.8, 0.6),
        air_threshold=True,
        slope=slope,
        intercept=intercept,
    )
    assert len(block.scale) == 3 * len(expected) > 0
    for i, patch in enumerate(p for p in expected for _ in range(3)):
        at = (float(block.scale[i]), int(block.row[i]), int(block.col[i]))
        assert at == (float(np.float32(patch.scale)), patch.row, patch.col)
        turn = naive.TURNED[int(block.orientation[i])]
        np.testing.assert_array_equal(patches_of(block, "input")[i], turn(patch.input))
        np.testing.assert_array_equal(patches_of(block, "target")[i], turn(patch.target))
    assert set(block.orientation[0::3].tolist()) == {0}
    assert set(block.orientation[1::3].tolist()) == {1, 2, 3}
    assert set(block.orientation[2::3].tolist()) == {4, 5}


def test_without_augmentation_a_block_is_the_windows_as_they_are(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    block, affines, _ = made_of(pair, low, full, config_of())
    expected = naive.patches_of_pair(low, full, size=24, overlap=4)
    np.testing.assert_array_equal(patches_of(block, "input"), [patch.input for patch in expected])
    np.testing.assert_array_equal(patches_of(block, "target"), [patch.target for patch in expected])
    assert affines == [Affine(), Affine()]


def test_patches_look_the_same_with_and_without_the_air_threshold(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    both = [
        block_of(
            pair,
            low,
            full,
            config_of(rot_augment=True, ds_augment=True, blurr_n_noise=True, air_threshold=air),
            "noise",
        )
        for air in (False, True)
    ]
    sets = [
        {
            (float(b.scale[i]), int(b.row[i]), int(b.col[i]), patch.tobytes())
            for i, patch in enumerate(patches_of(b, "input"))
        }
        for b in both
    ]
    assert sets[1] < sets[0]


def test_blur_changes_the_input_views_and_nothing_else(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    block = block_of(pair, low, full, config_of(ds_augment=True), "blur")
    expected = naive.patches_of_pair(
        low, full, size=24, overlap=4, scales=(1.0, 0.8, 0.6), blur=True
    )
    np.testing.assert_array_equal(patches_of(block, "input"), [patch.input for patch in expected])
    np.testing.assert_array_equal(patches_of(block, "target"), [patch.target for patch in expected])


def test_noise_changes_the_input_alone_and_is_one_for_the_whole_view(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    block = block_of(pair, low, full, config_of(), "noise")
    expected = naive.patches_of_pair(low, full, size=24, overlap=4)
    np.testing.assert_array_equal(patches_of(block, "target"), [patch.target for patch in expected])
    view = np.full((64, 80), np.nan, np.float32)
    for patch, row, col in zip(patches_of(block, "input"), block.row, block.col, strict=True):
        there = view[row : row + 24, col : col + 24]
        seen = ~np.isnan(there)
        np.testing.assert_array_equal(there[seen], patch[seen])
        there[...] = patch
    assert (view - low).std() == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("intensity", ["stored", "hu"])
def test_noise_is_8_hu_for_every_normalisation_and_scale(tmp_path, kind, intensity):
    pair, low, full = pair_on_disk(tmp_path, slope=0.5)
    config = config_of(normalization_type=kind, intensity=intensity, ds_augment=True)
    if config.in_hu:
        low, full = (one * np.float32(0.5) - 1024 for one in (low, full))
    fixed = Affine(-900, 4000) if kind.startswith(("hu", "dataset")) else None
    clean, (affine, _), _ = made_of(pair, low, full, config, fixed=fixed)
    noisy = block_of(pair, low, full, config, "noise", fixed)
    hu_per_unit = affine.divisor * (1 if config.in_hu else 0.5)
    for a, b in zip(clean.views["input"], noisy.views["input"], strict=True):
        free = (a > a.min()) & (a < a.max())
        assert ((b - a)[free] * hu_per_unit).std() == pytest.approx(8, rel=0.05)
    if kind == "hu_window":
        assert min(v.min() for v in noisy.views["input"]) == 0


def test_a_constant_input_receives_no_noise_if_it_is_normalised(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    block = block_of(pair, low * 0, full, config_of(normalization_type="std_wrt_ld"), "noise")
    assert not patches_of(block, "input").any()


def test_a_block_without_windows_is_empty(tmp_path):
    pair, low, full = pair_on_disk(tmp_path)
    block = block_of(pair, low, full, config_of(patch_size=65, rot_augment=True))
    assert patches_of(block, "input").shape == patches_of(block, "target").shape == (0, 65, 65)
