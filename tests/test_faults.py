"""What users see, and what is on the disk, when a fault meets a serial run.

Each test is a row of the table of faults; 'intact' means that the final name holds what it held
before, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.output import commit
from pipeline.output.commit import OutputFile
from tests.editing import edit
from tests.faults import (
    EARLIER,
    Fault,
    Run,
    argv,
    command,
    kept,
    left,
    mounted,
    no_process_left,
    one_error,
    run,
    wait_for,
    without_locks,
)
from tests.running import called
from tests.scans import SHAPE, write_patient, write_slice, write_tree

# --- told to end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "signal"), (signal.SIGINT, 130, "interrupted")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_ends_a_run_in_one_line(tmp_path, tree, output, number, status, word):
    mark, checkpoint = tmp_path / "mark", Path(f"{output}.checkpoint")
    fault = Fault("hold", "writing", call=3, mark=str(mark), after=str(checkpoint))
    with Run(command(0, argv(tree.root, output, "--overwrite"), fault), tmp_path) as running:
        wait_for(mark.exists, "the third block")
        sent = time.monotonic()
        running.process.send_signal(number)
        ended = running.ended()
        assert time.monotonic() - sent < 5
    one_error(ended, word, f"{output}.partial", "--resume", status=status)
    assert len(ended.err.splitlines()) == 1
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {f"{output.name}{end}" for end in ("", ".partial", ".checkpoint")}
    no_process_left(output)


def test_a_signal_before_the_first_block_leaves_nothing(tmp_path, tree, output):
    mark = tmp_path / "mark"
    fault = Fault("hold", "writing", mark=str(mark))
    with Run(command(0, argv(tree.root, output, "--overwrite"), fault), tmp_path) as running:
        wait_for(mark.exists, "the first block")
        running.process.send_signal(signal.SIGINT)
        one_error(running.ended(), "interrupted", status=130)
    assert left(output.parent) == {output.name}
    assert output.read_bytes() == EARLIER


def test_a_serial_run_in_a_batch_script_works(tmp_path, tree, whole):
    variables = {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_NPROCS": "8"}
    ended = run(command(0, argv(tree.root, tmp_path / "x.h5")), tmp_path, variables)
    assert (ended.status, ended.errors) == (0, [])
    assert (tmp_path / "x.h5").read_bytes() == whole


# --- space -----------------------------------------------------------------------------------


def test_too_little_space_is_refused_before_the_work(tmp_path, tree):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        fault = Fault("raise", "patching")  # no patch is made
        ended = run(command(0, argv(tree.root, disk / "new" / "x.h5"), fault), tmp_path)
        one_error(ended, str(disk / "new" / "x.h5"), "needed", "free", status=1)
        assert left(disk) == set()


def test_a_full_disk_is_refused_before_the_work(tmp_path, tree):
    with mounted(tmp_path / "disk", "size=8k") as disk:
        (disk / "filler").write_bytes(bytes(8192))
        ended = run(command(0, argv(tree.root, disk / "x.h5")), tmp_path)
        assert re.search("no space", one_error(ended, str(disk / "x.h5"), status=1))
        assert left(disk) == {"filler"}


@pytest.mark.parametrize("ranks", [0, 2], ids=["serial", "2 ranks"])
def test_space_that_runs_out_while_writing_is_named(tmp_path, tree, ranks):
    with mounted(tmp_path / "disk", "size=256k") as disk:
        output = disk / "x.h5"
        output.write_bytes(EARLIER)
        arguments = argv(tree.root, output, "--overwrite")
        # On a file system that cannot reserve space.
        ended = run(command(ranks, arguments, Fault("skip", "reserving")), tmp_path)
        one_error(ended, "no space", str(output))
        assert output.read_bytes() == EARLIER
        no_process_left(output)


def test_space_that_runs_out_for_the_checkpoint_is_named(tmp_path, monkeypatch):
    write_tree(tmp_path / "many", {"A": 80})

    def reserve_and_fill(files: Sequence[OutputFile]) -> None:
        for file in files:
            with open(file.partial, "r+b") as partial:
                os.posix_fallocate(partial.fileno(), 0, file.size)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    monkeypatch.setattr(commit, "reserve_all", reserve_and_fill)
    with mounted(tmp_path / "disk", "size=16m") as disk:
        output = disk / "x.h5"
        ended = called(tmp_path, *argv(tmp_path / "many", output))
        one_error(ended, "no space left", f"{output}.checkpoint", "--resume", status=1)
        assert left(disk) == {"filler", "x.h5.partial", "x.h5.checkpoint"}
        (disk / "filler").unlink()
        assert called(tmp_path, *argv(tmp_path / "many", output, "--resume")).errors == []
        assert left(disk) == {"x.h5"}


# --- the output ------------------------------------------------------------------------------


def test_an_output_folder_that_is_read_only_is_refused_at_the_start(tmp_path, tree):
    with mounted(tmp_path / "disk", "ro") as disk:
        for file in (disk / "x.h5", disk / "new" / "x.h5"):
            ended = called(tmp_path, *argv(tree.root, file))
            one_error(ended, "not writable", status=2)
        assert left(disk) == set()


@pytest.mark.parametrize(
    "name", ["", "new/", ".", "new/."], ids=["there", "to be", "dot", "new dot"]
)
def test_an_output_that_names_a_folder_is_refused_at_the_start(tmp_path, tree, name):
    (tmp_path / "out").mkdir()
    one_error(called(tmp_path, *argv(tree.root, f"{tmp_path}/out/{name}")), "folder", status=2)
    assert left(tmp_path / "out") == set()


def test_an_output_that_is_no_regular_file_is_never_replaced(tmp_path, tree):
    os.mkfifo(tmp_path / "x.h5")
    ended = called(tmp_path, *argv(tree.root, tmp_path / "x.h5", "--overwrite"))
    one_error(ended, "x.h5", "not a regular file", status=2)
    assert (tmp_path / "x.h5").is_fifo()


def test_of_two_runs_with_one_output_the_second_is_refused(tmp_path, tree, output, whole):
    mark = tmp_path / "mark"
    arguments = argv(tree.root, output, "--overwrite")
    fault = Fault("hold", "writing", call=2, mark=str(mark))
    with Run(command(0, arguments, fault), tmp_path) as first:
        wait_for(mark.exists, "the second block of the first run")
        for more in ([], ["--resume"], ["--seed", "3"]):
            ended = called(tmp_path, *arguments, *more)
            one_error(ended, f"{output}.partial", "another run", status=2)
        mark.unlink()
        ended = first.ended()
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == whole
    assert kept(output.parent) == {output.name}


def test_a_stale_partial_file_is_named_and_left_alone(tmp_path, tree, output):
    checkpoint = Path(f"{output}.checkpoint")
    arguments = argv(tree.root, output, "--overwrite")
    run(command(0, arguments, Fault("kill", "writing", call=2, after=str(checkpoint))), tmp_path)
    before = {name: (output.parent / name).read_bytes() for name in left(output.parent)}
    assert len(before) == 3
    for more in ([], ["--seed", "1"]):
        ended = called(tmp_path, *arguments, *more)
        one_error(ended, f"{output}.partial", "--resume", "remove", str(checkpoint), status=2)
    assert {name: (output.parent / name).read_bytes() for name in left(output.parent)} == before


def test_a_partial_file_that_was_removed_as_told_is_made_again(tmp_path, tree, output, whole):
    checkpoint = Path(f"{output}.checkpoint")
    arguments = argv(tree.root, output, "--overwrite")
    run(command(0, arguments, Fault("kill", "writing", call=2, after=str(checkpoint))), tmp_path)
    Path(f"{output}.partial").unlink()
    checkpoint.unlink()
    assert called(tmp_path, *arguments).status == 0
    assert output.read_bytes() == whole


def test_without_locks_a_run_works(tmp_path, tree, output, whole):
    library = without_locks()
    if not library:
        pytest.skip("no C compiler to take the locks away with")
    variables = {"LD_PRELOAD": library}
    words = command(0, argv(tree.root, output, "--overwrite"))
    ended = run(words, tmp_path, variables)
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == whole
    ended = run([*words[:2], "--verify", str(output)], tmp_path, variables)
    assert ended.status == 0 or "HDF5_USE_FILE_LOCKING" in ended.err


# --- stray and bad files ---------------------------------------------------------------------

STRAYS = ("notes.txt", "DICOMDIR", "Thumbs.db", ".DS_Store", ".hidden.dcm", "VERSION", "a.PNG")


def test_stray_files_are_ignored_and_counted(tmp_path):
    root = tmp_path / "scans"
    write_tree(root, {"A": 2})
    assert called(tmp_path, *argv(root, tmp_path / "clean.h5")).status == 0
    for name in STRAYS:
        (root / "A" / "full_3mm" / name).write_bytes(b"no slice")
    ended = called(tmp_path, *argv(root, tmp_path / "x.h5"))
    assert (ended.status, ended.errors) == (0, [])
    assert re.search(rf"^stray files ignored +{len(STRAYS)}$", ended.out, re.MULTILINE)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "clean.h5").read_bytes()


def cut(path: Path, keep: int) -> None:
    """Shorten a file; negative: by that many bytes."""
    data = path.read_bytes()
    path.write_bytes(data[:keep])


def compressed(path: Path, syntax: str) -> None:
    """Compress a slice, and let it end in the middle of its pixels."""
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    cut(path, -1500)


#: What is done to a file, and what is said of it.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: cut(path, -1000), "bytes of pixels"),
    "truncated in the header": (lambda path: cut(path, 500), "expected"),
    "empty": (lambda path: cut(path, 0), "is empty"),
    "foreign": (lambda path: path.write_bytes(b"PK\3\4" * 99), "not a DICOM file"),
    "pixel-less": (lambda path: edit(path, PixelData=None), "no pixels"),
    "wrong length": (lambda path: edit(path, Rows=SHAPE[0] + 2), "bytes of pixels"),
    "RLE": (lambda path: compressed(path, RLELossless), "do not decode"),
    "JPEG-LS": (lambda path: compressed(path, JPEGLSLossless), "do not decode"),
    "JPEG 2000": (lambda path: compressed(path, JPEG2000Lossless), "do not decode"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return scans with a bad file of every kind, each of a slice of its own, and their names."""
    root = tmp_path_factory.mktemp("bad") / "scans"
    made = write_patient(root, "A", len(BAD) + 2)
    names = {}
    for kind, pair in zip(BAD, made, strict=False):
        BAD[kind][0](root / pair.target_file)
        names[kind] = pair.target_file
    return root, names


def test_all_bad_files_are_listed_with_the_reason_before_filling(tmp_path, bad, output):
    root, names = bad
    # Damage in a header shows up when headers are read, and then in pixels when planning.
    headers = {kind for kind in BAD if kind not in ("RLE", "JPEG-LS", "JPEG 2000")}
    fault = Fault("raise", "patching")
    ended = run(command(0, argv(root, output, "--overwrite"), fault), tmp_path)
    message = one_error(ended, "--bad-files skip", status=1)
    for kind in headers:
        (line,) = (line for line in message.splitlines() if names[kind] in line)
        assert BAD[kind][1] in line
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {output.name}


@pytest.mark.parametrize("anatomy", ["error", "off"])
def test_compressed_files_that_do_not_decode_are_all_listed_before_filling(
    tmp_path, output, anatomy
):
    made = write_patient(tmp_path / "scans", "A", 4)
    for pair in made[:2]:
        compressed(tmp_path / "scans" / pair.input_file, JPEG2000Lossless)
    arguments = argv(tmp_path / "scans", output, "--overwrite", "--anatomy-check", anatomy)
    ended = run(command(0, arguments, Fault("raise", "patching")), tmp_path)
    message = one_error(ended, "do not decode", "--bad-files skip", status=1)
    assert all(pair.input_file in message for pair in made[:2])
    assert output.read_bytes() == EARLIER


@pytest.mark.parametrize("normalization", ["None", "dataset_unity", "dataset_std"])
def test_a_run_whose_pairs_all_fail_to_decode_lists_them(tmp_path, output, normalization):
    made = write_patient(tmp_path / "scans", "A", 2)
    for pair in made:
        compressed(tmp_path / "scans" / pair.input_file, JPEG2000Lossless)
    options = ("--overwrite", "--bad-files", "skip", "--normalization-type", normalization)
    ended = called(tmp_path, *argv(tmp_path / "scans", output, *options))
    message = one_error(ended, "no pair is left", "do not decode", status=1)
    assert all(pair.input_file in message for pair in made)
    assert output.read_bytes() == EARLIER


def test_bad_files_that_are_skipped_are_listed_in_summary_and_file(tmp_path, bad):
    root, names = bad
    ended = called(tmp_path, *argv(root, tmp_path / "x.h5", "--bad-files", "skip"))
    assert (ended.status, ended.errors) == (0, [])
    with h5py.File(tmp_path / "x.h5") as file:
        reasons = dict(
            zip(
                (name.decode() for name in file["left_out/files"][...]),
                (reason.decode() for reason in file["left_out/reason"][...]),
                strict=True,
            )
        )
        assert len(file["pair/patient"]) == 2
        assert file.attrs["complete"]
    for kind, name in names.items():
        assert BAD[kind][1] in reasons[name]
        assert f"{name}: {reasons[name]}" in ended.out


def test_a_run_that_kept_nothing_is_an_error(tmp_path, output):
    for pair in write_patient(tmp_path / "scans", "A", 2):
        cut(tmp_path / "scans" / pair.input_file, 0)
    arguments = argv(tmp_path / "scans", output, "--overwrite", "--bad-files", "skip")
    one_error(called(tmp_path, *arguments), "no pair", "is empty", status=1)
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {output.name}


# --- values ----------------------------------------------------------------------------------


def rescaled(root: Path, slope: str) -> str:
    """Write a patient of which one slice has that slope; return its name."""
    pair = write_patient(root, "A", 3)[1]
    edit(root / pair.input_file, RescaleSlope=slope)
    return pair.input_file


@pytest.mark.parametrize("slope", ["1e38", "-3e30", "1e-45", "1e-300"])
def test_a_slope_that_would_make_infinity_or_nan_is_refused_with_the_file(tmp_path, output, slope):
    name = rescaled(tmp_path / "scans", slope)
    arguments = argv(tmp_path / "scans", output, "--overwrite", "--intensity", "hu")
    one_error(called(tmp_path, *arguments), name, "RescaleSlope", status=1)
    assert output.read_bytes() == EARLIER


@pytest.mark.parametrize("kind", ["None", "unity_independent", "std_wrt_ld"])
def test_a_block_with_nan_is_refused_with_the_file(tmp_path, tree, output, kind):
    arguments = argv(tree.root, output, "--overwrite", "--normalization-type", kind)
    # On one core, or threads would read in any order.
    core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    ended = run([*core, *command(0, arguments, Fault("spoil", "reading", call=3))], tmp_path)
    one_error(ended, tree.pairs[1].input_file, "NaN", status=1)
    assert output.read_bytes() == EARLIER


def test_when_every_patch_is_air_the_threshold_is_named(tmp_path, output):
    root = tmp_path / "scans"
    for number in range(2):
        for side in ("low", "full"):
            air = np.full(SHAPE, 20 + number, np.uint16)
            write_slice(root / "A" / side / f"{number}.dcm", air, z=3.0 * number)
    arguments = argv(root, output, "--overwrite", "--air_threshold")
    ended = called(tmp_path, *arguments)
    one_error(ended, "--air_threshold", "-824 HU", "-924 HU", status=1)
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {output.name}
