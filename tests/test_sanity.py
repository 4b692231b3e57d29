"""The sanity-check images: sheets of patches, and slices with their windows."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import cv2
import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont

from ctpatches.file import PatchFile
from ctpatches.schema import ORIENTATIONS
from patching import Grid
from pipeline.config import Config
from pipeline.report import figures, sanity
from tests import naive
from tests.conftest import Tree
from tests.running import REPO, called
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


def facts(folder: Path) -> Any:
    """Return the values of a report."""
    return json.loads((folder / "report.json").read_text())


def images(figure: Figure) -> list[Any]:
    """Return the arrays that a figure shows as images, without those of colour bars."""
    found: list[Any] = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    return [np.ma.filled(image, np.nan) for image in found]


# --- sheets of patches -----------------------------------------------------------------------


def test_the_folder_holds_the_report_and_its_images(folder):
    kinds = [re.sub(r"_.*", "", path.name) for path in sorted(folder.iterdir())]
    assert kinds == [*["coverage"] * 4, *["patches"] * 4, "report.html", "report.json"]


def test_sheets_show_patches_of_the_file_in_hu_with_their_provenance(folder):
    sheets = facts(folder)["sheets"]
    assert [one["file"] for one in sheets] == [f"patches_{i}.png" for i in range(1, 5)]
    with figures.style(), PatchFile(folder.parents[1] / "out.h5") as file:
        for number, one in enumerate(sheets, 1):
            rows = one["patches"]
            labels = []
            for row in rows:
                origin = file.provenance(row["patch"])
                assert row == {"patch": row["patch"], **vars(origin)}
                orientation = ORIENTATIONS[origin.orientation]
                labels.append(
                    [
                        origin.patient,
                        f"patch {row['patch']}",
                        f"{origin.position_mm:g} mm".replace("-", "\u2212"),
                        f"row {origin.row}, column {origin.col}",
                        f"scale {origin.scale:g}",
                        orientation if origin.orientation else "not rotated or flipped",
                    ]
                )
            both = file.read([row["patch"] for row in rows], unit="hu")
            sheet = figures.patch_rows(*both, labels, f"Patches of out.h5, sheet {number}")
            assert (folder / one["file"]).read_bytes() == figures.png(sheet)


def test_sheets_are_of_all_patients_and_scales_alike_and_show_no_patch_twice(folder):
    rows = [row for sheet in facts(folder)["sheets"] for row in sheet["patches"]]
    assert [len(sheet["patches"]) for sheet in facts(folder)["sheets"]] == [6] * 4
    assert len({row["patch"] for row in rows}) == 24
    for sheet in facts(folder)["sheets"]:
        patients = [row["patient"] for row in sheet["patches"]]
        assert {name: patients.count(name) for name in patients} == {"A01": 2, "B02": 2, "C03": 2}
    scales = [row["scale"] for row in rows]
    assert {scale: scales.count(scale) for scale in scales} == {1.0: 8, 0.8: 8, 0.6: 8}
    assert {row["orientation"] for row in rows} >= {0, 4, 5}


def test_labels_name_what_was_done_to_the_input_and_leave_out_an_unknown_position():
    row = {"patient": "P", "patch": 1, "row": 2, "col": 3, "scale": 0.8, "orientation": 1}
    lines = sanity.label({**row, "position_mm": None, "degradation": "blur"})
    ends = ["scale 0.8", "rotated by 90 degrees", "input blurred"]
    assert lines == ["P", "patch 1", "row 2, column 3", *ends]


def pixels(png: bytes) -> Any:
    return (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


#: Earlier releases of matplotlib round the sizes of figures differently, by one pixel.
exact_sizes = pytest.mark.skipif(
    matplotlib.__version_info__[:3] < (3, 11, 2), reason="other sizes before matplotlib 3.11.2"
)


@exact_sizes
@pytest.mark.parametrize("size", [1, 5, 12, 55, 96, 150, 256])
def test_every_pixel_of_a_patch_is_a_square_of_its_grey(size):
    rng = np.random.default_rng(0)
    low, full = rng.uniform(-1000, 600, (2, 3, size, size)).astype(np.float32)
    low[0], full[0] = -1000, 600
    side = size * max(1, round(figures.PATCH_PIXELS / size))
    with figures.style():
        figure = figures.patch_rows(low, full, [["a"]] * 3, "")
        drawn = pixels(figures.png(figure))
    least, most = figure.axes[0].images[0].get_clim()
    gap = side // size * max(1, size // 24)
    for column, values in enumerate((low, full)):
        grey = np.clip((values - least) / (most - least), 0, 1) * 255
        for row in range(3):
            top, left = 99 + row * (side + gap), 264 + column * (side + 12)
            found = drawn[top : top + side, left : left + side]
            expected = grey[row].repeat(side // size, 0).repeat(side // size, 1)
            assert np.abs(found - expected[..., None]).max() < 2


def test_grey_has_the_range_of_both_roles_and_the_difference_is_symmetric():
    rng = np.random.default_rng(0)
    low, full = rng.normal(0, 100, (2, 6, 24, 24)).astype(np.float32)
    figure = figures.patch_rows(low, full, [], "")
    limits = [axes.images[0].get_clim() for axes in figure.axes[:3]]
    expected = np.quantile([low, full], (0.005, 0.995))
    assert limits == [pytest.approx(tuple(expected))] * 2 + [(-300, 300)]
    difference = images(figure)[2]
    np.testing.assert_array_equal(difference[:24], low[0] - full[0])
    units = [axes.get_xlabel() for axes in figure.axes[3:]]
    assert units == ["HU", "input minus target, HU"]


def test_the_patches_shown_are_drawn_by_the_seed(tree, tmp_path):
    one = ("--sheets", "1", "--seed")
    drawn = [facts(run(tmp_path, tree.root, *one, seed))["sheets"] for seed in ("1", "2", "1")]
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_number_of_images_is_an_option_that_does_not_change_file_or_first_image(tree, tmp_path):
    made = {n: run(tmp_path / n, tree.root, "--sheets", n) for n in ("0", "1", "2")}
    names = {n: sorted(path.name for path in made[n].glob("*.png")) for n in made}
    assert names["0"] == facts(made["0"])["sheets"] == facts(made["0"])["coverage"] == []
    assert [re.sub(r"_.*", "", name) for name in names["1"]] == ["coverage", "patches"]
    first = [(made[n] / "patches_1.png").read_bytes() for n in ("1", "2")]
    assert first[0] == first[1]
    files = {(tmp_path / n / "out.h5").read_bytes() for n in made}
    assert len(files) == 1
    assert "None drawn" in (made["0"] / "report.html").read_text("utf-8")
    ended = called(tmp_path, "--input-folder", tree.root, "--sheets", "101")
    assert (ended.status, ended.err) == (
        2,
        "main.py: error: argument --sheets: 101; expected: an integer from 0 to 100 (see --help)\n",
    )


def test_a_second_run_replaces_the_images_of_the_first_and_nothing_else(tree, tmp_path):
    made = run(tmp_path, tree.root, "--ds_augment", "--seed", "1", "--sheets", "2")
    (made / "my notes.txt").write_text("keep")
    (made / "sheet_12.png").write_text("of an earlier version")
    run(tmp_path, tree.root, "--seed", "2", "--sheets", "1")
    alone = run(tmp_path / "alone", tree.root, "--seed", "2", "--sheets", "1")
    found = {path.name: path.read_bytes() for path in made.iterdir()}
    assert found.pop("my notes.txt") == b"keep"
    assert found == {path.name: path.read_bytes() for path in alone.iterdir()}


@exact_sizes
@pytest.mark.parametrize(
    ("shape", "rows"), [((24, 24), [1]), ((24, 64), [3]), ((44, 64), [6]), ((44, 104), [6, 4])]
)
def test_few_patches_give_smaller_sheets(tmp_path, shape, rows):
    write_patient(tmp_path / "scans", "P1", 1, shape=shape)
    made = run(tmp_path, tmp_path / "scans")
    sheets = facts(made)["sheets"]
    assert [len(sheet["patches"]) for sheet in sheets] == rows
    for sheet, count in zip(sheets, rows, strict=True):
        height = pixels((made / sheet["file"]).read_bytes()).shape[0]
        assert height == 99 + count * 216 + (count - 1) * 9 + 114


@pytest.mark.parametrize("kind", ["std_independent", "hu_window", "dataset_std"])
def test_images_of_constant_values_are_drawn(tmp_path, kind):
    for name, value in (("low", 1000), ("full", 1000)):
        flat = np.full((30, 30), value, np.uint16)
        write_slice(tmp_path / "scans" / "P1" / name / "1.dcm", flat)
    made = run(tmp_path, tmp_path / "scans", "--normalization-type", kind, "--sheets", "1")
    assert len(list(made.glob("patches_*"))) == 1


def test_large_patches_are_reduced(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1, shape=(400, 400))
    made = run(tmp_path, tmp_path / "scans", "--overlap", "0", "--sheets", "1", size="p400")
    assert pixels((made / "patches_1.png").read_bytes()).shape[0] == 99 + 256 + 114


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
        grid = Grid(view.shape, Config("x", patch_size=size, overlap=overlap))
        mask = np.array(kept, bool)
        views.append(figures.WindowedView(scale, view, grid, mask, ~mask))
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
                [col + 12, row + 12]
                for i, row in enumerate(view.grid.rows)
                for j, col in enumerate(view.grid.cols)
                if chosen[i, j]
            ]
            np.testing.assert_allclose(centres, expected)
    for view, image in zip(views, images(figure), strict=True):
        np.testing.assert_array_equal(image, view.image_hu)


def test_windows_in_another_file_are_neither_drawn_nor_counted(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    one = ("--sheets", "1")  # of the images, those of the only slice
    whole = facts(run(tmp_path / "whole", tmp_path / "scans", *one))["coverage"]
    first = run(tmp_path, tmp_path / "scans", *one, "--nsplit", "2").parent
    parts = [facts(first / f"out_{part}of2") for part in (1, 2)]
    for part in parts:
        ((counts,),) = (one["scales"] for one in part["coverage"])
        assert counts["windows"] == counts["kept"] == part["totals"]["patches"]
    assert sum(part["totals"]["patches"] for part in parts) == whole[0]["scales"][0]["windows"]
    grid = Grid((72, 72), Config("x", patch_size=24, overlap=0))
    kept, left_out = np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    kept[0], left_out[1, :2] = True, True
    view = figures.WindowedView(1.0, np.zeros((72, 72), np.float32), grid, kept, left_out)
    figure = figures.coverage([view], "")
    ((drawn_left_out, drawn_kept),) = outlines(figure)
    assert (len(drawn_kept), len(drawn_left_out)) == (3, 2)
    assert figure.axes[0].get_title("left").endswith("windows: 3 kept, 2 left out")


def test_the_outline_of_the_body_is_drawn_at_every_scale(tree):
    views = naive_views(tree, 0, 24, 4)
    body = np.zeros(views[0].image_hu.shape, bool)
    body[10:30, 20:60] = True
    for view, axes in zip(views, figures.coverage(views, "", body).axes, strict=False):
        (contour,) = (one for one in axes.collections if isinstance(one, ContourSet))
        (path,) = contour.get_paths()
        expected = np.array([(20, 10), (60, 30)]) * view.scale - 0.5
        corners = np.asarray(path.vertices)
        found = corners.min(axis=0), corners.max(axis=0)
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("shape", [(30, 400), (400, 30)])
def test_the_axes_of_narrow_slices_have_labels_that_do_not_overlap(shape):
    grid = Grid(shape, Config("x", patch_size=24, overlap=4))
    kept = np.ones((len(grid.rows), len(grid.cols)), bool)
    view = figures.WindowedView(1.0, np.zeros(shape, np.float32), grid, kept, ~kept)
    with figures.style():
        figure = figures.coverage([view], "")
        figures.png(figure)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        low, high = sorted(axis.get_view_interval())
        boxes = [text.get_window_extent() for at, text in ticks if low <= at <= high]
        assert boxes
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)


def test_of_many_windows_only_some_are_drawn(tree):
    image, kept = np.zeros((511, 511), np.float32), np.ones((500, 500), bool)
    grid = Grid(image.shape, Config("x", patch_size=12, overlap=11))
    view = figures.WindowedView(1.0, image, grid, kept, ~kept)
    ((_, kept),) = outlines(figures.coverage([view], ""))
    assert 500 < len(kept) <= figures.MAX_DRAWN_WINDOWS


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (30, 400), (400, 30)])
def test_slices_of_any_shape_are_drawn(tmp_path, shape):
    write_patient(tmp_path / "scans", "P1", 1, shape=shape)
    write_patient(tmp_path / "scans", "P2", 1)
    options = (*AUGMENTED, "--anatomy-check", "off", "--sheets", "2")
    found = run(tmp_path, tmp_path / "scans", *options).glob("coverage_*")
    assert sorted(path.name for path in found) == ["coverage_P1_0.png", "coverage_P2_1.png"]


# --- images of the documentation -------------------------------------------------------------


@exact_sizes
def test_the_images_of_the_documentation_are_those_of_the_sample_job(tmp_path):
    where = ("--input-folder", REPO / "raw_data", "--output-fname", "training_patches.h5")
    # Of three or four slices, the second image shown is the first one.
    assert called(tmp_path, *where, *AUGMENTED, "--sheets", "3").status == 0
    drawn = tmp_path / "sanity_check" / "training_patches"
    names = {"patches.png": "patches_1.png", "coverage.jpg": "coverage_phantom_01_1.png"}
    for shown, name in names.items():
        images = [cv2.imread(str(path)) for path in (REPO / "docs" / shown, drawn / name)]
        one, other = (image.astype(int) for image in images if image is not None)
        assert one.shape == other.shape
        # Other versions of matplotlib draw letters slightly differently; JPEG is lossy.
        assert np.abs(one - other).mean() < 3


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
    assert figures.label(text, 100) == expected
    with figures.style():
        patch = np.zeros((1, 4, 4), np.float32)
        figure = figures.patch_rows(patch, patch, [[text, "b"]], text)
        assert figures.png(figure)
        assert [one.get_text() for one in figure.texts] == [expected, f"{expected}\nb"]


def test_a_long_title_is_shortened():
    patch = np.zeros((1, 4, 4), np.float32)
    figure = figures.patch_rows(patch, patch, [["a" * 300 + "b" * 300]], "a" * 300 + "b" * 300)
    with figures.style():
        figures.png(figure)
    title, label = figure.texts
    assert re.fullmatch(r"a+ … b+", label.get_text())
    assert label.get_window_extent().x1 < 264  # where the patches begin
    assert re.fullmatch(r"a+ … b+", title.get_text())
    assert title.get_window_extent().x1 < figure.bbox.x1


def test_an_image_that_is_read_again_has_the_colours_of_its_windows(folder):
    for path in folder.glob("coverage_*.png"):
        pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
        for colour in (figures.KEPT_COLOUR, figures.AIR_COLOUR):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(pixels - rgb).max(axis=2) < 40).sum() > 500
