"""Going on with a run that was ended: what is kept, what is made again, what is refused."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.output.checkpoint import Checkpoint, difference
from tests.conftest import Tree
from tests.editing import flip
from tests.faults import (
    Fault,
    Run,
    argv,
    command,
    finished_blocks,
    kept,
    left,
    one_error,
    run,
    wait_for,
)
from tests.running import Ended, called
from tests.scans import Made, phantom, write_slice, write_tree

#: So that what is made again can be counted: blocks are made one after another.
PAIRS = {"A": 3, "B": 4}
SPLIT = ("--split", "0.5", "0.5", "0")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("resume") / "scans"
    return Tree(root, write_tree(root, PAIRS))


@pytest.fixture(scope="module")
def whole(scans: Tree, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of the unbroken run."""
    output = tmp_path_factory.mktemp("whole") / "x.h5"
    assert called(output.parent, *argv(scans.root, output)).status == 0
    return output.read_bytes()


@pytest.fixture(scope="module")
def killed(scans: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a run left that was killed at its fourth block."""
    output = tmp_path_factory.mktemp("killed") / "out" / "x.h5"
    fault = Fault("kill", "writing", call=4, after=f"{output}.checkpoint")
    ended = run(command(0, argv(scans.root, output), fault), output.parent.parent)
    assert ended.status == -9
    assert left(output.parent) == {"x.h5.partial", "x.h5.checkpoint"}
    return output.parent


@pytest.fixture
def output(killed: Path, tmp_path: Path) -> Path:
    """Return the output of the killed run, with a copy of what it left."""
    shutil.copytree(killed, tmp_path / "out")
    return tmp_path / "out" / "x.h5"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the inputs of the blocks that are made in this process, in any order."""
    from pipeline import filling

    names: list[str] = []
    make_block = filling.make_block

    def noted(task, *arguments):
        names.append(task.pair.input.file)
        return make_block(task, *arguments)

    monkeypatch.setattr(filling, "make_block", noted)
    return names


def resumed(output: Path, scans: Tree, *options: str) -> Ended:
    return called(output.parent, *argv(scans.root, output, "--resume", *options))


def files(pairs: list[Made]) -> list[str]:
    return [pair.input_file for pair in pairs]


# --- what is kept ----------------------------------------------------------------------------


def test_finished_blocks_are_not_made_again(output, scans, whole, made):
    finished = finished_blocks(Path(f"{output}.checkpoint"))
    assert 1 <= finished <= 3
    assert resumed(output, scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs[finished:]))
    assert output.read_bytes() == whole
    assert kept(output.parent) == {"x.h5"}


@pytest.mark.parametrize("n", [1, 3])
def test_another_number_of_ranks_makes_the_same_bytes(output, scans, whole, n):
    ended = run(command(n, argv(scans.root, output, "--resume")), output.parent)
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == whole


def test_a_block_that_is_not_as_the_checkpoint_says_is_made_again(output, scans, whole, made):
    finished = finished_blocks(Path(f"{output}.checkpoint"))
    data, first = Path(f"{output}.partial").read_bytes(), scans.pairs[0].target
    row = first[:24, :24].astype("<f4").tobytes()[: 24 * 4]
    flip(Path(f"{output}.partial"), data.index(row) + 5)
    assert resumed(output, scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs[:1] + scans.pairs[finished:]))
    assert output.read_bytes() == whole


def test_a_run_that_is_killed_again_is_continued_again(output, scans, whole):
    before = finished_blocks(Path(f"{output}.checkpoint"))
    fault = Fault("kill", "writing", call=3, after=f"{output}.checkpoint")
    arguments = argv(scans.root, output, "--resume")
    assert run(command(0, arguments, fault), output.parent).status == -9
    assert finished_blocks(Path(f"{output}.checkpoint")) >= before
    assert resumed(output, scans).errors == []
    assert output.read_bytes() == whole


def test_a_run_that_was_killed_before_its_last_step_is_completed(tmp_path, scans, whole, made):
    output = tmp_path / "x.h5"
    fault = Fault("kill", "renaming")
    assert run(command(0, argv(scans.root, output), fault), tmp_path).status == -9
    assert left(tmp_path) == {"x.h5.partial", "x.h5.checkpoint"}
    assert resumed(output, scans).errors == []
    assert made == []
    assert output.read_bytes() == whole


def test_with_nothing_to_go_on_from_a_run_begins(tmp_path, scans, whole, made):
    assert resumed(tmp_path / "x.h5", scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs))
    assert (tmp_path / "x.h5").read_bytes() == whole


def test_of_a_split_run_every_file_is_gone_on_with(tmp_path, scans):
    folders = [tmp_path / name for name in ("whole", "killed")]
    arguments = [argv(scans.root, folder / "x.h5", *SPLIT) for folder in folders]
    assert called(folders[0], *arguments[0]).errors == []
    fault = Fault("kill", "renaming", call=2)
    assert run(command(0, arguments[1], fault), folders[1]).status == -9
    assert "x_train.h5" in left(folders[1])
    assert "x_val.h5.partial" in left(folders[1])
    one_error(called(folders[1], *arguments[1]), "x_train.h5", status=2)
    assert called(folders[1], *arguments[1], "--resume").errors == []
    for name in ("x_train.h5", "x_val.h5"):
        assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes()


# --- what is refused -------------------------------------------------------------------------


def refused(output: Path, scans: Tree, *options: str) -> str:
    """Check that going on is refused, and that what is there is left alone; return the message."""
    before = {name: (output.parent / name).read_bytes() for name in left(output.parent)}
    message = one_error(resumed(output, scans, *options), f"{output}.checkpoint")
    assert {name: (output.parent / name).read_bytes() for name in left(output.parent)} == before
    return message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "3"], ["seed was 0, is 3"]),
        (["--air_threshold", "--air-rule", "body"], ["air_rule was 'patch', is 'body'"]),
        (["--rot_augment"], ["rot_augment was False, is True"]),
        (
            ["--overlap", "5", "--edge", "pad"],
            ["overlap was 4, is 5", "edge was 'shift', is 'pad'"],
        ),
        (["--normalization-type", "unity_wrt_ld"], ["normalization_type", "unity_wrt_ld"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_changed_configuration_is_refused_with_the_difference(output, scans, options, words):
    message = refused(output, scans, *options)
    assert all(word in message for word in words)


def test_an_option_that_the_earlier_version_did_not_have_had_its_default():
    now = {"configuration": Config("in", air_threshold=True).as_json()}
    body = {"configuration": Config("in", air_threshold=True, air_rule="body").as_json()}
    stored = json.loads(now["configuration"])
    for name in ("air_rule", "min_body", "air_threshold_hu", "air_fraction"):
        del stored[name]
    then = {"configuration": json.dumps(stored)}
    assert difference(then, now) == ""
    expected = "the configuration changed: air_rule was 'patch', is 'body'"
    assert difference(then, body) == expected


def test_changed_places_and_ways_of_working_are_taken(output, scans, whole):
    (output.parent / "link").symlink_to(scans.root)
    arguments = argv(output.parent / "link", output, "--resume", "--hand_over", "messages")
    assert called(output.parent, *arguments).errors == []
    assert output.read_bytes() == whole


def changed(tmp_path: Path, scans: Tree, output: Path) -> tuple[Tree, Path]:
    """Return a copy of the scans, times and all, and a slice in it."""
    root = tmp_path / "copy"
    shutil.copytree(scans.root, root)
    return Tree(root, scans.pairs), root / scans.pairs[4].input_file


def test_other_pixels_in_a_slice_of_a_finished_block_are_refused_with_its_name(
    tmp_path, scans, output
):
    copy = changed(tmp_path, scans, output)[0]
    path = copy.root / scans.pairs[0].input_file
    flip(path, path.stat().st_size - 100)
    assert scans.pairs[0].input_file in refused(output, copy)


def test_other_pixels_in_a_slice_that_is_still_to_be_read_are_taken(tmp_path, scans, output, made):
    copy, path = changed(tmp_path, scans, output)
    flip(path, path.stat().st_size - 100)
    finished = finished_blocks(Path(f"{output}.checkpoint"))
    assert called(tmp_path, *argv(copy.root, tmp_path / "whole.h5")).errors == []
    made.clear()
    assert resumed(output, copy).errors == []
    assert sorted(made) == sorted(files(scans.pairs[finished:]))
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_another_slice_is_refused_with_its_name(tmp_path, scans, output):
    copy, path = changed(tmp_path, scans, output)
    z = scans.pairs[-1].z + 3
    low, full = phantom((64, 80), 9)
    write_slice(path.with_name("zz.dcm"), low, z=z)
    write_slice(copy.root / "B" / "full_3mm" / "zz.dcm", full, z=z)
    assert "it was 7 pairs, is 8" in refused(output, copy)


def test_a_copy_of_the_scans_with_its_times_is_the_same_input(tmp_path, scans, output, whole):
    copy, _ = changed(tmp_path, scans, output)
    assert resumed(output, copy).errors == []
    assert output.read_bytes() == whole


def test_a_partial_file_without_a_checkpoint_is_made_anew(output, scans, whole, made):
    Path(f"{output}.checkpoint").unlink()
    one_error(called(output.parent, *argv(scans.root, output)), f"{output}.partial", status=2)
    assert resumed(output, scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs))
    assert output.read_bytes() == whole
    assert kept(output.parent) == {"x.h5"}


def test_a_checkpoint_without_a_partial_file_is_begun_anew(output, scans, whole, made):
    Path(f"{output}.partial").unlink()
    assert resumed(output, scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs))
    assert output.read_bytes() == whole
    assert kept(output.parent) == {"x.h5"}


def test_a_finished_file_of_another_job_is_not_taken_for_this_one(tmp_path, scans):
    output = tmp_path / "x.h5"
    assert called(tmp_path, *argv(scans.root, output)).errors == []
    before = output.read_bytes()
    one_error(called(tmp_path, *argv(scans.root, output)), "exists", status=2)
    one_error(resumed(output, scans, "--seed", "3"), "x.h5")
    one_error(resumed(output, scans, "--store", "views"), "store was 'patches', is 'views'")
    assert output.read_bytes() == before


# --- damage to the checkpoint and the partial file -------------------------------------------


def entries_of(path: Path) -> tuple[dict, set]:
    """Return the job in a checkpoint, and the finished blocks."""
    found = Checkpoint(str(path), exclusive=False)
    try:
        job, done = found.read()
    finally:
        found.close(remove=False)
    blocks = {(file, i, one) for file, records in done.items() for i, one in records.items()}
    return job, blocks


def test_a_checkpoint_is_right_wherever_it_was_cut_short(tmp_path, killed):
    data = (killed / "x.h5.checkpoint").read_bytes()
    path = tmp_path / "checkpoint"
    path.write_bytes(data)
    job, blocks = entries_of(path)
    ends = list(itertools.accumulate(map(len, data.splitlines(keepends=True))))
    assert len(blocks) == len(ends) - 1 >= 1
    for keep in range(0, len(data) + 1, 7):
        path.write_bytes(data[:keep])
        job_found, blocks_found = entries_of(path)
        assert job_found == (job if keep >= ends[0] else {})
        assert blocks_found <= blocks
        assert len(blocks_found) == sum(end <= keep for end in ends[1:])


def test_a_checkpoint_with_a_flipped_bit_counts_up_to_it(tmp_path, killed):
    path = tmp_path / "checkpoint"
    shutil.copy(killed / "x.h5.checkpoint", path)
    ends = list(itertools.accumulate(map(len, path.read_bytes().splitlines(keepends=True))))
    job, blocks = entries_of(path)
    for offset in range(0, ends[-1], 11):
        shutil.copy(killed / "x.h5.checkpoint", path)
        flip(path, offset, offset % 8)
        job_found, blocks_found = entries_of(path)
        assert job_found == (job if offset >= ends[0] else {})
        assert blocks_found <= blocks
        assert len(blocks_found) == sum(end <= offset for end in ends[1:])


def test_a_checkpoint_whose_last_line_was_cut_short_is_continued(output, scans, whole, made):
    path = Path(f"{output}.checkpoint")
    finished = finished_blocks(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert resumed(output, scans).errors == []
    assert len(made) == len(scans.pairs) - finished + 1
    assert output.read_bytes() == whole


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5])
def test_a_partial_file_that_was_cut_short_is_made_anew(output, scans, whole, part):
    partial = Path(f"{output}.partial")
    data = partial.read_bytes()
    partial.write_bytes(data[: int(part * len(data))])
    assert resumed(output, scans).errors == []
    assert output.read_bytes() == whole


def test_blocks_of_which_an_earlier_version_recorded_less_are_made_again(
    output, scans, whole, made
):
    path = Path(f"{output}.checkpoint")
    job, *blocks = path.read_bytes().splitlines(keepends=True)
    for line in blocks:
        body = json.dumps(json.loads(line.rpartition(b" ")[0])[:-1])
        job += f"{body} {zlib.crc32(body.encode()):08x}\n".encode()
    path.write_bytes(job)
    assert resumed(output, scans).errors == []
    assert sorted(made) == sorted(files(scans.pairs))
    assert output.read_bytes() == whole


# --- complete already ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), SPLIT, ("--anonymize",)], ids=["", "split", "anonymize"])
def test_a_complete_output_of_the_same_job_is_left_alone(tmp_path, scans, made, options):
    arguments = argv(scans.root, tmp_path / "x.h5", *options)
    assert called(tmp_path, *arguments).errors == []
    made.clear()
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.glob("x*.[hc]*")}
    for more in (["--resume"], ["--resume", "--overwrite"]):
        ended = called(tmp_path, *arguments, *more)
        assert (ended.status, ended.errors, made) == (0, [], [])
        assert "7 of 7 pairs were already complete" in ended.out
    after = {path: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.glob("x*.[hc]*")}
    assert {p: data for p, (_, data) in after.items()} == {p: d for p, (_, d) in before.items()}
    assert all(after[p] == one for p, one in before.items() if p.suffix == ".h5")


def test_how_much_was_complete_is_printed(output, scans):
    finished = finished_blocks(Path(f"{output}.checkpoint"))
    assert f"{finished} of 7 pairs were already complete" in resumed(output, scans).out


@pytest.mark.parametrize("options", [(), ("--anonymize",)], ids=["", "anonymize"])
def test_an_output_of_other_scans_of_the_same_names_is_not_taken_for_complete(
    tmp_path, scans, options
):
    copy, path = changed(tmp_path, scans, tmp_path)
    flip(path, path.stat().st_size - 100)
    output, key = tmp_path / "x.h5", tmp_path / "x_key.csv"
    assert called(tmp_path, *argv(copy.root, tmp_path / "whole.h5", *options)).errors == []
    assert called(tmp_path, *argv(scans.root, output, *options)).errors == []
    before = output.read_bytes(), key.read_bytes() if options else b""
    message = one_error(called(tmp_path, *argv(copy.root, output, "--resume", *options)), "x.h5")
    assert "other pixel values" in message
    assert (output.read_bytes(), key.read_bytes() if options else b"") == before
    assert left(tmp_path).isdisjoint({"x.h5.partial", "x.h5.checkpoint"})
    arguments = argv(copy.root, output, "--resume", "--overwrite", *options)
    assert called(tmp_path, *arguments).errors == []
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_partial_file_of_another_job_is_replaced_with_overwrite(output, scans, tmp_path):
    assert called(tmp_path, *argv(scans.root, tmp_path / "y.h5", "--seed", "3")).errors == []
    assert resumed(output, scans, "--overwrite", "--seed", "3").errors == []
    assert output.read_bytes() == (tmp_path / "y.h5").read_bytes()
    assert kept(output.parent) == {"x.h5"}


def test_all_files_of_a_split_are_of_one_run(tmp_path, scans):
    """Killed before the second file is created, beside two files of an earlier job."""
    old, new, out = (tmp_path / name for name in ("old", "new", "out"))
    names = ("x_train.h5", "x_val.h5")
    assert called(old, *argv(scans.root, old / "x.h5", *SPLIT, "--seed", "5")).errors == []
    assert called(new, *argv(scans.root, new / "x.h5", *SPLIT)).errors == []
    shutil.copytree(old, out)
    arguments = argv(scans.root, out / "x.h5", *SPLIT)
    fault = Fault("kill", "creating", call=2)
    assert run(command(0, [*arguments, "--overwrite"], fault), out).status == -9
    assert {name for name in left(out) if "partial" in name} == {"x_train.h5.partial"}
    # The interrupted run was allowed to replace both.
    assert called(out, *arguments, "--resume").errors == []
    for name in names:
        assert (out / name).read_bytes() == (new / name).read_bytes()
        assert (old / name).read_bytes() != (new / name).read_bytes()
    assert kept(out) == set(names)


@pytest.mark.parametrize("step", ["syncing", "renaming"])
def test_file_and_key_are_replaced_together_or_not_at_all(tmp_path, scans, step):
    output, key = tmp_path / "x.h5", tmp_path / "x_key.csv"
    arguments = argv(scans.root, output, "--anonymize")
    assert (
        called(tmp_path, *argv(scans.root, output, "--anonymize", "--random_N", "1")).errors == []
    )
    before = output.read_bytes(), key.read_bytes()
    one_error(run(command(0, [*arguments, "--overwrite"], Fault("raise", step)), tmp_path))
    assert (output.read_bytes(), key.read_bytes()) == before
    remaining = {"x.h5", "x_key.csv", "x.h5.partial", "x.h5.checkpoint"}
    assert kept(tmp_path) - {"x_key.csv.partial"} == remaining
    assert called(tmp_path, *arguments, "--resume").errors == []
    assert kept(tmp_path) == {"x.h5", "x_key.csv"}
    assert len(output.read_bytes()) > len(before[0])
    assert len(key.read_text().splitlines()) == 1 + 2 + 2 * 7


def test_a_key_that_cannot_be_replaced_is_not_lost(tmp_path, scans):
    output, key = tmp_path / "x.h5", tmp_path / "x_key.csv"
    arguments = argv(scans.root, output, "--anonymize")
    assert called(tmp_path, *arguments, "--random_N", "1").errors == []
    fault = Fault("raise", "renaming", call=2)  # the h5 file has its name, the key has not
    message = one_error(run(command(0, [*arguments, "--overwrite"], fault), tmp_path))
    assert "--resume continues" in message
    assert kept(tmp_path) == {"x.h5", "x.h5.checkpoint", "x_key.csv", "x_key.csv.partial"}
    assert called(tmp_path, *arguments, "--resume").errors == []
    assert kept(tmp_path) == {"x.h5", "x_key.csv"}
    assert len(key.read_text().splitlines()) == 1 + 2 + 2 * 7


def test_a_folder_under_the_name_of_the_key_is_refused_at_the_start(tmp_path, scans):
    (tmp_path / "x_key.csv").mkdir()
    for more in ((), ("--overwrite",), ("--resume",)):
        ended = called(tmp_path, *argv(scans.root, tmp_path / "x.h5", "--anonymize", *more))
        one_error(ended, "x_key.csv' is a folder", status=2)
    assert left(tmp_path) == {"x_key.csv"}


def test_a_file_of_a_subset_that_a_split_does_not_write_is_refused(tmp_path, scans):
    """A patient of it may be in another subset now."""
    (tmp_path / "x_test.h5").write_bytes(b"of an earlier split")
    for more in ((), ("--overwrite",), ("--resume",)):
        ended = called(tmp_path, *argv(scans.root, tmp_path / "x.h5", *SPLIT, *more))
        one_error(ended, "x_test.h5' exists", "no such file", status=2)
    assert left(tmp_path) == {"x_test.h5"}


def test_a_file_that_a_run_of_another_name_is_writing_is_left_alone(tmp_path, scans):
    mark = tmp_path / "mark"
    arguments = argv(scans.root, tmp_path / "x_train.h5")
    with Run(command(0, arguments, Fault("hold", "writing", mark=str(mark))), tmp_path) as first:
        wait_for(mark.exists, "the first block")
        for more in ((), ("--resume",), ("--resume", "--overwrite")):
            ended = called(tmp_path, *argv(scans.root, tmp_path / "x.h5", *SPLIT, *more))
            one_error(ended, "x_train.h5.partial", "another run is writing it", status=2)
        mark.unlink()
        ended = first.ended()
    assert (ended.status, ended.errors) == (0, [])


def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_escaped_in_the_key(tmp_path):
    names = ["=cmd|' !A1", "+1", "-2", "@x", "plain"]
    write_tree(tmp_path / "scans", dict.fromkeys(names, 1))
    arguments = argv(tmp_path / "scans", tmp_path / "x.h5", "--anonymize")
    assert called(tmp_path, *arguments).errors == []
    with open(tmp_path / "x_key.csv", newline="", encoding="utf-8") as file:
        cells = [name for _, name in csv.reader(file)]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert {f"'{name}" for name in names[:-1]} | {"plain"} <= set(cells)


def test_of_two_runs_that_resume_the_second_is_refused(output, scans, whole, tmp_path):
    mark = tmp_path / "mark"
    arguments = argv(scans.root, output, "--resume")
    with Run(command(0, arguments, Fault("hold", "writing", mark=str(mark))), tmp_path) as first:
        wait_for(mark.exists, "the first block")
        for more in ([], ["--overwrite"]):
            ended = called(tmp_path, *arguments, *more)
            one_error(ended, f"{output}.partial", "another run is writing it", status=2)
        mark.unlink()
        ended = first.ended()
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == whole


def replace(path: str) -> None:
    """Put a file of the same size in place of another."""
    Path(f"{path}.new").write_bytes(bytes(os.path.getsize(path)))
    os.replace(f"{path}.new", path)


@pytest.mark.parametrize(
    ("harm", "word", "remaining"),
    [
        (os.unlink, "removed", set()),
        (lambda path: os.rename(path, f"{path}.moved"), "removed", {"x.h5.partial.moved"}),
        (replace, "replaced", {"x.h5.partial"}),
        (lambda path: os.truncate(path, 5000), "bytes, expected", set()),
    ],
    ids=["removed", "renamed", "replaced", "truncated"],
)
def test_a_partial_file_that_another_process_harms_is_not_called_resumable(
    output, scans, whole, tmp_path, harm, word, remaining
):
    mark = tmp_path / "mark"
    arguments = argv(scans.root, output, "--resume")
    with Run(command(0, arguments, Fault("hold", "writing", mark=str(mark))), tmp_path) as first:
        wait_for(mark.exists, "the first block")
        harm(f"{output}.partial")
        mark.unlink()
        message = one_error(first.ended(), f"{output}.partial", word, "another process", status=1)
    assert "--resume" not in message
    assert left(output.parent) == remaining
    assert called(tmp_path, *arguments).errors == []
    assert output.read_bytes() == whole


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_run_that_was_killed_among_its_renames_is_completed(tmp_path, scans, made, renamed):
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = (*SPLIT, "--anonymize")
    arguments = argv(scans.root, out / "x.h5", *options)
    assert called(whole, *argv(scans.root, whole / "x.h5", *options)).errors == []
    made.clear()
    fault = Fault("kill", "renaming", call=1 + renamed)
    assert run(command(0, arguments, fault), out).status == -9
    assert "x_key.csv" not in left(out)
    assert called(out, *arguments, "--resume").errors == []
    assert made == []
    for name in ("x_train.h5", "x_val.h5", "x_key.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert left(out) == left(whole)


def test_a_run_that_was_killed_before_its_report_gets_it(tmp_path, scans, whole, made):
    output = tmp_path / "x.h5"
    fault = Fault("kill", "reporting")
    arguments = argv(scans.root, output, "--sheets", "0", report=True)
    assert run(command(0, arguments, fault), tmp_path).status == -9
    assert left(tmp_path) == {"x.h5"}
    assert called(tmp_path, *arguments, "--resume").errors == []
    assert made == []
    assert output.read_bytes() == whole
    assert left(tmp_path) == {"x.h5", "sanity_check"}
    assert left(tmp_path / "sanity_check" / "x") >= {"report.html", "report.json"}
