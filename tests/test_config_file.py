"""`--config`: values are converted by the type of their option, never parsed as a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.command_line import parse
from pipeline.config import FILE_OPTIONS, Config
from tests.faults import argv, left, one_error
from tests.running import REPO, Ended, called, serial
from utils import CallError

BIG = int("9" * 400)


def config_of(folder: Path, stored: object, *options: str) -> Config:
    """Return the configuration from a JSON file and options beside it."""
    path = folder / "stored.json"
    path.write_text(stored if isinstance(stored, str) else json.dumps(stored))
    config = parse(["--input-folder", "in", "--config", str(path), *options])
    assert isinstance(config, Config)
    return config


# --- values that are accepted ----------------------------------------------------------------

STORED = {
    "patch_size": 50,
    "overlap": 7,
    "edge": "pad",
    "normalization_type": "hu_window",
    "hu_window": [-160, 240.5],
    "random_N": 3,
    "rot_augment": True,
    "air_threshold": False,
    "split": [0.5, 0.25, 0.25],
    "input_gen_folder": "--overwrite",
    "target_gen_folder": None,
    "seed": 10**18 - 1,
}


def test_values_become_those_of_their_options(tmp_path):
    config = config_of(tmp_path, STORED)
    assert json.loads(config.as_json()).items() >= STORED.items()
    assert not config.overwrite
    assert isinstance(config.hu_window[0], float)


def test_the_configuration_of_a_run_gives_the_same_configuration(tmp_path):
    for config in (Config("in"), config_of(tmp_path, STORED)):
        assert config_of(tmp_path, config.as_json()).as_json() == config.as_json()


YAML = """\
# comments are allowed
patch-size: p50        # as on the command line, or 50
overlap: 7
edge: pad
--normalization-type: hu_window
hu-window: [-160, 240.5]
random_N: 3
rot_augment: on
air-threshold: false
split:
  - 50
  - 25
  - 25
input-gen-folder: --overwrite
target_gen_folder: null
seed: 999999999999999999
"""


def test_yaml_with_the_names_of_the_documentation_gives_the_same_configuration(tmp_path):
    assert config_of(tmp_path, YAML) == config_of(tmp_path, STORED)


def test_the_example_of_the_documentation_is_read(tmp_path):
    page = (REPO / "docs" / "options.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    config = config_of(tmp_path, example)
    assert (config.patch_size, config.overlap, config.hu_window) == (64, 8, (-160, 240))
    assert (config.split, config.incomplete, config.seed) == ((0.8, 0.1, 0.1), "skip", 7)


def test_yaml_words_that_are_not_strings_have_the_meaning_of_the_option(tmp_path):
    config = config_of(tmp_path, "anatomy-check: off\nnormalization-type: None\n")
    assert (config.anatomy_check, config.normalization_type) == ("off", "None")


def test_the_report_of_a_run_gives_its_configuration(tmp_path, tree):
    options = ["--patch-size", "24", "--edge", "pad", "--seed", "3", "--split", "50", "25", "25"]
    made = parse(["--input-folder", str(tree.root), *options])
    assert isinstance(made, Config)
    ended = called(tmp_path, "--input-folder", tree.root, "--sheets", "0", *options)
    assert ended.status == 0, ended.err
    report = tmp_path / "sanity_check" / "patched_out_train" / "report.json"
    found = parse(["--input-folder", str(tree.root), "--config", str(report)])
    assert found == made


def test_a_report_on_very_many_patients_is_read(tmp_path):
    patients = [{"patient": f"P{i}", "pairs": 1} for i in range(50_000)]
    text = json.dumps({"patients": patients, "configuration": {"seed": 3}})
    assert len(text) > 1 << 20
    assert config_of(tmp_path, text).seed == 3


def test_every_option_of_the_content_is_accepted_as_documented(tmp_path):
    for option in FILE_OPTIONS.values():
        config = config_of(tmp_path, {option.flag: option.default})
        assert config == Config("in"), option.name


def test_options_beside_the_file_win(tmp_path):
    config = config_of(tmp_path, STORED, "--seed", "4", "--edge", "shift", "--split-file", "who")
    assert (config.seed, config.edge) == (4, "shift")
    assert (config.split, config.split_file) == (None, "who")
    assert config_of(tmp_path, STORED, "--patch-size", "p24").overlap == 4
    assert config_of(tmp_path, STORED, "--overlap", "8").overlap == 8
    other = config_of(tmp_path, STORED, "--normalization-type", "None")
    assert (other.normalization_type, other.hu_window) == ("None", (-1024, 3072))
    body = {"air_threshold": True, "air_rule": "body", "min_body": 0.3}
    assert config_of(tmp_path, body).min_body == 0.3
    assert config_of(tmp_path, body, "--air-rule", "patch").min_body == 0.1
    assert config_of(tmp_path, body, "--air-rule", "body").min_body == 0.3
    same = config_of(tmp_path, STORED, "--normalization-type", "hu_window")
    assert same.hu_window == (-160, 240.5)


# --- values that are not ---------------------------------------------------------------------

REJECTED = [
    ("hu_window", ["1", "2", "--overwrite"], "a list of 2 numbers"),
    ("hu_window", ["1", "2"], "a list of 2 numbers"),
    ("hu_window", [1, 2, 3], "a list of 2 numbers"),
    ("hu_window", [1, True], "a list of 2 numbers"),
    ("hu_window", [1, float("nan")], "a list of 2 numbers"),
    ("hu_window", [1, float("inf")], "a list of 2 numbers"),
    ("hu_window", [-BIG, BIG], "a list of 2 numbers"),
    ("hu_window", 3, "a list of 2 numbers"),
    ("hu_window", None, "a list of 2 numbers"),
    ("split", ["--verify", "/etc/passwd"], "a list of 3 numbers"),
    ("split", [[0.5], [0.5], [0]], "a list of 3 numbers"),
    ("min_body", "0.2", "a number from 0 up, below 1"),
    ("min_body", None, "a number from 0 up, below 1"),
    ("air_threshold_hu", 10**400, "a number from -1024 up, below 3072"),
    ("air_threshold_hu", float("nan"), "a number from -1024 up, below 3072"),
    ("edge", "--output-fname=other.h5", "one of shift, pad"),
    ("edge", ["pad"], "one of shift, pad"),
    ("normalization_type", {"a": 1}, "one of None, unity"),
    ("seed", "--overwrite", "an integer"),
    ("seed", BIG, "an integer"),
    ("seed", 1.0, "an integer"),
    ("seed", True, "an integer"),
    ("seed", -1, "from 0 up"),
    ("seed", None, "an integer"),
    ("random_N", 0, "from 1 up"),
    ("patch_size", "24 px", "p96"),
    ("patch_size", 10**6, "p96"),
    ("overlap", [4], "an integer"),
    ("rot_augment", "yes", "true or false"),
    ("rot_augment", 1, "true or false"),
    ("rot_augment", None, "true or false"),
    ("input_gen_folder", ["low", "--overwrite"], "a string"),
    ("input_gen_folder", 3, "a string"),
    ("output_fname", "other.h5", "expected: --output-fname on the command line"),
    ("overwrite", True, "expected: --overwrite on the command line"),
    ("--overwrite", True, "expected: --overwrite on the command line"),
    ("mpi_run", True, "expected: --mpi_run on the command line"),
    ("split-file", "who.txt", "expected: --split-file on the command line"),
    ("verify", ["/etc/passwd"], "not an option"),
    ("argv", ["--overwrite"], "not an option"),
    ("config", "other.json", "not an option"),
    ("help", True, "not an option"),
    (
        "patchsize",
        55,
        "expected: those of docs/options.md; did you mean patch-size?",
    ),
    ("edge", "shfit", "one of shift, pad; did you mean shift?"),
]


@pytest.mark.parametrize(("key", "value", "expected"), REJECTED, ids=str)
def test_a_wrong_value_is_rejected_with_file_key_and_what_is_expected(
    tmp_path, key, value, expected
):
    with pytest.raises(CallError) as raised:
        config_of(tmp_path, {key: value})
    message = str(raised.value)
    assert message.startswith(f"--config '{tmp_path / 'stored.json'}': '{key}'")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_all_that_is_wrong_is_listed(tmp_path):
    with pytest.raises(CallError) as raised:
        config_of(tmp_path, "edge: round\nseed: 3\nSEED: 4\npatch-size: p64\npatch_size: 64\n")
    headline, *problems = str(raised.value).splitlines()
    assert headline == f"--config '{tmp_path / 'stored.json'}':"
    assert [problem.split("'")[1] for problem in problems] == ["edge", "SEED", "patch_size"]
    assert "did you mean seed?" in problems[1]
    assert "occurs twice" in problems[2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed: 3\n edge: pad\n", "line 2: mapping values are not allowed here"),
        ("seed: [3\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("seed: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ('{"seed": 3\n"edge": 4}', "Expecting ',' delimiter: line 2 column 1"),
        ("- seed\n- 3\n", "['seed', 3]"),
        ("", "None"),
        ("seed: 3\n" * 10_000, "more than 65536 bytes that are not JSON"),
    ],
)
def test_a_file_that_cannot_be_parsed_names_the_place(tmp_path, text, found):
    with pytest.raises(CallError) as raised:
        config_of(tmp_path, text)
    assert f"stored.json' holds no configuration; found: {found}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"hu_window": [400, -160]}, "--hu-window 400 -160"),
        ({"hu_window": [-1e-9, 1e-9]}, "--hu-window -1e-09 1e-09"),
        ({"hu_window": [0, 1e17]}, "--hu-window 0 1e+17"),
        ({"hu_window": [-160, 240]}, "--hu-window -160 240"),
        ({"split": [1, 1, 1]}, "--split 1 1 1"),
        ({"split": [-1, 1, 1]}, "--split -1 1 1"),
        ({"overlap": 55}, "--overlap 55"),
        ({"patch_size": 50}, "--patch-size p50"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_name_their_option_and_the_file(tmp_path, stored, words):
    with pytest.raises(CallError) as raised:
        config_of(tmp_path, stored)
    assert words in str(raised.value)
    assert f"--config '{tmp_path / 'stored.json'}'" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        '"--overwrite"',
        '{"seed": 3',
        '{"seed": 3} x',
        "[" * 5000 + "]" * 5000,
        '{"seed": ' + "9" * 5000 + "}",
        '{"seed": ' + "[" * 5000 + "]" * 5000 + "}",
        "\0\1",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_file_without_a_configuration_is_rejected(tmp_path, text):
    with pytest.raises(CallError, match=r"stored\.json' holds no configuration"):
        config_of(tmp_path, text)


def test_a_file_that_never_ends_is_rejected():
    with pytest.raises(CallError, match="/dev/zero' holds no configuration"):
        parse(["--input-folder", "in", "--config", "/dev/zero"])


def test_an_integer_of_400_digits_is_rejected_on_the_command_line_too():
    for option in ("--seed", "--overlap", "--random_N", "--hu-window=1", "--split=1"):
        with pytest.raises(CallError):
            parse(["--input-folder", "in", option, str(BIG), str(BIG)])


# --- h5 files --------------------------------------------------------------------------------


def with_attribute(path: Path, value: object) -> Path:
    """Write an h5 file whose configuration is that value."""
    with h5py.File(path, "w") as file:
        group = file.create_group("group")
        values = {"reference": group.ref, "region": h5py.Empty("S10"), "none": None}
        value = values.get(value, value) if isinstance(value, str) else value
        if value is not None:
            file.attrs["configuration"] = value
    return path


H5 = {
    "missing": "none",
    "reference": "reference",
    "empty": "region",
    "string": '{"seed": 3}',
    "number": 3,
    "integer": np.int64(10**12),
    "array": np.zeros((3, 3)),
    "strings": np.array([b'{"seed": 3}'] * 2),
    "no JSON": np.bytes_(b"{"),
    "no UTF-8": np.bytes_(b'{"edge": "\xff"}'),
}


@pytest.mark.parametrize("name", H5)
def test_an_h5_file_without_a_configuration_is_rejected_in_one_line(tmp_path, name):
    path = with_attribute(tmp_path / "other.h5", H5[name])
    ended = called(tmp_path, "--input-folder", "in", "--config", path)
    message = one_error(ended, f"--config '{path}' holds no configuration", status=2)
    assert len(message.splitlines()) == 1


def test_a_damaged_h5_file_is_rejected_in_one_line(tmp_path):
    path = tmp_path / "other.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000)
    ended = called(tmp_path, "--input-folder", "in", "--config", path)
    one_error(ended, f"--config '{path}' holds no configuration", status=2)


def test_an_attribute_cannot_pose_as_options(tmp_path, tree):
    stored = {"hu_window": ["1", "2", "--overwrite"], "normalization_type": "hu_window"}
    path = with_attribute(tmp_path / "other.h5", np.bytes_(json.dumps(stored).encode()))
    (tmp_path / "mine.h5").write_bytes(b"weeks of work")
    ended = called(tmp_path, *argv(tree.root, tmp_path / "mine.h5"), "--config", path)
    one_error(ended, f"--config '{path}' holds no configuration", "not a file of", status=2)
    assert (tmp_path / "mine.h5").read_bytes() == b"weeks of work"


# --- control characters ----------------------------------------------------------------------

ESCAPE = "\x1b]0;title\x07\x1b[31m\r\x9b2J"


def printed_plainly(ended: Ended) -> None:
    """Check that a call failed with one message without control characters."""
    one_error(ended)
    assert (ended.err + ended.out).replace("\n", "").isprintable()


@pytest.mark.parametrize("key", ["edge", "input_gen_folder", ESCAPE])
def test_control_characters_from_a_configuration_never_reach_the_terminal(tmp_path, tree, key):
    (tmp_path / "c.json").write_text(json.dumps({key: ESCAPE}))
    options = ["--input-folder", tree.root, "--config", "c.json"]
    printed_plainly(serial(tmp_path, *options))


@pytest.mark.parametrize(
    "options",
    [
        ["--input-folder", ESCAPE],
        ["--input-folder", "in", "--edge", ESCAPE],
        ["--input-folder", "in", f"--{ESCAPE}"],
        ["--input-folder", "in", f"{ESCAPE}=--"],
        ["--input-folder", "in", "--seed", ESCAPE],
        ["--input-folder", "in", "a\nb"],
        ["--config", ESCAPE],
        ["--verify", ESCAPE],
    ],
    ids=repr,
)
def test_control_characters_from_an_argument_never_reach_the_terminal(tmp_path, options):
    printed_plainly(serial(tmp_path, *options))
    assert left(tmp_path) == set()


def test_control_characters_never_reach_the_terminal_with_verbose(tmp_path):
    ended = serial(tmp_path, "--input-folder", ESCAPE, "--verbose")
    assert "does not exist" in ended.err
    assert (ended.err + ended.out).replace("\n", "").isprintable()
