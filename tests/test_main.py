"""The command line: spellings, help, what is refused, and what is imported when."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from pipeline.command_line import build_parser, parse
from pipeline.config import OPTIONS, Config
from pipeline.options import PATCH_OVERLAPS, Option
from tests.conftest import Tree
from tests.running import REPO, Ended, called, contents, ranks, run, serial
from tests.scans import write_patient
from utils import CallError

HEAVY = {"numpy", "pydicom", "h5py", "cv2", "matplotlib", "PIL", "mpi4py", "pipeline.run"}
BY_NAME = pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
#: Values that go with the defaults of the other options.
VALUES = {
    "input_folder": ["scans"],
    "patch_size": ["p24"],
    "overlap": ["3"],
    "hu_window": ["-1000", "400"],
    "split": ["0.5", "0.25", "0.25"],
    "min_body": ["0.25"],
    "air_fraction": ["0.25"],
}
#: Options that others require.
REQUIRED = {
    "hu_window": ["--normalization-type", "hu_window"],
    "air_rule": ["--air_threshold"],
    "min_body": ["--air_threshold", "--air-rule", "body"],
    "air_threshold_hu": ["--air_threshold"],
    "air_fraction": ["--air_threshold"],
}


def values_of(option: Option) -> list[str]:
    if option.kind.type is bool:
        return []
    return VALUES.get(option.name, [option.kind.choices[-1] if option.kind.choices else "3"])


def config_of(*argv: str) -> Config:
    config = parse(argv)
    assert isinstance(config, Config)
    return config


# --- spellings -------------------------------------------------------------------------------


@BY_NAME
def test_an_option_answers_to_dashes_and_to_underscores(option):
    values = values_of(option)
    bare = option.flag[2:]
    base = [] if option.name == "input_folder" else ["--input-folder", "in"]
    base += REQUIRED.get(option.name, [])
    default = config_of("--input-folder", "in")
    spelled = [
        config_of(*base, f"--{name}", *values)
        for name in (bare, bare.replace("_", "-"), bare.replace("-", "_"))
    ]
    assert spelled[0] == spelled[1] == spelled[2]
    assert spelled[0] != default


def test_mixed_spellings_and_equals_signs_are_taken_too():
    told = config_of("--input_folder=a_b-c", "--output-fname=x_y.h5", "--input-gen_folder=l_d")
    assert (told.input_folder, told.output_fname) == ("a_b-c", "x_y.h5")
    assert told.input_gen_folder == "l_d"


def test_the_options_of_the_specification_are_there():
    wanted = {
        *("input-folder", "input-gen-folder", "target-gen-folder", "output-fname", "patch-size"),
        *("overlap", "edge", "normalization-type", "tensor-format", "random-N", "rot-augment"),
        *("ds-augment", "air-threshold", "blurr-n-noise", "mpi-run", "seed", "overwrite"),
    }
    there = {option.flag[2:].replace("_", "-") for option in OPTIONS.values()}
    assert wanted <= there


def test_defaults_are_those_of_the_specification():
    told = config_of("--input-folder", "in")
    assert told.output_fname == "results/patched_out.h5"
    assert (told.patch_size, told.overlap, told.edge) == (55, 8, "shift")
    assert (told.normalization_type, told.tensor_format) == ("None", "torch")
    assert (told.random_N, told.seed) == (None, 0)
    switches = (told.rot_augment, told.ds_augment, told.air_threshold, told.blurr_n_noise)
    assert not any((*switches, told.mpi_run, told.overwrite))


def test_random_n_without_a_number_is_seven():
    assert config_of("--input-folder", "in", "--random_N").random_N == 7
    assert config_of("--input-folder", "in", "--random_N", "2").random_N == 2


@pytest.mark.parametrize(
    ("size", "overlap"),
    [(96, 12), (75, 11), (64, 4), (55, 8), (42, 6), (32, 4), (24, 4), (12, 4)],
)
def test_a_named_size_brings_its_overlap(size, overlap):
    told = config_of("--input-folder", "in", "--patch-size", f"p{size}")
    assert (told.patch_size, told.overlap) == (size, overlap)


@pytest.mark.parametrize("option", ["--patch-size=p64", "--patch-size=64"])
def test_a_size_may_be_given_without_its_p(option):
    config = config_of("--input-folder", "in", option)
    assert config == Config("in", patch_size=64) == Config("in", patch_size="p64")  # type: ignore[arg-type]


def test_percentages_are_fractions():
    config = config_of("--input-folder", "in", "--split", "80", "10", "10")
    assert config == config_of("--input-folder", "in", "--split", "0.8", "0.1", "0.1")


def test_any_other_size_takes_the_overlap_given():
    told = config_of("--input-folder", "in", "--patch-size", "p50", "--overlap", "0")
    assert (told.patch_size, told.overlap) == (50, 0)


# --- help ------------------------------------------------------------------------------------


def imported(ended: Ended) -> set[str]:
    """Return the top-level modules that a run with -X importtime imported."""
    lines = [line for line in ended.err.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_help_imports_nothing_heavy(tmp_path):
    ended = run([sys.executable, "-X", "importtime", REPO / "main.py", "--help"], tmp_path)
    assert ended.status == 0
    assert "argparse" in imported(ended)
    assert not imported(ended) & HEAVY


@BY_NAME
def test_help_says_default_and_choices(option):
    parser = build_parser()
    (mine,) = (a for a in parser._actions if a.dest == option.name)
    formatter = parser._get_formatter()
    formatter.add_argument(mine)
    text = " ".join(formatter.format_help().split())
    assert "default:" in text or "required" in text
    for choice in option.kind.choices:
        assert choice in text
    if option.kind.choices or option.name == "patch_size":
        assert f"default: {option.text(option.default)}" in text


def test_help_names_the_sizes_with_their_overlaps():
    text = " ".join(build_parser().format_help().split())
    sizes = "p96 (12), p75 (11), p64 (4), p55 (8), p42 (6), p32 (4), p24 (4), p12 (4)"
    assert sizes in text


# --- bad calls -------------------------------------------------------------------------------


def one_line(ended: Ended, *words: str) -> None:
    """Check that a call was refused in one line of stderr that holds these words."""
    assert ended.status == 2
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("main.py: error: ")
    for word in words:
        assert word in line


CHOICES = [option for option in OPTIONS.values() if option.kind.choices]


@pytest.mark.parametrize("option", CHOICES, ids=lambda option: option.name)
def test_a_wrong_choice_names_the_choices(tmp_path, option):
    ended = called(tmp_path, "--input-folder", "in", option.flag, "nonsense")
    one_line(ended, option.flag, "nonsense", *option.kind.choices)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nonsense"], ["unknown option --nonsense (see --help)"]),
        (["--patchsize", "p55"], ["unknown option --patchsize; did you mean --patch-size?"]),
        (["-o", "x.h5"], ["unknown option -o "]),
        (["--input", "x"], ["did you mean --input-folder or --input-gen-folder?"]),
        (["--noise=1"], ["unknown option --noise; did you mean --blurr_n_noise?"]),
        (["--verfy", "x.h5"], ["did you mean --verify?"]),
        (["--edge", "shfit"], ["did you mean shift?"]),
        (["--normalization-type", "HU-window"], ["did you mean hu_window?"]),
        (["--normalization-type", "none"], ["did you mean None?"]),
        (["--patch-size", "p13"], ["p13", "--overlap", "p96 p75 p64 p55 p42 p32 p24 p12"]),
        (["--patch-size", "55px"], ["55px", "p96 p75 p64 p55 p42 p32 p24 p12"]),
        (["--patch-size", "p0"], ["p0"]),
        (["--patch-size", "p-5"], ["p-5"]),
        (["--overlap", "55"], ["--overlap 55", "p55"]),
        (["--overlap", "56"], ["--overlap 56", "p55"]),
        (["--patch-size", "p12", "--overlap", "12"], ["--overlap 12", "p12"]),
        (["--overlap", "-1"], ["--overlap", "-1"]),
        (["--random_N", "0"], ["--random_N", "0"]),
        (["--random_N", "some"], ["--random_N", "some"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", "1.5"], ["--seed", "1.5"]),
        (["--output-fname"], ["--output-fname"]),
        (["--rot_augment=yes"], ["argument --rot_augment: takes no value; found: 'yes'"]),
        (["a", "stray", "word"], ["'a' belongs to no option; expected: --option value"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_wrong_value_is_refused(tmp_path, options, words):
    one_line(called(tmp_path, "--input-folder", "in", *options), *words)
    assert contents(tmp_path) == set()


def test_a_call_without_an_input_folder_is_refused(tmp_path):
    one_line(called(tmp_path), "--input-folder")


def test_a_refused_value_is_a_call_error():
    with pytest.raises(CallError):
        parse(["--input-folder", "in", "--edge", "round"])


def refused(tmp_path: Path, *options: str | Path) -> Ended:
    """Run a bad call in an empty folder; check that it stays empty."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    ended = called(cwd, "--patch-size", "p24", *options)
    assert contents(cwd) == set()
    return ended


def test_no_such_input_folder(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scan").write_text("")
    ended = refused(tmp_path, "--input-folder", tmp_path / "Scan5")
    one_line(ended, "--input-folder", "Scan5", "did you mean scans?")
    one_line(called(tmp_path, "--input-folder", tmp_path / "far" / "gone"), "does not exist")


def test_an_input_folder_that_is_a_file(tmp_path):
    (tmp_path / "scans").write_text("")
    one_line(refused(tmp_path, "--input-folder", tmp_path / "scans"), "scans' is a file")


def test_an_input_folder_without_patients(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("none yet")
    one_line(refused(tmp_path, "--input-folder", tmp_path / "scans"), "scans", "patient")


@pytest.mark.parametrize(("missing", "option"), [("low", "--input-gen"), ("full", "--target-gen")])
def test_a_patient_without_one_of_its_folders(tmp_path, missing, option):
    write_patient(tmp_path / "scans", "P1", 1)
    write_patient(tmp_path / "scans", "P2", 1, folders=("low", "full"))
    folder = tmp_path / "scans" / "P2" / missing
    folder.rename(folder.with_name("other"))
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans")
    left = {"low": "full", "full": "low"}[missing]
    one_line(ended, "'P2'", option, f"found: {left}, other; expected: a folder named")
    assert "--incomplete skip" in ended.err


def test_a_patient_without_both_of_its_folders_is_listed_in_one_line(tmp_path):
    (tmp_path / "scans" / "P1").mkdir(parents=True)
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans")
    words = "no input (low-dose) folder and no target (full-dose) folder; found: no folder;"
    one_line(ended, words, "--input-gen-folder", "--target-gen-folder")


def test_of_many_folders_a_few_are_named_and_the_others_counted(tmp_path):
    for number in range(10):
        (tmp_path / "scans" / "P1" / "12-23-2021" / f"series {number}").mkdir(parents=True)
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans")
    one_line(ended, "found: 12-23-2021/series 0, ", "series 5 and 4 more; expected")
    assert "series 6" not in ended.err


def test_patients_with_the_same_problem_share_a_line(tmp_path):
    for number in range(20):
        (tmp_path / "scans" / f"P{number:02d}" / "ld").mkdir(parents=True)
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans")
    one_line(
        ended, "20 patients (P00, P01, P02, P03, P04, P05 and 14 more): no input", "found: ld;"
    )


def test_the_folder_of_one_patient_as_input_folder_is_recognised(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans" / "P1")
    one_line(ended, "P1' holds full_3mm, quarter_3mm, as the folder of a patient does; expected:")


def test_a_misspelled_name_of_a_folder_is_corrected(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1)
    options = ("--input-folder", tmp_path / "scans", "--input-gen-folder", "quater-3mm")
    one_line(refused(tmp_path, *options), "'quater-3mm'", "did you mean quarter_3mm?")


def test_several_folders_that_fit(tmp_path):
    write_patient(tmp_path / "scans", "P1", 1, folders=("low", "full_1mm"))
    (tmp_path / "scans" / "P1" / "full_3mm").mkdir()
    ended = refused(tmp_path, "--input-folder", tmp_path / "scans")
    one_line(ended, "full_1mm, full_3mm; name one with --target-gen-folder, or keep only one")


def test_an_output_that_exists(tmp_path, tree):
    (tmp_path / "mine.h5").write_bytes(b"weeks of work")
    ended = refused(tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path / "mine.h5")
    one_line(ended, "mine.h5", "exists", "--overwrite")
    assert (tmp_path / "mine.h5").read_bytes() == b"weeks of work"


def test_an_output_that_is_a_dangling_link(tmp_path, tree):
    (tmp_path / "mine.h5").symlink_to(tmp_path / "gone")
    ended = refused(tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path / "mine.h5")
    one_line(ended, "mine.h5", "exists")


def test_an_output_that_is_a_folder(tmp_path, tree):
    ended = refused(tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path)
    one_line(ended, "is a folder")


def test_an_output_below_a_file(tmp_path, tree):
    (tmp_path / "file").write_text("")
    ended = refused(
        tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path / "file" / "x.h5"
    )
    one_line(ended, "file", "is not a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_in_a_folder_that_may_not_be_written(tmp_path, tree):
    (tmp_path / "locked").mkdir(mode=0o500)
    ended = refused(
        tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path / "locked" / "x.h5"
    )
    one_line(ended, "not writable")


def test_an_output_that_an_ended_run_has_left_half_done(tmp_path, tree):
    (tmp_path / "x.h5.partial").write_bytes(b"half")
    ended = refused(tmp_path, "--input-folder", tree.root, "--output-fname", tmp_path / "x.h5")
    one_line(ended, "x.h5.partial", "--resume")
    assert (tmp_path / "x.h5.partial").read_bytes() == b"half"


def test_an_output_that_another_run_is_writing(tmp_path, tree):
    partial, checkpoint = tmp_path / "x.h5.partial", tmp_path / "x.h5.checkpoint"
    partial.write_bytes(b"half")
    with checkpoint.open("w+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        how = ["--input-folder", tree.root, "--output-fname", tmp_path / "x.h5"]
        one_line(refused(tmp_path, *how), "x.h5.checkpoint", "another run")
    assert partial.read_bytes() == b"half"


def test_with_overwrite_an_output_is_replaced(tmp_path, tree):
    (tmp_path / "x.h5").write_bytes(b"an older one")
    how = ["--input-folder", tree.root, "--output-fname", "x.h5", "--patch-size", "p24"]
    ended = called(tmp_path, *how, "--overwrite", "--random_N", "1", "--no-report")
    assert (ended.status, ended.err) == (0, "")
    assert (tmp_path / "x.h5").read_bytes()[:4] == b"\x89HDF"


# --- the same in processes of their own ------------------------------------------------------


def test_the_process_ends_with_2_and_one_line(tmp_path):
    one_line(serial(tmp_path, "--input-folder", "gone"), "gone")
    assert contents(tmp_path) == set()


def test_four_ranks_without_mpi_run_say_so_once(tmp_path, tree: Tree):
    ended = ranks(4, tmp_path, "--input-folder", tree.root, "--patch-size", "p24")
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert "4 processes" in ended.errors[0]
    assert "--mpi_run" in ended.errors[0]
    assert contents(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--input-folder", "gone", "--mpi_run"], "gone"),
        (["--input-folder", "gone", "--mpi_run", "--edge", "round"], "round"),
    ],
    ids=["no such folder", "wrong value"],
)
def test_ranks_refuse_a_bad_call_with_one_voice(tmp_path, options, word):
    ended = ranks(3, tmp_path, *options)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert word in ended.errors[0]
    assert contents(tmp_path) == set()


def test_a_serial_run_imports_no_mpi(tmp_path, tree):
    command: list[str | Path] = [sys.executable, "-X", "importtime", REPO / "main.py"]
    command += ["--input-folder", tree.root, "--patch-size", "p24", "--sheets", "0"]
    ended = run(command, tmp_path)
    assert ended.status == 0
    assert {"h5py", "numpy"} <= imported(ended)
    assert "mpi4py" not in imported(ended)


# --- the same from Python --------------------------------------------------------------------


def test_without_an_overlap_it_is_that_for_the_patch_size():
    for size, overlap in PATCH_OVERLAPS.items():
        assert Config("in", patch_size=size).overlap == overlap
        assert Config("in", patch_size=size, overlap=None).overlap == overlap  # type: ignore[arg-type,unused-ignore]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--patch-size p5 --overlap 9", {"patch_size": 5, "overlap": 9}),
        ("--patch-size p50", {"patch_size": 50}),
        ("--normalization-type hu_window --hu-window 400 -160", {"hu_window": (400, -160)}),
        ("--normalization-type hu_window --hu-window 0 1e300", {"hu_window": [0, 1e300]}),
        ("--split 0.5 0.6 0", {"split": (0.5, 0.6, 0)}),
        ("--split 0 0.5 0.5", {"split": (0, 0.5, 0.5)}),
        ("--split 80 10 20", {"split": (80, 10, 20)}),
        ("--split 120 -10 -10", {"split": (120, -10, -10)}),
        ("--split 1 0 0 --split-file x", {"split": (1, 0, 0), "split_file": "x"}),
        ("--seed -1", {"seed": -1}),
        ("--random_N 0", {"random_N": 0}),
        ("--hu-window -160 240", {"hu_window": (-160, 240)}),
        ("--air-rule body", {"air_rule": "body"}),
        ("--air-threshold-hu -1024.5", {"air_threshold_hu": -1024.5}),
        ("--air_threshold --air-fraction 1", {"air_threshold": True, "air_fraction": 1.0}),
        ("--air_threshold --min-body nan", {"air_threshold": True, "min_body": float("nan")}),
        *((f"{o.flag} nonsense", {o.name: "nonsense"}) for o in CHOICES),
    ],
    ids=str,
)
def test_an_invalid_configuration_raises_the_error_of_the_command_line(tmp_path, options, values):
    if "hu_window" in options.split():
        values = {"normalization_type": "hu_window", **values}
    with pytest.raises(CallError) as raised:
        Config("in", **values)
    ended = called(tmp_path, "--input-folder", "in", *options.split())
    assert ended.err == f"main.py: error: {raised.value}\n"


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ("--air-rule body", "--air_threshold"),
        ("--min-body 0.2", "--air_threshold --air-rule body"),
        ("--air_threshold --min-body 0.2", "--air_threshold --air-rule body"),
        ("--air-threshold-hu -700", "--air_threshold --air-rule patch"),
        ("--air_threshold --air-rule body --air-fraction 0.2", "--air_threshold --air-rule patch"),
    ],
)
def test_an_option_of_an_air_rule_that_is_not_in_use_is_an_error(options, needed):
    option = options[options.rindex("--") :]
    with pytest.raises(CallError, match=f"^{option} requires {needed}$"):
        config_of("--input-folder", "in", *options.split())


@pytest.mark.parametrize(
    "values",
    [
        {"rot_augment": 1},
        {"seed": "3"},
        {"seed": True},
        {"patch_size": 0},
        {"patch_size": "large"},
        {"edge": ["pad"]},
        {"min_body": True},
        {"min_body": [0.2]},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_a_call_error(values):
    with pytest.raises(CallError, match="argument --"):
        Config("in", **values)


def test_values_are_stored_as_the_command_line_stores_them():
    values = {"split": [1, 0, 0], "hu_window": [-1024, 3072], "output_fname": Path("made.h5")}
    words = ["--input-folder", "in", "--split", "1", "0", "0", "--output-fname", "made.h5"]
    assert Config(Path("in"), **values) == config_of(*words)  # type: ignore[arg-type]
