"""The command `convert`: the bytes of a direct run, patches that stay the same, one line if not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctpatches import PatchFile, convert
from ctpatches.__main__ import main
from ctpatches.checksums import verify
from ctpatches.messages import CallError
from ctpatches.schema import ROLES
from tests.editing import flip, to_version
from tests.running import Ended, called, environment
from tests.scans import write_tree

#: Jobs by name. In `all` and `pad` the kept windows cover every view, in `air` they do not.
JOBS = {
    "plain": "",
    "all": "--rot_augment --ds_augment --blurr_n_noise",
    "pad": "--edge pad --ds_augment --tensor-format tf",
    "window": "--edge pad --normalization-type hu_window --hu-window -900 500 --rot_augment",
    "shuffled": "--shuffle_patches --ds_augment --rot_augment",
    "air": "--air_threshold --rot_augment --ds_augment --intensity hu",
    "air std": "--air_threshold --ds_augment --normalization-type std_independent --blurr_n_noise",
    "air window": "--air_threshold --normalization-type hu_window",
}
STORES, DTYPES = ("patches", "views"), ("float32", "float16", "int16")
COMPRESSIONS = ("lz4", "zstd", "gzip")
STORED = ("views float32", "patches float32")
#: From one, to one and the jobs for which the bytes are those of a direct run.
EXACT = [
    *(("views float32", f"{s} {d}", JOBS) for s in STORES for d in DTYPES),
    *((f"views {d}", f"patches {d}", JOBS) for d in DTYPES[1:]),
    *((f"patches {d}", f"views {d}", ("all", "pad", "window")) for d in DTYPES),
    ("patches float32", "patches float16", ("all", "pad", "window")),
    ("patches float32", "views int16", ("all", "pad")),
    *((source, f"patches float32 {c}", ("air",)) for source in STORED for c in COMPRESSIONS),
    *((f"patches {d}", f"views {d}", ("shuffled",)) for d in DTYPES),
    ("views float32", "patches float32 gzip", ("shuffled",)),
    ("patches float32 gzip", "patches int16 none", ("shuffled",)),
    *((f"patches {d} lz4", f"patches {d} none", ("all",)) for d in DTYPES),
    ("patches int16 lz4", "patches int16 zstd", ("pad",)),
    ("patches int16 zstd", "views int16", ("pad",)),
]
Maker = Callable[[str, str], Path]


def options_of(stored: str) -> dict[str, Any]:
    """Return the options of a conversion by name."""
    return dict(zip(("store", "dtype", "compression"), stored.split(), strict=False))


def direct(path: Path, *options: str) -> Path:
    """Run the tool on the scans beside a file."""
    words = ["--input-folder", "scans", "--output-fname", path.name, "--patch-size", "p24"]
    ended = called(path.parent, *words, "--no-report", *options)
    assert ended.status == 0, ended.err
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Return a function that returns the file of a direct run, by its job and what it stores."""
    folder = tmp_path_factory.mktemp("direct")
    write_tree(folder / "scans", {"A": 2, "B": 1}, shape=(61, 80))

    def run(job: str, stored: str) -> Path:
        path = folder / f"{job} {stored}.h5"
        if not path.exists():
            words = [f"--{name}={value}" for name, value in options_of(stored).items()]
            direct(path, *JOBS[job].split(), *words)
        return path

    return run


def converted(source: Path, target: Path, stored: str = "", **options: Any) -> Path:
    """Convert a file; what it should be is checked for damage."""
    convert(source, target, **options_of(stored), **options)
    assert verify(target) == []
    return target


def command(*words: str | Path) -> Ended:
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["convert", *map(str, words)])
    return Ended(status, out.getvalue(), err.getvalue())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def patches_of(path: Path) -> np.ndarray[Any, Any]:
    with PatchFile(path) as file:
        return np.stack(file.read(slice(None)))


def rounding_of(path: Path) -> np.ndarray[Any, Any]:
    """Return the largest rounding of every pair, by role."""
    with h5py.File(path) as file:
        return np.stack([file[f"pair/{role}_rounding"][...] for role in ROLES])


# --- exact -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "job"),
    [
        (source, target, job)
        for source, target, jobs in EXACT
        for job in jobs
        if "int16" not in source + target or "normalization" not in JOBS[job]
    ],
)
def test_a_converted_file_has_the_bytes_of_a_direct_run(made, tmp_path, source, target, job):
    out = converted(made(job, source), tmp_path / "out.h5", target)
    assert digest(out) == digest(made(job, target))


def test_the_files_of_a_run_with_nsplit_are_converted_one_by_one(tmp_path):
    write_tree(tmp_path / "scans", {"A": 2, "B": 1}, shape=(61, 80))
    for store in STORES:
        direct(tmp_path / f"{store}.h5", "--nsplit", "2", "--air_threshold", "--store", store)
    for number in ("1", "2"):
        views, patches = (tmp_path / f"{store}_{number}of2.h5" for store in ("views", "patches"))
        out = converted(views, tmp_path / f"out{number}.h5", "patches")
        assert digest(out) == digest(patches)
        out = converted(patches, tmp_path / f"again{number}.h5", "views")
        np.testing.assert_array_equal(patches_of(out), patches_of(patches))


def test_options_are_by_default_those_of_the_source(made, tmp_path):
    source = made("all", "views int16")
    assert digest(converted(source, tmp_path / "same.h5")) == digest(source)
    out = converted(source, tmp_path / "patches.h5", "patches")
    assert digest(out) == digest(made("all", "patches int16"))
    source = made("all", "patches int16 lz4")
    assert digest(converted(source, tmp_path / "same lz4.h5")) == digest(source)
    out = converted(source, tmp_path / "views.h5", "views")
    assert digest(out) == digest(made("all", "views int16"))


@pytest.mark.parametrize("job", ["air", "air std", "air window"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_patches_that_became_views_are_the_same_and_can_become_patches_again(
    made, tmp_path, job, dtype
):
    source = made(job, f"patches {dtype}")
    views = converted(source, tmp_path / "views.h5", "views")
    np.testing.assert_array_equal(patches_of(views), patches_of(source))
    again = converted(views, tmp_path / "again.h5", "patches")
    assert digest(again) == digest(source)


AIR = {"air": -1024, "air window": 0}


@pytest.mark.parametrize("job", AIR)
def test_pixels_that_are_in_no_patch_become_air(made, tmp_path, job):
    out = converted(made(job, "patches float32"), tmp_path / "out.h5", "views")
    with h5py.File(out) as file, h5py.File(made(job, "views float32")) as direct:
        for name in ("pair", "scale", "offset", "rows", "columns"):
            column, expected = file[f"views/{name}"], direct[f"views/{name}"]
            np.testing.assert_array_equal(column, expected)
        for role in ROLES:
            pixels, expected = file[f"views/{role}"][...], direct[f"views/{role}"][...]
            other = pixels != expected
            assert other.any()
            assert set(pixels[other].tolist()) == {AIR[job]}


def test_air_that_does_not_fit_the_type_becomes_the_nearest_value(tmp_path):
    write_tree(tmp_path / "scans", {"A": 1}, slope=0.01, intercept=0)
    words = ["--air_threshold", "--air-threshold-hu", "10", "--dtype", "int16"]
    source = direct(tmp_path / "in.h5", *words)
    out = converted(source, tmp_path / "out.h5", "views")
    np.testing.assert_array_equal(patches_of(out), patches_of(source))
    with h5py.File(out) as file:
        assert file["views/target"][...].min() == -32768


# --- rounding --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["int16", "float16", "int16 float16", "float16 int16"])
@pytest.mark.parametrize("store", STORES)
def test_what_was_rounded_stays_so_and_the_file_states_by_how_much(made, tmp_path, path, store):
    source = converted(made("all", "views float32"), tmp_path / "0.h5", f"{store} float32")
    exact = patches_of(source)
    for number, dtype in enumerate([*path.split(), "float32"]):
        source = converted(source, tmp_path / f"{number + 1}.h5", f"{store} {dtype}")
    with PatchFile(source) as file:
        assert file.config["dtype"] == "float32"
        pair = file.pair_of(np.arange(len(file)))
    errors = np.abs(patches_of(source) - exact).max(axis=(2, 3))
    largest = np.stack([[one[pair == i].max() for i in range(3)] for one in errors])
    rounding = rounding_of(source)
    assert (largest <= rounding).all()
    if " " not in path:
        np.testing.assert_array_equal(largest, rounding)
    assert largest.any()


def test_without_rounding_a_type_can_be_undone(made, tmp_path):
    out = converted(made("plain", "patches int16"), tmp_path / "out.h5", "patches float32")
    assert digest(out) == digest(made("plain", "patches float32"))


# --- other versions, and refusals ------------------------------------------------------------


def test_a_file_of_version_3_becomes_one_of_the_current_version(made, tmp_path):
    old = to_version(Path(shutil.copy(made("all", "patches float32"), tmp_path / "3.h5")), 3)
    out = converted(old, tmp_path / "out.h5", "views")
    assert digest(out) == digest(made("all", "views float32"))


def test_compression_and_order_are_printed(made, tmp_path):
    source = made("all", "patches float32")
    ended = command(source, tmp_path / "out.h5", "--compression", "gzip")
    _, second = ended.out.splitlines()  # nothing was rounded
    assert second.endswith(" MB: patches, float32, compressed by gzip")


def test_a_file_of_version_2_lacks_tables(made, tmp_path):
    old = to_version(Path(shutil.copy(made("all", "patches float32"), tmp_path / "2.h5")), 2)
    ended = command(old, tmp_path / "out.h5")
    assert (ended.status, ended.out) == (1, "")
    assert "has format version 2" in ended.err


def test_what_was_written_is_printed(made, tmp_path):
    source, out = made("all", "patches float32"), tmp_path / "new" / "out.h5"
    ended = command(source, out, "--store", "views", "--dtype", "int16")
    assert (ended.status, ended.err) == (0, "")
    first, second, third = ended.out.splitlines()
    assert first.startswith(f"input      {source}, ")
    assert first.endswith(" MB: patches, float32")
    assert second.startswith(f"output     {out}, ")
    assert second.endswith(" MB: views, int16")
    largest = f"{rounding_of(out).max():.3g}"
    assert third == f"rounded    by at most {largest} in the unit of the file, {largest} HU"
    assert os.listdir(out.parent) == ["out.h5"]


def refused(ended: Ended, folder: Path, status: int, *words: str) -> None:
    """Check that one line is all that is left of a call."""
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.startswith("ctpatches: error: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err
    assert not list(folder.glob("*.partial"))


def test_an_existing_file_is_replaced_only_if_asked(made, tmp_path):
    source, out = made("all", "patches float32"), tmp_path / "out.h5"
    out.write_bytes(b"mine")
    refused(command(source, out), tmp_path, 2, "out.h5' exists; add --overwrite")
    assert out.read_bytes() == b"mine"
    assert command(source, out, "--overwrite").status == 0
    assert digest(out) == digest(source)


@pytest.mark.parametrize("name", ["in.h5", "symbolic.h5", "hard.h5", "sub/../in.h5"])
def test_the_file_itself_is_never_replaced(made, tmp_path, name):
    source = Path(shutil.copy(made("all", "patches float32"), tmp_path / "in.h5"))
    before = digest(source)
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic.h5").symlink_to(source)
    (tmp_path / "hard.h5").hardlink_to(source)
    ended = command(source, f"{tmp_path}/{name}", "--overwrite", "--store", "views")
    refused(ended, tmp_path, 2, "is the file to convert")
    assert digest(source) == before


def test_the_temporary_file_of_another_run_is_left_alone(made, tmp_path):
    (tmp_path / "out.h5.partial").write_bytes(b"of a run")
    ended = command(made("all", "patches float32"), tmp_path / "out.h5")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "out.h5.partial' exists" in ended.err
    assert (tmp_path / "out.h5.partial").read_bytes() == b"of a run"


def test_of_two_conversions_to_one_file_the_first_is_left_alone(made, tmp_path):
    class Source:
        """A path: when it is opened, another conversion has begun."""

        calls = 0

        def __fspath__(self) -> str:
            self.calls += 1
            if self.calls == 2:
                (tmp_path / "out.h5.partial").write_bytes(b"of a run")
            return str(made("all", "patches float32"))

    with pytest.raises(CallError, match=r"out\.h5\.partial' exists: another run is writing it"):
        convert(Source(), tmp_path / "out.h5")
    assert (tmp_path / "out.h5.partial").read_bytes() == b"of a run"


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ("--store tiles", 2, "invalid choice: 'tiles'"),
        (
            "--store views --compression lz4",
            2,
            "--compression lz4 requires --store patches, found views",
        ),
        (
            "--dtype int16",
            2,
            "--dtype int16 requires --normalization-type None, found std_independent",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(made, tmp_path, words, status, expected):
    ended = command(made("air std", "patches float32"), tmp_path / "out.h5", *words.split())
    refused(ended, tmp_path, status, expected)
    assert os.listdir(tmp_path) == []


def test_python_refuses_an_unknown_choice(made, tmp_path):
    with pytest.raises(CallError, match=r"store 'tiles'; expected: one of patches, views"):
        convert(made("all", "patches float32"), tmp_path / "out.h5", store="tiles")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_value_that_does_not_fit_is_named_with_its_slice(tmp_path, dtype):
    write_tree(tmp_path / "scans", {"A": 1}, slope=100)
    source = direct(tmp_path / "in.h5", "--intensity", "hu")
    ended = command(source, tmp_path / "out.h5", "--dtype", dtype)
    refused(ended, tmp_path, 1, "A/quarter_3mm/0000.dcm: value ", f" does not fit {dtype}")


DAMAGES = {
    "input": "the block of pair 0",
    "patch/row": "is damaged: patch 0 ",
    "pair/position_mm": "header or tables of pairs",
}


@pytest.mark.parametrize("place", DAMAGES)
def test_a_damaged_file_is_not_given_new_checksums(made, tmp_path, place):
    source = Path(shutil.copy(made("all", "patches float32"), tmp_path / "in.h5"))
    with h5py.File(source) as file:
        offset = file[place].id.get_offset()
    flip(source, offset + 1)
    refused(command(source, tmp_path / "out.h5"), tmp_path, 1, DAMAGES[place])
    assert os.listdir(tmp_path) == ["in.h5"]


@pytest.mark.parametrize("values", [{"overlap": None}, {"seed": 5}, {"tensor_format": "x"}])
def test_a_configuration_that_is_not_valid_is_refused(made, tmp_path, values):
    source = Path(shutil.copy(made("all", "patches float32"), tmp_path / "in.h5"))
    with h5py.File(source, "r+") as file:
        config = json.dumps(json.loads(file.attrs["configuration"]) | values)
        file.attrs["configuration"] = config
        file.attrs["configuration_bytes"] = np.bytes_(config.encode())
    ended = command(source, tmp_path / "out.h5", "--store", "views")
    refused(ended, tmp_path, 1, "contains no configuration of ctpatches")


@pytest.mark.parametrize("content", [b"", b"not an h5 file" * 100, None])
def test_what_is_no_file_of_ctpatches_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "in.h5").write_bytes(content)
    refused(command(tmp_path / "in.h5", tmp_path / "out.h5"), tmp_path, 1, "in.h5")


# --- ends before its time --------------------------------------------------------------------


def test_an_interrupted_conversion_leaves_nothing(made, tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        assert (tmp_path / "out.h5.partial").exists()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)
    ended = command(made("all", "patches float32"), tmp_path / "out.h5")
    refused(ended, tmp_path, 130, "interrupted")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("blocks", [1, 100])
def test_no_space_ends_in_one_line(made, tmp_path, blocks):
    out = tmp_path / "out.h5"
    out.write_bytes(b"mine")
    words = [made("all", "views float32"), out, "--store", "patches", "--overwrite"]
    limited = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", sys.executable]
    limited += ["-m", "ctpatches", "convert", *map(str, words)]
    ended = subprocess.run(limited, env=environment(), capture_output=True, text=True, check=False)
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), tmp_path, 1, "no space left for")
    assert str(out) in ended.stderr
    assert out.read_bytes() == b"mine"
