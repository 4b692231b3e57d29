"""Stores and types of pixels: a table of combinations, each compared with plain patches."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctpatches import PatchFile, stitch
from ctpatches.checksums import verify
from ctpatches.dtypes import cast
from ctpatches.file import overview, rounding
from ctpatches.reader import PatchReader
from ctpatches.schema import COMPRESSIONS, DTYPES, PATCH_COLUMNS
from pipeline.report.statistics import dithered
from tests.conftest import Tree
from tests.editing import edit
from tests.faults import Fault, Run, argv, command, kept, left, one_error
from tests.running import Ended, called, ranks_of
from tests.scans import write_tree

#: How pixels are stored: options by name. Every test of the table covers every entry.
STORAGE = {
    f"{store} {dtype}": f"--store {store} --dtype {dtype}"
    for store, dtype in itertools.product(("patches", "views"), DTYPES)
} | {
    f"patches {dtype} {codec}": f"--dtype {dtype} --compression {codec}"
    for dtype, codec in itertools.product(DTYPES, COMPRESSIONS)
    if codec != "none"
}
#: What is stored: every normalisation, edge, tensor format, augmentation and air rule.
CONTENTS = [
    "",
    "--edge pad --intensity hu --tensor-format tf --ds_augment",
    "--rot_augment --ds_augment --air_threshold --blurr_n_noise",
    "--edge pad --rot_augment --ds_augment --air_threshold --air-rule body --blurr_n_noise",
    "--normalization-type unity_independent --rot_augment --tensor-format tf",
    "--normalization-type unity_wrt_ld --edge pad --ds_augment --blurr_n_noise",
    "--normalization-type std_independent --edge pad --rot_augment --ds_augment --air_threshold",
    "--normalization-type std_wrt_ld --air_threshold --rot_augment",
    "--normalization-type hu_window --hu-window -160 240 --edge pad --rot_augment --blurr_n_noise",
    "--normalization-type dataset_unity --ds_augment --tensor-format tf",
    "--normalization-type dataset_std --ds_augment --rot_augment --air_threshold --edge pad",
]
#: That of the tests of bytes.
JOB = CONTENTS[3]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Four pairs of two patients, of 64 x 80 pixels; read only."""
    root = tmp_path_factory.mktemp("stores") / "scans"
    return Tree(root, write_tree(root, {"A": 3, "B": 1}))


@pytest.fixture
def make(scans: Tree, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that creates a file with these options."""

    def created(name: str, *options: str) -> Path:
        path = tmp_path / f"{name}.h5"
        words = [word for option in options for word in option.split()]
        ended = called(tmp_path, *argv(scans.root, path, *words))
        assert (ended.status, ended.err) == (0, "")
        return path

    return created


def contents(path: Path, dtype: str = "file") -> list[Any]:
    with PatchFile(path) as file:
        return list(file.read(slice(None), dtype=dtype))


def tables(path: Path) -> dict[str, list[Any]]:
    """Return what two stores of one job have in common: all tables but the checksums."""
    with h5py.File(path) as file:
        names = [f"{group}/{name}" for group in ("patch", "pair") for name in file[group]]
        return {name: file[name][...].tolist() for name in names if name != "pair/checksum"}


# --- patches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        *((content, "float32") for content in CONTENTS),
        *((content, "float16") for content in (CONTENTS[3], CONTENTS[9])),
        *((content, "int16") for content in (CONTENTS[1], CONTENTS[2])),
    ],
)
def test_every_patch_of_views_is_that_of_patches_bit_for_bit(make, content, dtype):
    plain = make("patches", content, f"--dtype {dtype}")
    views = make("views", content, f"--dtype {dtype} --store views")
    with h5py.File(plain) as file:  # as any reader does
        wanted = [file[role][...] for role in ("input", "target")]
    assert wanted[0].shape[1:] == ((24, 24, 1) if "tf" in content else (1, 24, 24))
    for path in (plain, views):
        for found, images in zip(contents(path), wanted, strict=True):
            assert found.dtype == images.dtype == np.dtype(DTYPES[dtype])
            assert found.tobytes() == images.tobytes()
        for found, images in zip(contents(path, "float32"), wanted, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, images.reshape(found.shape))
        assert verify(path) == []
    assert tables(views) == tables(plain)
    np.testing.assert_array_equal(
        stitch(None, views, 2, unit="file"), stitch(None, plain, 2, unit="file")
    )


def test_every_patch_of_views_of_real_scans_is_that_of_patches(ldct, tmp_path):
    options = "--patch-size p55 --rot_augment --ds_augment --air_threshold --random_N 1"
    for store in ("patches", "views"):
        words = f"{options} --store {store} --blurr_n_noise --no-report".split()
        output = ("--output-fname", tmp_path / f"{store}.h5")
        assert called(tmp_path, "--input-folder", ldct, *output, *words).status == 0
    plain, views = (tmp_path / f"{store}.h5" for store in ("patches", "views"))
    assert views.stat().st_size < 0.3 * plain.stat().st_size
    for found, wanted in zip(contents(views), contents(plain), strict=True):
        assert found.tobytes() == wanted.tobytes()


# --- bytes -----------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    return {p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.h5")}


def jobs(scans: Tree, folder: Path, *more: str) -> list[list[str]]:
    """Return the arguments that create a file of the job for every entry of the table."""
    return [
        argv(scans.root, folder / f"{name}.h5", *JOB.split(), *how.split(), *more)
        for name, how in STORAGE.items()
    ]


def run_all(n: int, commands: list[list[str]], folder: Path) -> Ended:
    """Run jobs on ranks, with one start of the interpreters."""
    (folder / "jobs.json").write_text(json.dumps([[*words, "--mpi_run"] for words in commands]))
    return ranks_of(n, "jobs.py", folder, "jobs.json")


@pytest.fixture(scope="module")
def serial(scans: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the file of every entry of the table in a serial run; return their folder."""
    folder = tmp_path_factory.mktemp("serial")
    for words in jobs(scans, folder):
        ended = called(folder, *words)
        assert (ended.status, ended.err) == (0, "")
    return folder


@pytest.mark.parametrize("n", [1, 2, 3, 5])  # 5 are more than there are pairs
def test_any_number_of_ranks_gives_the_bytes_of_the_serial_run(scans, serial, tmp_path, n):
    how = ("--hand_over", "messages") if n == 3 else ()
    ended = run_all(n, jobs(scans, tmp_path, *how), tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert digests(tmp_path) == digests(serial)
    assert len(set(digests(serial).values())) == len(STORAGE)


def test_a_killed_run_is_resumed_to_the_same_bytes(scans, serial, tmp_path):
    with contextlib.ExitStack() as stack:  # all at once
        runs = []
        for name, words in zip(STORAGE, jobs(scans, tmp_path), strict=True):
            fault = Fault("kill", "writing", call=3, after=str(tmp_path / f"{name}.h5.checkpoint"))
            runs.append(stack.enter_context(Run(command(0, words, fault), tmp_path)))
        assert {one.ended().status for one in runs} == {-9}
    assert left(tmp_path) == {
        f"{name}.h5.{end}" for name in STORAGE for end in ("partial", "checkpoint")
    }
    ended = run_all(2, jobs(scans, tmp_path, "--resume"), tmp_path)
    assert (ended.status, ended.err) == (0, "")
    kept_pairs = [line for line in ended.out.splitlines() if "already complete" in line]
    assert len(kept_pairs) == len(STORAGE)
    assert not any(line.startswith("0 of") for line in kept_pairs)
    assert digests(tmp_path) == digests(serial)


def test_the_dry_run_states_the_size(scans, serial, tmp_path):
    for name, words in zip(STORAGE, jobs(scans, tmp_path), strict=True):
        if "--compression" in words:
            continue  # an estimate
        ended = called(tmp_path, *words, "--dry-run")
        stated = float(ended.out.split("would write")[1].split()[0])
        with h5py.File(serial / f"{name}.h5") as file:
            rows = [f"patch/{column}" for column in PATCH_COLUMNS]
            rows += [f"{'views/' * ('views' in name)}{role}" for role in ("input", "target")]
            assert stated == round(sum(file[row].nbytes for row in rows) / 1e6, 1)


@pytest.mark.parametrize("normalisation", ["hu_window", "std_wrt_ld"])
def test_int16_of_normalised_pixels_is_refused(scans, tmp_path, normalisation):
    words = ("--dtype", "int16", "--normalization-type", normalisation)
    ended = called(tmp_path, *argv(scans.root, tmp_path / "x.h5", *words))
    expected = f"--dtype int16 requires --normalization-type None, found {normalisation}"
    one_error(ended, expected, status=2)
    assert kept(tmp_path) == set()


# --- rounding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "stored", "error"),
    [
        ("float32", 1e30, 1e30, 0),
        ("int16", 32767, 32767, 0),
        ("int16", -32768, -32768, 0),
        ("int16", 32767.25, 32767, 0.25),
        ("int16", -32768.5, -32768, 0.5),  # of two equally near numbers the even one
        ("int16", 0.5, 0, 0.5),
        ("int16", 1.5, 2, 0.5),
        ("float16", 65504, 65504, 0),
        ("float16", -65519, -65504, 15),
        ("float16", 2049, 2048, 1),
        ("float16", 2**-26, 0, 2**-26),
    ],
)
def test_values_are_rounded_to_the_nearest(dtype, value, stored, error):
    out, largest = cast(np.array([0, value], np.float32), dtype)
    assert (out.dtype, out[1]) == (np.dtype(DTYPES[dtype]), np.float32(stored))
    assert largest == error


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *(("int16", value) for value in (32767.5, 32768, -32769, 1e9, np.nan, np.inf)),
        *(("float16", value) for value in (65520, -65520, 1e9, np.nan, -np.inf)),
    ],
)
def test_values_that_do_not_fit_are_refused(dtype, value):
    text = f"{np.rint(np.float32(value)):.9g}"
    with pytest.raises(ValueError, match=f"value {text.replace('+', '.')} does not fit {dtype}"):
        cast(np.array([[-5, 5, value]], np.float32), dtype)


@pytest.mark.parametrize("store", ["patches", "views"])
def test_a_value_that_does_not_fit_is_refused_even_where_no_patch_is(scans, tmp_path, store):
    write_tree(tmp_path / "scans", {"A": 2})
    file = tmp_path / "scans/A/quarter_3mm/0001.dcm"
    corner = np.zeros((64, 80), np.uint16)
    corner[0, 0] = 32768  # in air
    edit(file, BitsStored=16, HighBit=15, PixelData=corner.tobytes())
    words = ["--store", store, "--dtype", "int16", "--air_threshold", "--anatomy-check", "off"]
    ended = called(tmp_path, *argv(tmp_path / "scans", tmp_path / "x.h5", *words))
    found = "A/quarter_3mm/0001.dcm: value 32768 does not fit int16; expected: -32768 to 32767"
    one_error(ended, found, "choose another --dtype", status=1)


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        ("--ds_augment --blurr_n_noise", "int16"),
        ("--normalization-type hu_window --hu-window -160 240", "float16"),
        ("--normalization-type std_independent --edge pad --blurr_n_noise", "float16"),
    ],
)
def test_the_largest_rounding_error_is_that_of_the_patches(make, content, dtype):
    exact, rounded = make("exact", content), make("rounded", content, f"--dtype {dtype}")
    error = {}
    for unit in ("file", "hu"):
        with PatchFile(exact) as one, PatchFile(rounded) as other:
            sides = zip(one.read(slice(None), unit), other.read(slice(None), unit), strict=True)
            error[unit] = max(float(np.abs(low - full).max()) for low, full in sides)
    with PatchFile(rounded) as other, PatchFile(exact) as one:
        assert rounding(other)["file"] == error["file"] > 0
        assert rounding(other)["hu"] == pytest.approx(error["hu"], abs=2e-3)
        assert rounding(one) == {"file": 0, "hu": 0}


def test_stored_values_are_exact_as_int16(make):
    facts = [overview(make(dtype, f"--dtype {dtype}")) for dtype in ("int16", "float32")]
    assert "rounded    not at all: every pixel is exact" in facts[0]
    assert not any(fact.startswith("rounded") for fact in facts[1])


def test_summary_overview_and_report_state_the_rounding(scans, tmp_path):
    options = (*JOB.split(), "--dtype", "float16", "--store", "views", "--sheets", "0")
    ended = called(tmp_path, *argv(scans.root, tmp_path / "x.h5", *options, report=True))
    with PatchFile(tmp_path / "x.h5") as file:
        largest = rounding(file)
    text = f"by at most {largest['file']:.3g} in the unit of the file, {largest['hu']:.3g} HU"
    assert f"{'rounded to float16':28} {text}\n" in ended.out
    assert f"{'rounded':10} {text}" in overview(tmp_path / "x.h5")
    report = tmp_path / "sanity_check" / "x"
    assert json.loads((report / "report.json").read_text())["rounding"] == largest
    page = " ".join((report / "report.html").read_text().split())
    assert f"The pixels of the file are float16, rounded by at most {largest['file']:.3g}" in page
    assert "h5 file of views, float16, stored values" in page
    assert 'file["input"]' not in page


def test_rounded_values_are_spread_over_their_intervals():
    rng = np.random.default_rng(0)
    numbers = np.array([0, 1, 1.5, 2048, -0.3] * 1000, np.float16)
    for values, steps in (
        (numbers, np.where((numbers == 0) | (numbers == 1), 0, np.spacing(numbers))),
        (np.arange(-2000, 2000, dtype=np.int16), 1),
    ):
        moved = dithered(values, rng) - values
        assert (np.abs(moved) <= np.abs(steps) / 2).all()
        assert np.abs(moved).mean() == pytest.approx(np.abs(steps).mean() / 4, rel=0.1)
    exact = np.ones(3, np.float32)
    assert dithered(exact, rng) is exact


# --- loaders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORAGE)
def test_loaders_return_float32_unless_asked_otherwise(serial, name):
    path, stored = serial / f"{name}.h5", np.dtype(DTYPES[name.split()[1]])
    for dtype, unit, expected in (
        ("float32", "file", np.float32),
        ("file", "file", stored),
        ("file", "hu", np.float32),
    ):
        loader = PatchReader(path, unit=unit, dtype=dtype, augment=True)
        low, full = loader.read([3, 0, 3])
        assert low.dtype == full.dtype == loader.dtype == expected
    whole, other = (PatchReader(path, dtype=dtype).read([5]) for dtype in ("float32", "file"))
    np.testing.assert_array_equal(whole, other)
    with pytest.raises(ValueError, match="dtype 'int8'; expected: "):
        PatchReader(path, dtype="int8")


@pytest.mark.parametrize("name", STORAGE)
def test_tensors_are_float32_unless_asked_otherwise(serial, name):
    torch = pytest.importorskip("torch")
    from ctpatches.torch import PatchDataset

    path, stored = serial / f"{name}.h5", name.split()[1]
    assert PatchDataset(path)[0][0].dtype == torch.float32
    assert PatchDataset(path, dtype="file")[0][0].dtype == getattr(torch, stored)


@pytest.mark.parametrize("library", ["tensorflow", "keras"])
@pytest.mark.parametrize("name", STORAGE)
@pytest.mark.filterwarnings("default")
def test_batches_are_float32_unless_asked_otherwise(serial, name, library):
    pytest.importorskip(library)
    from ctpatches.tensorflow import keras_sequence, tf_dataset

    calls = []

    def noted(low: Any, full: Any) -> tuple[Any, Any]:
        calls.append(low.shape)
        return low, full

    path, stored = serial / f"{name}.h5", np.dtype(DTYPES[name.split()[1]])
    for dtype, expected in (("float32", np.dtype(np.float32)), ("file", stored)):
        options: dict[str, Any] = {"shuffle": False, "dtype": dtype, "transform": noted}
        wanted = PatchReader(path, dtype=dtype).read(range(8))
        calls.clear()
        if library == "tensorflow":
            found = next(tf_dataset(path, 8, **options).as_numpy_iterator())
        else:
            found = keras_sequence(path, 8, **options)[0]
        assert len(calls) == 1  # in the graph, or for the batch
        for images, patches in zip(found, wanted, strict=True):
            assert images.dtype == expected
            np.testing.assert_array_equal(images[..., 0], patches)
