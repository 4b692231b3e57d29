"""The sanity-check images: sheets of patches, and slices with their windows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import h5py
import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont

from pipeline.report import figures
from tests import naive
from tests.conftest import Tree
from tests.provenance import squeezed
from tests.running import called
from tests.scans import INTERCEPT, write_patient, write_slice

AUGMENTED = ("--rot_augment", "--ds_augment", "--air_threshold")


def run(cwd: Path, root: Path, *options: str, size: str = "p24") -> Path:
    """Run a job; return the folder of its report."""
    how = ["--input-folder", str(root), "--output-fname", "out.h5", "--overwrite"]
    ended = called(cwd, *how, "--patch-size", size, *options)
    assert (ended.status, ended.err) == (0, "")
    return cwd / "sanity_check" / "out"


@pytest.fixture(scope="module")
def folder(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run with every augmentation of patches."""
    return run(tmp_path_factory.mktemp("images"), tree.root, *AUGMENTED)


def sheets(folder: Path) -> dict[int, Path]:
    """Return the sheets by the patch that they begin with."""
    return {int(path.stem.removeprefix("sheet_")): path for path in folder.glob("sheet_*.png")}


def patches(folder: Path) -> tuple[Any, Any]:
    """Return all patches of the file that a report is on, of both roles."""
    with h5py.File(folder.parents[1] / "out.h5") as file:
        return squeezed(file["input"]), squeezed(file["target"])


def images(figure: Figure) -> list[Any]:
    """Return the arrays that a figure shows as images, without those of colour bars."""
    found: list[Any] = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    return [np.ma.filled(image, np.nan) for image in found]


# --- sheets ----------------------------------------------------------------------------------


def test_the_folder_holds_the_report_and_its_images(folder):
    kinds = [re.sub(r"_.*", "", path.name) for path in sorted(folder.iterdir())]
    assert kinds == [*["coverage"] * 4, "report.html", "report.json", *["sheet"] * 5]


def test_sheets_show_consecutive_patches_of_the_file(folder):
    both = patches(folder)
    with figures.style():
        for first, path in sheets(folder).items():
            title = f"Patches {first} to {first + 11} of out.h5"
            low, full = (values[first : first + 12] for values in both)
            expected = figures.sheet(low, full, title, "stored values")
            assert path.read_bytes() == figures.png(expected)


@pytest.mark.parametrize("size", [5, 24, 96])
def test_a_sheet_has_three_rows_of_four_patches_in_one_grey_range(size):
    rng = np.random.default_rng(0)
    both = rng.normal(0, 100, (2, 12, size, size)).astype(np.float32)
    figure = figures.sheet(both[0], both[1], "a title", "HU")
    gap = max(1, size // 24)
    for values, image in zip(both, images(figure), strict=True):
        assert image.shape == (3 * size + 2 * gap, 4 * size + 3 * gap)
        for i, patch in enumerate(values):
            top, left = (place * (size + gap) for place in divmod(i, 4))
            np.testing.assert_array_equal(image[top : top + size, left : left + size], patch)
        assert np.isfinite(image).sum() == values.size
    ranges = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    expected = np.quantile(both, (0.005, 0.995))
    assert ranges == [pytest.approx(tuple(expected))] * 2


def test_the_patches_shown_are_drawn_by_the_seed(tree, tmp_path):
    drawn = [set(sheets(run(tmp_path, tree.root, "--seed", seed))) for seed in ("1", "2", "1")]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_second_run_replaces_the_images_of_the_first_and_nothing_else(tree, tmp_path):
    made = run(tmp_path, tree.root, "--ds_augment", "--seed", "1")
    (made / "my notes.txt").write_text("keep")
    run(tmp_path, tree.root, "--seed", "2")
    alone = run(tmp_path / "alone", tree.root, "--seed", "2")
    found = {path.name: path.read_bytes() for path in made.iterdir()}
    assert found.pop("my notes.txt") == b"keep"
    assert found == {path.name: path.read_bytes() for path in alone.iterdir()}


@pytest.mark.parametrize(
    ("shape", "count", "rows", "columns"),
    [((24, 24), 1, 1, 1), ((24, 64), 3, 1, 3), ((44, 64), 6, 2, 4), ((44, 104), 10, 3, 4)],
)
def test_fewer_than_twelve_patches_give_a_smaller_sheet(tmp_path, shape, count, rows, columns):
    write_patient(tmp_path / "scans", "P1", 1, shape=shape)
    made = run(tmp_path, tmp_path / "scans")
    both = patches(made)
    assert len(both[0]) == count
    assert list(sheets(made)) == [0]
    for image in images(figures.sheet(*both, "", "")):
        assert image.shape == (rows * 25 - 1, columns * 25 - 1)


@pytest.mark.parametrize("kind", ["std_independent", "hu_window", "dataset_std"])
def test_images_of_constant_values_are_drawn(tmp_path, kind):
    for name, value in (("low", 1000), ("full", 1000)):
        flat = np.full((30, 30), value, np.uint16)
        write_slice(tmp_path / "scans" / "P1" / name / "1.dcm", flat)
    made = run(tmp_path, tmp_path / "scans", "--normalization-type", kind)
    assert len(sheets(made)) == 1


# --- slices with their windows ---------------------------------------------------------------


def naive_views(tree: Tree, index: int, size: int, overlap: int) -> list[figures.WindowedView]:
    """Return the target of a pair at every scale, with its windows, from the specification."""
    image = tree.pairs[index].target.astype(np.float32) + INTERCEPT
    views = []
    for scale in (1.0, 0.8, 0.6):
        shape = int(image.shape[0] * scale), int(image.shape[1] * scale)
        view: Any = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
        rows, cols = (naive.starts(length, size, overlap, "shift") for length in shape)
        kept = [
            [naive.is_kept(view[r : r + size, c : c + size].astype(float)) for c in cols]
            for r in rows
        ]
        views.append(
            figures.WindowedView(
                scale, view, np.array(rows), np.array(cols), size, np.array(kept, bool)
            )
        )
    return views


def test_coverage_shows_every_scale_with_the_windows_that_gave_patches(folder, tree):
    found = sorted(folder.glob("coverage_*.png"))
    assert len(found) == 4
    with figures.style():
        for path in found:
            match = re.fullmatch(r"coverage_(\w+)_(\d+)\.png", path.name)
            assert match
            pair = tree.pairs[int(match[2])]
            assert pair.patient == match[1]
            views = naive_views(tree, int(match[2]), 24, 4)
            assert not all(view.kept.all() for view in views)
            assert path.read_bytes() == figures.png(figures.coverage(views, pair.target_file))


def test_fewer_slices_give_fewer_images(tmp_path):
    write_patient(tmp_path / "scans", "P1", 2)
    found = run(tmp_path, tmp_path / "scans").glob("coverage_*")
    assert sorted(path.name for path in found) == ["coverage_P1_0.png", "coverage_P1_1.png"]


def outlines(figure: Figure) -> list[list[Any]]:
    """Return the outlines drawn on each view: of rejected windows, and of kept ones."""
    return [
        [one.get_segments() for one in axes.collections if isinstance(one, LineCollection)]
        for axes in figure.axes
        if axes.images
    ]


def test_every_window_is_outlined_at_its_place_kept_and_rejected_ones_apart(tree):
    views = naive_views(tree, 0, 24, 4)
    figure = figures.coverage(views, "")
    for view, (rejected, kept) in zip(views, outlines(figure), strict=True):
        for lines, chosen in ((rejected, ~view.kept), (kept, view.kept)):
            centres = [[*(line[:4].mean(axis=0) + 0.5)] for line in lines]
            expected = [
                [col + view.size / 2, row + view.size / 2]
                for i, row in enumerate(view.rows)
                for j, col in enumerate(view.cols)
                if chosen[i, j]
            ]
            np.testing.assert_allclose(centres, expected)
    for view, image in zip(views, images(figure), strict=True):
        np.testing.assert_array_equal(image, view.image_hu)


def test_of_many_windows_only_some_are_drawn(tree):
    starts = np.arange(500)
    view = figures.WindowedView(
        1.0, np.zeros((511, 511), np.float32), starts, starts, 12, np.ones((500, 500), bool)
    )
    ((_, kept),) = outlines(figures.coverage([view], ""))
    assert 2000 < len(kept) <= figures.MAX_DRAWN_WINDOWS


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (30, 400), (400, 30)])
def test_slices_of_any_shape_are_drawn(tmp_path, shape):
    write_patient(tmp_path / "scans", "P1", 1, shape=shape)
    write_patient(tmp_path / "scans", "P2", 1)
    options = (*AUGMENTED, "--anatomy-check", "off")
    found = run(tmp_path, tmp_path / "scans", *options).glob("coverage_*")
    assert sorted(path.name for path in found) == ["coverage_P1_0.png", "coverage_P2_1.png"]


# --- text ------------------------------------------------------------------------------------


def test_the_font_is_the_one_that_comes_with_matplotlib():
    assert Path(matplotlib.get_data_path()) in Path(findfont("DejaVu Sans")).parents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$\\frac{1}{0}$ \\$ $", "$\\frac{1}{0}$ \\$ $"),
        ("two\nlines\x1b", "two\\nlines\\x1b"),
        ("Zoë пациент", "Zoë пациент"),
        ("患者", "\\u60a3\\u8005"),
    ],
)
def test_any_text_is_one_plain_line(text, expected):
    assert figures.label(text) == expected
    with figures.style():
        patch = np.zeros((1, 4, 4), np.float32)
        figure = figures.sheet(patch, patch, text, "")
        assert figures.png(figure)
        assert [one.get_text() for one in figure.texts] == [expected]


def test_a_long_title_is_shortened():
    patch = np.zeros((1, 4, 4), np.float32)
    figure = figures.sheet(patch, patch, "a" * 300 + "b" * 300, "")
    with figures.style():
        figures.png(figure)
    (title,) = figure.texts
    assert re.fullmatch(r"a+ … b+", title.get_text())
    assert title.get_window_extent().x1 < figure.bbox.x1


def test_an_image_that_is_read_again_has_the_colours_of_its_windows(folder):
    for path in folder.glob("coverage_*.png"):
        pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
        for colour in (figures.KEPT_COLOUR, figures.AIR_COLOUR):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(pixels - rgb).max(axis=2) < 40).sum() > 500
