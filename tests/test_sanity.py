"""The pictures to check a data set by."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import sanity
from pipeline import filling
from pipeline.mpi.parallel import World
from pipeline.run import find, make_plans
from tests.conftest import Tree
from tests.provenance import squeezed
from tests.running import called
from tests.scans import write_patient
from utils import Config, Pair, Tally, ToolError

FOLDER = "sanity_check/scans/norm_{}_patch_size_{}"


def run(cwd: Path, tree: Tree, *options: str, kind: str = "None", size: str = "p24") -> Path:
    """Run a job; return the folder of its pictures."""
    how = ["--input-folder", str(tree.root), "--output-fname", "out.h5", "--overwrite"]
    how += ["--normalization-type", kind, "--patch-size", size]
    ended = called(cwd, *how, *options)
    assert (ended.status, ended.err) == (0, "")
    return cwd / FOLDER.format(kind, size)


def grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.array(picture)


def sheets(folder: Path, side: str) -> dict[int, Path]:
    """Return the pictures of a side by the patch that they begin with."""
    found = {}
    for path in folder.glob(f"{side}_input_sub_img_rand_*.png"):
        match = re.fullmatch(rf"{side}_input_sub_img_rand_(\d+)\.png", path.name)
        assert match
        found[int(match[1])] = path
    return found


def tiles(picture: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    """Cut a picture of 3 x 4 patches into them, each at one pixel a pixel."""
    times = -(-sanity.SHOWN_SIZE // size)
    step = size * times + sanity.GAP
    found = []
    for row in range(3):
        for col in range(4):
            top, left = sanity.GAP + row * step, sanity.GAP + col * step
            tile = picture[top : top + size * times, left : left + size * times]
            small = tile[::times, ::times]
            np.testing.assert_array_equal(tile, small.repeat(times, axis=0).repeat(times, axis=1))
            found.append(small)
    return found


def test_an_error_in_a_picture_names_its_slice(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(str(tree.root), str(tmp_path / "out.h5"), patch_size=24, overlap=4)
    world, tally = World(None), Tally()
    plans = make_plans(find(config, world, tally), config, world, tally)
    task = filling.to_draw(plans, config, together=True)[0]
    assert len(task.slices) == 4
    guilty = task.slices[2][1]

    def coverage(pair: Pair, *_: object) -> bytes:
        if pair == guilty:
            raise ValueError("a bug")
        return b""

    monkeypatch.setattr(sanity, "coverage", coverage)
    with pytest.raises(ToolError, match=f"^{re.escape(guilty.input.file)}: ValueError .*a bug"):
        filling.draw(task, config)


@pytest.fixture(scope="module")
def pictures(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the working folder of a run with every augmentation."""
    cwd = tmp_path_factory.mktemp("pictures")
    run(cwd, tree, "--rot_augment", "--ds_augment", "--air_threshold")
    return cwd


@pytest.fixture
def folder(pictures: Path) -> Path:
    return pictures / FOLDER.format("None", "p24")


def test_five_pairs_of_pictures_begin_at_the_same_patches(folder):
    low, high = sheets(folder, "lr"), sheets(folder, "hr")
    assert len(low) == 5
    assert low.keys() == high.keys()


def test_every_picture_lies_in_the_folder_of_the_run(folder):
    assert len(list(folder.iterdir())) == 5 + 5 + 4
    assert {path.suffix for path in folder.iterdir()} == {".png"}


@pytest.mark.parametrize(("size", "times"), [("p24", 7), ("p12", 14), ("p55", 3)])
def test_pictures_show_three_rows_of_four_patches(tree, tmp_path, size, times):
    made = run(tmp_path, tree, size=size)
    step = int(size[1:]) * times + 4
    expected = (3 * step + 4, 4 * step + 4)
    shapes = {grey(p).shape for side in ("lr", "hr") for p in sheets(made, side).values()}
    assert shapes == {expected}


def test_pictures_show_consecutive_patches_in_one_grey_range(pictures, folder):
    with h5py.File(pictures / "out.h5") as file:
        patches = {"lr": squeezed(file["input"]), "hr": squeezed(file["target"])}
    for first in sheets(folder, "lr"):
        values, greys = [], []
        for side in ("lr", "hr"):
            for i, tile in enumerate(tiles(grey(sheets(folder, side)[first]), 24)):
                values.append(patches[side][first + i].ravel())
                greys.append(tile.ravel())
        value, shade = np.concatenate(values), np.concatenate(greys).astype(int)
        # One range for both: wherever a value stands, it has one grey, and more is never darker.
        order = np.lexsort((shade, value))
        value, shade = value[order], shade[order]
        assert (np.diff(shade) >= 0).all()
        assert (np.diff(shade)[np.diff(value) == 0] == 0).all()
        assert (shade[0], shade[-1]) == (0, 255)


def test_the_patches_shown_are_drawn_by_the_seed(tree, tmp_path):
    drawn = [set(sheets(run(tmp_path, tree, "--seed", seed), "lr")) for seed in ("1", "2", "1")]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("kind", ["unity_independent", "std_wrt_ld"])
def test_normalised_runs_have_a_folder_of_their_own(tree, tmp_path, kind):
    made = run(tmp_path, tree, kind=kind)
    assert len(sheets(made, "lr")) == 5
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_a_second_run_removes_the_pictures_of_the_first(tree, tmp_path):
    run(tmp_path, tree, "--ds_augment", "--seed", "1")
    made = run(tmp_path, tree, "--seed", "2")
    alone = run(tmp_path / "alone", tree, "--seed", "2")
    assert {path.name for path in made.iterdir()} == {path.name for path in alone.iterdir()}


def test_what_else_lies_in_the_folder_stays(tree, tmp_path):
    made = run(tmp_path, tree)
    (made / "my notes.txt").write_text("keep")
    run(tmp_path, tree)
    assert (made / "my notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("shape", "patches", "rows", "columns"),
    [((24, 24), 1, 1, 1), ((24, 64), 3, 1, 3), ((44, 64), 6, 2, 4), ((44, 104), 10, 3, 4)],
)
def test_fewer_than_twelve_patches_give_a_smaller_picture(tmp_path, shape, patches, rows, columns):
    write_patient(tmp_path / "scans", "P1", 1, shape=shape)
    made = run(tmp_path, Tree(tmp_path / "scans", []))
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file["input"]) == patches
    assert list(sheets(made, "lr")) == list(sheets(made, "hr")) == [0]
    step = 24 * 7 + 4
    assert grey(sheets(made, "hr")[0]).shape == (rows * step + 4, columns * step + 4)


def test_constant_patches_give_pictures(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 1, shape=(30, 30))
    tree = Tree(tmp_path / "scans", made)
    folder = run(tmp_path, tree, "--normalization-type", "std_independent", kind="std_independent")
    assert len(sheets(folder, "lr")) == 1


# --- slices with their windows ---------------------------------------------------------------


def coloured(path: Path, blue_green_red: tuple[int, int, int]) -> int:
    """Return how many pixels of a picture have a colour."""
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    return int((pixels == blue_green_red[::-1]).all(axis=2).sum())


def coverages(folder: Path) -> list[Path]:
    return sorted(folder.glob("coverage_*.png"))


def test_up_to_four_slices_are_shown_with_their_patients_names(folder, tree):
    names = [re.fullmatch(r"coverage_(\w+)_(\d+)\.png", p.name) for p in coverages(folder)]
    assert len(names) == 4
    for match in names:
        assert match
        assert tree.pairs[int(match[2])].patient == match[1]


def test_fewer_slices_give_fewer_pictures(tmp_path):
    write_patient(tmp_path / "scans", "P1", 2)
    found = coverages(run(tmp_path, Tree(tmp_path / "scans", [])))
    assert [path.name for path in found] == ["coverage_P1_0.png", "coverage_P1_1.png"]


def test_slices_show_kept_and_rejected_windows_in_two_colours(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    tree = Tree(tmp_path / "scans", [])
    count = {}
    for options in ((), ("--air_threshold",)):
        (path,) = coverages(run(tmp_path, tree, *options, size="p12"))
        count[options] = [coloured(path, c) for c in (sanity.KEPT_COLOUR, sanity.AIR_COLOUR)]
    kept, rejected = 0, 1
    # Without the threshold, what is drawn as rejected is the box of the legend alone.
    legend = np.zeros((20, 20, 3), np.uint8)
    sanity._box(legend, (1, 1), 18, sanity.AIR_COLOUR, dashed=True)
    assert count[()][rejected] == np.count_nonzero((legend == sanity.AIR_COLOUR).all(axis=2))
    assert count["--air_threshold",][rejected] > 10 * count[()][rejected]
    assert count[()][kept] > count["--air_threshold",][kept] > 1000


def test_pictures_of_slices_widen_with_the_scales(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    tree = Tree(tmp_path / "scans", [])
    widths = []
    for options in ((), ("--ds_augment",)):
        (path,) = coverages(run(tmp_path, tree, *options))
        with Image.open(path) as picture:
            widths.append(picture.width)
    # A panel is as wide as its image or what is written above it, a picture at least as its legend.
    assert widths[0] == sanity.LEGEND
    assert widths[1] > sum((80, 64, 48)) + 3 * sanity.MARGIN
