"""Whole runs on made-up scans: the same bytes for any number of ranks, and every patch right."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydicom.uid import RLELossless

from tests import provenance
from tests.conftest import Tree
from tests.running import Ended, called, contents, ranks, ranks_of, serial
from tests.scans import PATIENTS, write_patient, write_slice, write_tree

ALL = "--rot_augment --ds_augment --air_threshold --blurr_n_noise --random_N 3"
#: Options of each job, without what says where and how.
JOBS = {
    "nothing": "",
    "rot": "--rot_augment",
    "ds": "--ds_augment",
    "air": "--air_threshold",
    "body": "--air_threshold --air-rule body --min-body 0.3 --ds_augment --edge pad",
    "blurr_n_noise": "--blurr_n_noise",
    "random_N": "--random_N 3",
    "pad": "--edge pad",
    "all": ALL,
    "all, pad": f"{ALL} --edge pad --seed 5",
    "unity_independent": "--normalization-type unity_independent --ds_augment --edge pad",
    "unity_wrt_ld": "--normalization-type unity_wrt_ld --rot_augment",
    "std_independent": "--normalization-type std_independent --ds_augment --air_threshold",
    "std_wrt_ld": "--normalization-type std_wrt_ld --edge pad --rot_augment",
}
JOBS |= {f"{name}, tf": f"{JOBS[name]} --tensor-format tf" for name in ("nothing", "all, pad")}
RANKS = (1, 2, 3, 8)
#: Other values of --hand_over than `auto`.
HAND_OVERS = ("messages", "direct")


def argv(tree: Tree, name: str, file: str | Path) -> list[str]:
    where = ["--input-folder", str(tree.root), "--output-fname", str(file)]
    return [*where, "--patch-size", "p24", "--no-report", *JOBS[name].split()]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def file_of(name: str) -> str:
    return re.sub(r"\W+", "_", name) + ".h5"


class Files:
    """The files of all jobs, made when first asked for."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self.root, self.tree = root, tree
        self._serial = cache(self._run_serial)
        self._ranks = cache(self._run_ranks)

    def serial(self, name: str) -> Path:
        """Return the file of a job that this process made alone."""
        ended = self._serial(name)
        assert (ended.status, ended.err) == (0, "")
        return self.root / "serial" / file_of(name)

    def of_ranks(self, n: int) -> Path:
        """Return the folder with the files of all jobs that n ranks made."""
        ended = self._ranks(n)
        assert (ended.status, ended.err) == (0, "")
        return self.root / str(n)

    def _run_serial(self, name: str) -> Ended:
        return called(self.root / "serial", *argv(self.tree, name, file_of(name)))

    def _run_ranks(self, n: int) -> Ended:
        folder = self.root / str(n)
        folder.mkdir()
        jobs = [[*argv(self.tree, name, file_of(name)), "--mpi_run"] for name in JOBS]
        for how in HAND_OVERS:
            job = [*argv(self.tree, "all, pad", f"{how}.h5"), "--mpi_run", "--hand_over", how]
            jobs.append(job)
        (folder / "jobs.json").write_text(json.dumps(jobs))
        return ranks_of(n, "jobs.py", folder, "jobs.json")


@pytest.fixture(scope="module")
def files(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("end_to_end"), tree)


# --- the same bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("n", RANKS)
def test_ranks_make_the_bytes_of_the_serial_run(files, n, name):
    assert digest(files.of_ranks(n) / file_of(name)) == digest(files.serial(name))


@pytest.mark.parametrize("how", HAND_OVERS)
@pytest.mark.parametrize("n", RANKS)
def test_blocks_that_are_handed_over_in_other_ways_make_the_same_bytes(files, n, how):
    assert digest(files.of_ranks(n) / f"{how}.h5") == digest(files.serial("all, pad"))


@pytest.mark.parametrize("n", RANKS)
def test_a_run_leaves_its_file_alone(files, n):
    left = {path.name for path in files.of_ranks(n).iterdir()} - {"jobs.json"}
    assert {Path(name).suffix for name in left} == {".h5"}


def test_other_jobs_make_other_files(files):
    assert len({digest(files.serial(name)) for name in JOBS}) == len(JOBS)


@pytest.fixture(scope="module")
def command_line(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """Make the file of `all` by the serial command line."""
    cwd = tmp_path_factory.mktemp("serial")
    return serial(cwd, *argv(tree, "all", "results/deep/out.h5")), cwd / "results/deep/out.h5"


@pytest.mark.parametrize("n", [1, 3])
def test_mpiexec_main_py_makes_the_bytes_of_python_main_py(tree, command_line, tmp_path, n):
    by_ranks = ranks(n, tmp_path, *argv(tree, "all", "out.h5"), "--mpi_run")
    for ended in (by_ranks, command_line[0]):
        assert (ended.status, ended.err) == (0, "")
    assert digest(tmp_path / "out.h5") == digest(command_line[1])


def test_the_command_line_makes_what_a_call_makes(files, command_line):
    assert digest(command_line[1]) == digest(files.serial("all"))


def test_another_place_and_name_make_the_same_bytes(files, tmp_path):
    elsewhere = Tree(tmp_path / "a b" / "scans", [])
    write_tree(elsewhere.root)
    ended = called(tmp_path, *argv(elsewhere, "all", tmp_path / "x" / "y.hdf5"))
    assert ended.status == 0
    assert digest(tmp_path / "x" / "y.hdf5") == digest(files.serial("all"))


def test_renamed_slices_give_the_same_patches(files, tree, tmp_path):
    renamed = Tree(tmp_path / "scans", [])
    write_tree(renamed.root)
    for i, path in enumerate(sorted(renamed.root.glob("*/full*/*"), reverse=True)):
        path.rename(path.with_name(f"x{i}"))
    called(tmp_path, *argv(renamed, "all", tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as here, h5py.File(files.serial("all")) as there:
        for name in ("input", "target"):
            np.testing.assert_array_equal(here[name][...], there[name][...])


# --- what is in the file ---------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_every_patch_turned_back_is_the_pixels_that_the_file_names(files, tree, name):
    assert provenance.wrong_patches(files.serial(name), tree.root) == []


WINDOWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rot": {},
    "ds": {"scales": (1.0, 0.8, 0.6)},
    "air": {"air_threshold": True},
    "body": {"min_body": 0.3, "scales": (1.0, 0.8, 0.6), "edge": "pad"},
    "blurr_n_noise": {},
    "pad": {"edge": "pad"},
    "unity_independent": {"scales": (1.0, 0.8, 0.6), "edge": "pad"},
    "std_independent": {"scales": (1.0, 0.8, 0.6), "air_threshold": True},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_windows_are_those_of_the_naive_reference(files, tree, name):
    pairs = [(tree.root / p.input_file, tree.root / p.target_file) for p in tree.pairs]
    expected = provenance.expected_windows(pairs, size=24, overlap=4, **WINDOWS[name])
    found = provenance.windows(files.serial(name))
    assert list(found) == list(expected)
    assert max(map(len, found.values())) == (3 if name == "rot" else 1)


@pytest.mark.parametrize("name", [name for name in JOBS if "rot_augment" in JOBS[name]])
def test_with_rot_augment_each_window_comes_as_it_is_turned_and_flipped(files, name):
    kinds = {tuple(codes) for codes in provenance.windows(files.serial(name)).values()}
    assert kinds <= {(0, turn, flip) for turn in (1, 2, 3) for flip in (4, 5)}
    assert len(kinds) == 6


@pytest.mark.parametrize("name", [name for name in JOBS if "rot_augment" not in JOBS[name]])
def test_without_rot_augment_each_window_comes_as_it_is(files, name):
    assert {tuple(c) for c in provenance.windows(files.serial(name)).values()} == {(0,)}


def column(file: Path, name: str) -> list[object]:
    with h5py.File(file) as opened:
        values: list[object] = opened[name][...].tolist()
    return values


@pytest.mark.parametrize("n", [*RANKS, "serial"])
def test_no_pair_is_lost_to_the_rank_count(files, tree, n):
    file = files.serial("nothing") if n == "serial" else files.of_ranks(n) / file_of("nothing")
    assert column(file, "pair/input_file") == [pair.input_file.encode() for pair in tree.pairs]
    assert column(file, "pair/target_file") == [pair.target_file.encode() for pair in tree.pairs]
    assert set(column(file, "patch/pair")) == set(range(len(tree.pairs)))


@pytest.mark.parametrize(
    ("name", "shape"), [("nothing", (120, 1, 24, 24)), ("nothing, tf", (120, 24, 24, 1))]
)
def test_patches_have_the_shape_of_the_tensor_format(files, name, shape):
    with h5py.File(files.serial(name)) as file:
        for side in ("input", "target"):
            assert (file[side].shape, file[side].dtype) == (shape, np.float32)


def test_tf_holds_the_patches_of_torch(files):
    with (
        h5py.File(files.serial("all, pad")) as torch,
        h5py.File(files.serial("all, pad, tf")) as tf,
    ):
        for side in ("input", "target"):
            np.testing.assert_array_equal(torch[side][:, 0], tf[side][..., 0])


def test_of_ten_pairs_four_are_blurred_and_four_noisy(files):
    kinds = Counter(column(files.serial("blurr_n_noise"), "pair/degradation"))
    assert kinds == {b"blur": 4, b"noise": 4, b"none": 2}


def test_blur_and_noise_leave_the_targets_alone(files):
    with (
        h5py.File(files.serial("nothing")) as plain,
        h5py.File(files.serial("blurr_n_noise")) as degraded,
    ):
        np.testing.assert_array_equal(plain["target"][...], degraded["target"][...])
        pairs = plain["patch/pair"][...]
        kinds = degraded["pair/degradation"][...][pairs]
        same = (plain["input"][...] == degraded["input"][...]).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(same, kinds == b"none")


def test_no_absolute_path_is_in_the_file(tree, tmp_path):
    folder = tmp_path / "name_of_an_output_folder"  # too long to be in random bytes by chance
    assert called(folder, *argv(tree, "all", folder / "out.h5")).status == 0
    raw = (folder / "out.h5").read_bytes()
    for path in (tree.root, folder):
        assert str(path).encode() not in raw
    assert folder.name.encode() not in raw


# --- random_N --------------------------------------------------------------------------------


def test_random_n_draws_that_many_of_each_patient(files):
    patients = Counter(column(files.serial("random_N"), "pair/patient"))
    assert patients == {b"A01": 3, b"B02": 1, b"C03": 3}


def test_random_n_keeps_the_order_of_the_pairs(files, tree):
    drawn = column(files.serial("random_N"), "pair/input_file")
    every = [pair.input_file.encode() for pair in tree.pairs]
    assert drawn == [file for file in every if file in drawn]


def test_random_n_hangs_on_the_seed(files, tree, tmp_path):
    drawn = set()
    for seed in range(3):
        file = tmp_path / f"{seed}.h5"
        called(tmp_path, *argv(tree, "random_N", file), "--seed", str(seed))
        drawn.add(tuple(column(file, "pair/input_file")))
    assert len(drawn) > 1


def test_a_draw_for_one_patient_does_not_hang_on_the_others(files, tree, tmp_path):
    alone = tmp_path / "scans"
    write_patient(alone, "C03", PATIENTS["C03"])
    called(tmp_path, *argv(Tree(alone, []), "random_N", tmp_path / "out.h5"))
    drawn = column(files.serial("random_N"), "pair/input_file")
    assert column(tmp_path / "out.h5", "pair/input_file") == drawn[-3:]


def test_a_patient_with_fewer_pairs_gives_all_with_a_warning(tree, tmp_path):
    ended = called(tmp_path, *argv(tree, "random_N", "out.h5"))
    (warning,) = (line for line in ended.out.splitlines() if "warning" in line)
    assert "B02" in warning
    assert "--random_N 3" in warning


def test_random_n_takes_seven_where_no_number_is_given(tmp_path):
    write_patient(tmp_path / "scans", "P1", 9, shape=(24, 24))
    tree = Tree(tmp_path / "scans", [])
    called(tmp_path, *argv(tree, "nothing", "out.h5"), "--random_N")
    assert len(column(tmp_path / "out.h5", "pair/patient")) == 7


# --- the summary -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["patch", "body"])
def test_slices_that_cannot_be_downscaled_give_no_patches_and_stop_nobody(tmp_path, rule):
    write_patient(tmp_path / "scans", "A01", 2, shape=(1, 40))
    write_patient(tmp_path / "scans", "A02", 2)
    options = ("--ds_augment", "--air_threshold", "--air-rule", rule, "--anatomy-check", "off")
    where = ("--input-folder", "scans", "--output-fname", "out.h5")
    form = ("--patch-size", "p24", "--sheets", "1")
    ended = called(tmp_path, *where, *form, *options)
    assert ended.status == 0, ended.err
    with h5py.File(tmp_path / "out.h5") as file:
        patches = file["pair/patches"][...]
    assert patches[:2].tolist() == [0, 0]
    assert patches[2:].all()


def test_the_summary_counts_views_smaller_than_a_patch(tmp_path):
    write_patient(tmp_path / "scans", "P1", 2, shape=(36, 40))
    tree = Tree(tmp_path / "scans", [])
    ended = called(tmp_path, *argv(tree, "ds", "out.h5"))
    assert re.search(r"^views smaller than a patch +2$", ended.out, re.M)
    assert set(column(tmp_path / "out.h5", "patch/scale")) == {1.0, float(np.float32(0.8))}


def test_the_summary_says_pairs_and_patches(files, tree, tmp_path):
    ended = called(tmp_path, *argv(tree, "nothing", "out.h5"))
    assert re.search(r"^pairs +10$", ended.out, re.M)
    assert re.search(r"^patches +120$", ended.out, re.M)


# --- other kinds of scans --------------------------------------------------------------------


def test_air_is_judged_in_hu_whatever_slope_and_intercept(tree, files, tmp_path):
    doubled = Tree(tmp_path / "scans", [])
    for pair in tree.pairs:
        for file, image in ((pair.input_file, pair.input), (pair.target_file, pair.target)):
            write_slice(doubled.root / file, image * 2 + 100, z=pair.z, slope=0.5, intercept=-1074)
    called(tmp_path, *argv(doubled, "air", tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as here, h5py.File(files.serial("air")) as there:
        np.testing.assert_array_equal(here["target"][...], there["target"][...] * 2 + 100)


def test_slices_of_several_sizes_go_into_one_file(tmp_path):
    made = write_patient(tmp_path / "scans", "P1", 2, shape=(64, 80))
    made += write_patient(tmp_path / "scans", "P2", 2, shape=(50, 30))
    tree = Tree(tmp_path / "scans", made)
    ended = called(tmp_path, *argv(tree, "all", tmp_path / "out.h5"))
    assert ended.status == 0
    assert provenance.wrong_patches(tmp_path / "out.h5", tree.root) == []
    assert set(column(tmp_path / "out.h5", "patch/pair")) == {0, 1, 2, 3}


def test_images_smaller_than_a_patch_are_an_error(tmp_path):
    write_patient(tmp_path / "scans", "P1", 2, shape=(20, 30))
    ended = called(tmp_path, *argv(Tree(tmp_path / "scans", []), "nothing", "out.h5"))
    assert ended.status == 1
    assert "p24" in ended.err
    assert not (tmp_path / "out.h5").exists()


def test_scans_of_air_alone_are_an_error(tmp_path):
    air = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) % 40
    for side in ("low", "full"):
        write_slice(tmp_path / f"scans/P1/{side}/1", air)
    ended = called(tmp_path, *argv(Tree(tmp_path / "scans", []), "air", "out.h5"))
    assert ended.status == 1
    assert "--air_threshold" in ended.err
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("kind", ["unity_wrt_ld", "std_independent"])
def test_constant_images_give_zeros_in_the_file(tmp_path, kind):
    for side in ("low", "full"):
        write_slice(tmp_path / f"scans/P1/{side}/1", np.full((30, 30), 1100, np.uint16))
    tree = Tree(tmp_path / "scans", [])
    ended = called(tmp_path, *argv(tree, "nothing", "out.h5"), "--normalization-type", kind)
    assert (ended.status, ended.err) == (0, "")
    with h5py.File(tmp_path / "out.h5") as file:
        assert not file["input"][...].any()
        assert not file["target"][...].any()


# --- failures amid the run -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", ["--anatomy-check off", "--air_threshold"], ids=["while filling", "planning"]
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_slice_that_cannot_be_decoded_ends_all_ranks_and_leaves_no_file(tmp_path, n, options):
    made = write_patient(tmp_path / "scans", "P1", 6)
    path = tmp_path / "scans" / made[4].target_file
    write_slice(path, made[4].target, z=made[4].z, syntax=RLELossless)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1500] + bytes(1500))
    job = argv(Tree(tmp_path / "scans", []), "nothing", "out.h5")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    ended = ranks(n, cwd, *job, *options.split(), "--mpi_run")
    assert ended.status == 1
    assert len(ended.errors) == 1
    assert made[4].target_file in ended.errors[0]
    assert not {path for path in contents(cwd) if path.endswith((".h5", ".png"))}
