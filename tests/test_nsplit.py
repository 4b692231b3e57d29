"""Several files with equal numbers of patches: together they are what a single file would be."""

from __future__ import annotations

import itertools
import json
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctpatches.__main__ import main as ctpatches
from pipeline.config import Config
from pipeline.run import make_patches
from tests.faults import Fault, argv, command, kept, left, one_error, run
from tests.running import REPO, called
from tests.scans import write_patient
from utils import SUBSETS

#: Windows of air at every place: also whole pairs and whole views without a patch.
MANY = ("--rot_augment", "--ds_augment", "--air_threshold", "--air-threshold-hu", "60")
TABLES = ("patient", "input_file", "target_file", "position_mm", "rows", "columns", "degradation")
CONSTANTS = ("slope", "intercept", "offset", "divisor", "digest")
DIFFERENCES = ("difference_pixels", "difference_sum", "difference_squares")


def patches_of(paths: Sequence[Path]) -> dict[str, Any]:
    """Return patches and provenance of files one after another, with what is known of its pair."""
    columns = [*TABLES, *(f"{role}_{name}" for role in ("input", "target") for name in CONSTANTS)]
    parts: dict[str, list[Any]] = {}
    for path in paths:
        with h5py.File(path) as file:
            pair = file["patch/pair"][...]
            found = {name: file[name][...] for name in ("input", "target")}
            found |= {
                name: file[f"patch/{name}"][...] for name in ("scale", "row", "col", "orientation")
            }
            found |= {name: file[f"pair/{name}"][...][pair] for name in columns}
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    images = {role: np.concatenate(parts.pop(role)) for role in ("input", "target")}
    return {
        **{name: np.concatenate(values).tolist() for name, values in parts.items()},
        **{role: (found.dtype, found.shape, found.tobytes()) for role, found in images.items()},
    }


def pairs_of(path: Path) -> list[tuple[bytes, int]]:
    """Return the input file and the number of patches of every pair."""
    with h5py.File(path) as file:
        columns = (file[f"pair/{name}"][...].tolist() for name in ("input_file", "patches"))
        return list(zip(*columns, strict=True))


def created(folder: Path, root: Path, *options: str) -> list[Path]:
    """Create a data set, and return its files in the order of their names."""
    ended = called(folder, *argv(root, folder / "x.h5", *options))
    assert ended.errors == []
    return sorted(folder.glob("*.h5"))


# --- the content -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (2, ()),
        (4, (*MANY, "--blurr_n_noise", "--normalization-type", "unity_wrt_ld")),
        (7, ("--edge", "pad", "--air_threshold", "--ds_augment", "--tensor-format", "tf")),
        (31, (*MANY, "--normalization-type", "dataset_std")),  # three files for one pair
    ],
)
def test_the_files_are_one_after_another_what_one_file_would_be(tree, tmp_path, n, options):
    (single,) = created(tmp_path / "single", tree.root, *options)
    files = created(tmp_path / "several", tree.root, *options, "--nsplit", str(n))
    assert [path.name for path in files] == [
        f"x_{i:0{len(str(n))}}of{n}.h5" for i in range(1, n + 1)
    ]
    assert patches_of(files) == patches_of([single])
    with h5py.File(single) as file:
        windows = len(file["input"]) // (3 if "--rot_augment" in options else 1)
    counts = [sum(patches for _, patches in pairs_of(path)) for path in files]
    times = 3 if "--rot_augment" in options else 1
    assert set(counts) <= {windows // n * times, (windows // n + 1) * times}
    # Pairs without a patch are in one file, too.
    pairs = dict.fromkeys(name for path in files for name, _ in pairs_of(path))
    assert list(pairs) == [name for name, _ in pairs_of(single)]
    empty = [name for path in files for name, patches in pairs_of(path) if not patches]
    assert empty == [name for name, patches in pairs_of(single) if not patches]
    assert called(tmp_path, "--verify", *files, "--input-folder", tree.root).status == 0


def test_the_difference_of_a_pair_is_that_of_the_windows_in_the_file(tree, tmp_path):
    sums = []
    for folder, n in (("single", "1"), ("several", "31")):
        found: dict[bytes, Any] = {}
        for path in created(tmp_path / folder, tree.root, *MANY, "--nsplit", n):
            with h5py.File(path) as file:
                names = file["pair/input_file"][...].tolist()
                table = np.stack([file[f"pair/{name}"][...] for name in DIFFERENCES], axis=1)
                at_scale_1 = file["patch/scale"][...] == 1
                count = np.bincount(file["patch/pair"][...][at_scale_1], minlength=len(names)) // 3
            assert (table[:, 0] == count * 24 * 24).all()
            for name, row in zip(names, table, strict=True):
                found[name] = found.get(name, 0) + row
        sums.append(found)
    assert list(sums[0]) == list(sums[1])
    np.testing.assert_allclose(list(sums[0].values()), list(sums[1].values()), rtol=1e-12)


def test_reports_count_every_window_in_one_file(tmp_path):
    write_patient(tmp_path / "scans", "A", 1)
    words = argv(tmp_path / "scans", tmp_path / "x.h5", *MANY, "--nsplit", "2", report=True)
    ended = called(tmp_path, *words)
    assert ended.errors == []
    pages = [Path(f"sanity_check/x_{i}of2") for i in (1, 2)]
    assert all(f"{page}/report.html\n" in ended.out for page in pages)
    facts = [json.loads((tmp_path / page / "report.json").read_text()) for page in pages]
    names = {"windows": "windows", "air": "windows of air left out", "patches": "patches"}
    for name, of_all in names.items():
        assert f"{of_all:28} {sum(one['totals'][name] for one in facts)}\n" in ended.out
        for one, key in itertools.product(facts, ("scales", "patients")):
            assert one["totals"][name] == sum(part[name] for part in one[key]) > 0
    html = (tmp_path / pages[0] / "report.html").read_text()
    assert "one of 2 files: windows" in html
    for one, key in itertools.product(facts, ("windows", "kept")):
        assert [s[key] for s in one["coverage"][0]["scales"]] == [s[key] for s in one["scales"]]


# --- with other options ----------------------------------------------------------------------


def test_every_subset_of_a_split_is_divided(tree, tmp_path):
    split = ("--split", "0.4", "0.3", "0.3")
    created(tmp_path / "single", tree.root, *split)
    files = created(tmp_path / "several", tree.root, *split, "--nsplit", "2")
    assert {path.name for path in files} == {f"x_{s}_{i}of2.h5" for s in SUBSETS for i in (1, 2)}
    for subset in SUBSETS:
        of_subset = sorted((tmp_path / "several").glob(f"x_{subset}_*.h5"))
        assert patches_of(of_subset) == patches_of([tmp_path / "single" / f"x_{subset}.h5"])


def test_pseudonyms_and_their_key_are_those_of_one_file(tree, tmp_path):
    options = ("--anonymize", "--rot_augment")
    single = created(tmp_path / "single", tree.root, *options)
    files = created(tmp_path / "several", tree.root, *options, "--nsplit", "3")
    assert patches_of(files) == patches_of(single)
    keys = [(tmp_path / folder / "x_key.csv").read_bytes() for folder in ("single", "several")]
    assert keys[0] == keys[1]
    assert len(files) == 3


def test_ranks_and_a_resumed_run_create_the_same_bytes(tree, tmp_path):
    options = (*MANY, "--nsplit", "4")
    files = created(tmp_path / "serial", tree.root, *options)
    out = tmp_path / "out"
    arguments = argv(tree.root, out / "x.h5", *options)
    fault = Fault("kill", "writing", call=6)
    assert run(command(0, arguments, fault), tmp_path).status == -9
    assert left(out) == {*(f"{path.name}.partial" for path in files), "x.h5.checkpoint"}
    ended = run(command(3, [*arguments, "--resume"]), tmp_path)
    assert ended.errors == []
    assert kept(out) == {path.name for path in files}
    for path in files:
        assert (out / path.name).read_bytes() == path.read_bytes()
    # All are complete now; one that is missing is created again.
    (out / files[1].name).unlink()
    again = called(tmp_path, *arguments, "--resume")
    assert again.errors == []
    assert (out / files[1].name).read_bytes() == files[1].read_bytes()
    assert "10 of 10 pairs were already" in called(tmp_path, *arguments, "--resume").out


def test_summary_and_dry_run_are_those_of_the_whole(tree, tmp_path):
    def summary(n: int, dry_run: bool) -> Any:
        output = tmp_path / str(n) / "x.h5"
        return make_patches(
            Config(tree.root, output, patch_size=24, nsplit=n, no_report=True, dry_run=dry_run)
        )

    single, several, dry = summary(1, False), summary(13, False), summary(13, True)
    assert (single.pairs, single.windows, single.patches) == (
        several.pairs,
        several.windows,
        several.patches,
    )
    assert [Path(path).name for path in several.files] == [f"x_{i:02}of13.h5" for i in range(1, 14)]
    assert dry.files == ()
    assert (dry.pairs, dry.windows, dry.patches) == (single.pairs, single.windows, single.patches)
    ended = called(
        tmp_path, *argv(tree.root, tmp_path / "y.h5", "--nsplit", "13"), "--dry-run", "--verbose"
    )
    assert re.search(r"to '\S+/y_01of13.h5', .*/y_08of13.h5', \.\.\.$", ended.out, re.MULTILINE)
    assert not list(tmp_path.glob("y*"))


# --- errors ----------------------------------------------------------------------------------


def test_more_files_than_windows_is_an_error(tmp_path):
    write_patient(tmp_path / "scans", "A", 1)
    arguments = argv(tmp_path / "scans", tmp_path / "x.h5", "--rot_augment", "--nsplit")
    for more in ((), ("--dry-run",)):
        ended = called(tmp_path, *arguments, "13", *more)
        one_error(ended, "--nsplit 13 is more than the 12 windows with patches", status=1)
        assert left(tmp_path) == {"scans"}
    assert called(tmp_path, *arguments, "12").errors == []
    assert [pairs_of(path) for path in sorted(tmp_path.glob("*.h5"))] == 12 * [
        [(b"A/quarter_3mm/0000.dcm", 3)]
    ]


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)], ids=str)
@pytest.mark.parametrize(
    ("existing", "options"),
    [
        ("x_1of3.h5", ("--nsplit", "2")),
        ("x.h5", ("--nsplit", "2")),
        ("x_2of2.h5", ()),
        ("x_train.h5", ("--nsplit", "2", "--split", "0.4", "0.3", "0.3")),
        ("x_val_1of2.h5", ("--nsplit", "2", "--split", "0.5", "0", "0.5")),
    ],
)
def test_files_that_another_division_has_created_are_refused(
    tree, tmp_path, existing, options, more
):
    (tmp_path / existing).write_bytes(b"of an earlier run")
    ended = called(tmp_path, *argv(tree.root, tmp_path / "x.h5", *options, *more))
    one_error(ended, f"{existing}' exists", "in two of the files", "remove or rename", status=2)
    assert left(tmp_path) == {existing}


def test_files_of_other_outputs_are_left_alone(tree, tmp_path):
    names = {"x_1of2.h5.txt", "x_aof2.h5", "xx_1of3.h5", "x_train.h5", "a_x_1of3.h5"}
    for name in names:
        (tmp_path / name).write_bytes(b"another")
    assert called(tmp_path, *argv(tree.root, tmp_path / "x.h5", "--nsplit", "2")).errors == []
    assert left(tmp_path) == names | {"x_1of2.h5", "x_2of2.h5"}


def test_an_interrupted_run_with_another_number_of_files_is_recognised(tree, tmp_path):
    out = tmp_path / "out"
    two, three = (argv(tree.root, out / "x.h5", "--nsplit", n) for n in "23")
    assert run(command(0, two, Fault("kill", "writing", call=3)), tmp_path).status == -9
    remains = {"x_1of2.h5.partial", "x_2of2.h5.partial", "x.h5.checkpoint"}
    assert left(out) == remains
    one_error(called(tmp_path, *three), "interrupted run", *remains, status=2)
    one_error(called(tmp_path, *three, "--resume"), "nsplit was 2, is 3", status=1)
    assert left(out) == remains
    assert called(tmp_path, *three, "--resume", "--overwrite").errors == []
    assert left(out) == {f"x_{i}of3.h5" for i in (1, 2, 3)}


def test_more_files_than_a_process_may_have_open_by_default(tree, tmp_path):
    limits = f'ulimit -S -n 48; exec {sys.executable} {REPO / "main.py"} "$@"'
    words = argv(tree.root, tmp_path / "x.h5", "--nsplit", "30")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 400
    assert run(["bash", "-c", limits, "bash", *words], tmp_path).errors == []
    assert len(left(tmp_path)) == 30


# --- reading ---------------------------------------------------------------------------------


def test_slices_at_the_ends_of_a_file_are_stitched_with_a_warning(tree, tmp_path, capsys):
    first, second, _ = created(tmp_path, tree.root, "--nsplit", "3")
    shared, _ = pairs_of(first)[-1]
    assert shared == pairs_of(second)[0][0]  # one pair is in both files
    images = []
    for path, pair in ((first, len(pairs_of(first)) - 1), (second, 0), (first, 1)):
        output = tmp_path / "slice.npy"
        words = [str(path), "--pair", str(pair), "--output", str(output), "--overwrite"]
        assert ctpatches(["stitch", *words]) == 0
        images.append(np.load(output))
        warned = "one of several files of a run with --nsplit" in capsys.readouterr().err
        assert warned == (len(images) < 3)
    whole = np.where(np.isnan(images[0]), images[1], images[0])
    made = next(one for one in tree.pairs if one.input_file.encode() == shared)
    assert np.isnan(images[0]).any()
    np.testing.assert_array_equal(whole, made.target.astype(np.float32) - 1024)
