"""`--incomplete`: patients without one of their two series, in the layout of TCIA and others."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from tests.running import Ended, called, ranks_of
from tests.scans import write_patient

DATE = "12-23-2021-NA-NA-62464"
LOW, FULL = "1.000000-Low Dose Images-71581", "1.000000-Full Dose Images-10834"
PROJECTIONS = "1.000000-Full Dose Projections-24362"
TCIA = (
    *("--input-gen-folder", "low dose images*", "--target-gen-folder", "full dose images*"),
    *("--patch-size", "p24", "--output-fname", "out.h5", "--no-report"),
)
NO_INPUT = "no input (low-dose) folder; found: 12-23-2021-NA-NA-62464/1.000000-Full"
SKIP = ("--incomplete", "skip")


@pytest.fixture
def tcia(tmp_path: Path) -> Path:
    """Return four complete patients in the layout of TCIA, C003 without input, and an empty one."""
    root = tmp_path / "scans"
    for name in ("C001", "C002", "C003", "C004", "C005"):
        write_patient(root / name, DATE, 2, folders=(LOW, FULL), seed=int(name[1:]))
        (root / name / DATE / PROJECTIONS).mkdir()
    low = root / "C003" / DATE / LOW
    for file in low.iterdir():
        file.unlink()
    low.rmdir()
    (root / "C006").mkdir()
    return root


def run(root: Path, *options: str) -> Ended:
    return called(root.parent, "--input-folder", root, *TCIA, *options)


def left_out(file: Path) -> list[tuple[str, ...]]:
    """Return the table of what was left out of a file."""
    with h5py.File(file) as source:
        names = ("patient", "files", "reason", "kind")
        columns = [[text.decode() for text in source[f"left_out/{name}"]] for name in names]
    return list(zip(*columns, strict=True))


def test_incomplete_patients_end_the_run_in_one_message_before_any_header_is_read(tcia):
    ended = run(tcia)
    assert (ended.status, ended.out) == (2, "")
    headline, *lines = ended.err.splitlines()
    hint = "(to leave incomplete patients out: --incomplete skip)"
    assert headline == f"main.py: error: --input-folder '{tcia}' {hint}:"
    assert [line.split("'")[1] for line in lines] == ["C003", "C006"]
    assert NO_INPUT in lines[0]
    assert "found: no folder; expected: a folder named 'low dose images*' (see " in lines[1]


def test_with_skip_they_are_left_out_and_listed(tcia):
    ended = run(tcia, *SKIP)
    assert ended.status == 0, ended.err
    out = ended.out.splitlines()
    assert f"{'patients':28} 4" in out
    assert f"{'incomplete patients left out':28} 2" in out
    assert [line[:15] for line in out if "left out: " in line] == [
        "left out: C003:",
        "left out: C006:",
    ]
    found = left_out(tcia.parent / "out.h5")
    assert [(patient, files, kind) for patient, files, _, kind in found] == [
        ("C003", "C003", "incomplete"),
        ("C006", "C006", "incomplete"),
    ]
    assert found[0][2].startswith(NO_INPUT)


def test_the_patches_are_those_of_a_run_without_these_patients(tcia):
    assert run(tcia, *SKIP).status == 0
    with h5py.File(tcia.parent / "out.h5") as file:
        found = file["input"][()].tobytes(), file["target"][()].tobytes()
    for name in ("C003", "C006"):
        (tcia / name).rename(tcia / f".{name}")
    assert run(tcia, "--overwrite").status == 0
    with h5py.File(tcia.parent / "out.h5") as file:
        assert (file["input"][()].tobytes(), file["target"][()].tobytes()) == found


def test_ranks_and_a_serial_run_write_the_same_bytes(tcia):
    assert run(tcia, *SKIP).status == 0
    jobs = [["--input-folder", str(tcia), *TCIA, *SKIP, "--mpi_run", "--output-fname", "ranks.h5"]]
    (tcia.parent / "jobs.json").write_text(json.dumps(jobs))
    assert ranks_of(2, "jobs.py", tcia.parent, "jobs.json").status == 0
    serial, parallel = (tcia.parent / name for name in ("out.h5", "ranks.h5"))
    assert serial.read_bytes() == parallel.read_bytes()


def test_an_empty_series_makes_a_patient_incomplete(tcia):
    for file in (tcia / "C001" / DATE / FULL).iterdir():
        file.unlink()
    (tcia / "C001" / DATE / FULL / "notes.txt").write_text("to be copied")
    for name in ("C003", "C006"):
        (tcia / name).rename(tcia / f".{name}")
    ended = run(tcia)
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert "(to continue without them: --incomplete skip): C001/" in line
    assert "holds no CT slice" in line
    ended = run(tcia, *SKIP)
    assert ended.status == 0, ended.err
    assert [files for _, files, _, _ in left_out(tcia.parent / "out.h5")] == [f"C001/{DATE}/{FULL}"]


def test_a_split_is_drawn_from_the_complete_patients_and_every_file_lists_the_others(tcia):
    ended = run(tcia, *SKIP, "--split", "50", "25", "25")
    assert ended.status == 0, ended.err
    assert f"{'patients in train':28} 2 (50.0%; requested 50.0%)" in ended.out
    assert ended.out.count("left out: C003") == 1
    for subset in ("train", "val", "test"):
        found = [patient for patient, *_ in left_out(tcia.parent / f"out_{subset}.h5")]
        assert found == ["C003", "C006"]


def test_a_split_file_may_name_incomplete_patients_and_need_not(tcia):
    path = tcia.parent / "who.txt"
    lines = "train C001\ntrain C002\nval C004\ntest C005\n"
    for more in ("", "test C003\n"):
        path.write_text(lines + more)
        ended = run(tcia, *SKIP, "--split-file", str(path), "--overwrite")
        assert ended.status == 0, ended.err
    assert f"{'patients in train':28} 2 (50.0%)" in ended.out


def test_with_pseudonyms_they_are_listed_by_these(tcia):
    assert run(tcia, *SKIP, "--anonymize").status == 0
    found = left_out(tcia.parent / "out.h5")
    assert found == [(name, name, "incomplete", "incomplete") for name in ("P0003", "P0006")]


def test_two_dates_are_accepted_where_each_series_has_one_and_refused_otherwise(tcia):
    full = tcia / "C003" / DATE / FULL
    low = tcia / "C003" / "01-01-2020-NA-NA-1" / LOW
    write_patient(tcia / "C003", "01-01-2020-NA-NA-1", 2, folders=(LOW, FULL))
    ended = run(tcia, *SKIP)
    assert ended.status == 2
    assert "'C003': several target (full-dose) folders fit" in ended.err
    assert "or keep only one of them there" in ended.err
    full.rename(tcia.parent / "elsewhere")
    assert low.is_dir()
    ended = run(tcia, *SKIP)
    assert ended.status == 0, ended.err
    assert f"{'patients':28} 5" in ended.out


def test_without_a_complete_patient_all_are_named(tcia):
    ended = run(tcia, "--input-gen-folder", "lowdose", *SKIP)
    assert ended.status == 1
    headline, *lines = ended.err.splitlines()
    assert headline == "main.py: error: no pair is left:"
    assert len(lines) == 6
