"""Identity: planted names, IDs and dates come out nowhere; `--anonymize` hides file names too."""

from __future__ import annotations

import base64
import csv
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ctpatches.dicom.header import read_slice
from ctpatches.dicom.pixels import read_pixels
from ctpatches.file import PatchFile
from tests.editing import edit, flip, swap
from tests.running import Ended, called, serial
from tests.scans import phantom, write_patient, write_slice
from utils import RunError

#: Every value is found by one of the words below, however it is encoded around them.
PLANTED: dict[str, Any] = {
    "PatientName": "Xaverquist^Ottilie",
    "PatientID": "MRN-Zk4711x",
    "OtherPatientIDs": "OTH-Zk4711x",
    "IssuerOfPatientID": "Quellklinik",
    "PatientBirthDate": "19440229",
    "PatientBirthTime": "041733",
    "PatientAge": "081Y",
    "PatientAddress": "Lindwurmweg 9",
    "PatientComments": "Xaverquist fell ill",
    "StudyDate": "20190731",
    "SeriesDate": "20190731",
    "AcquisitionDate": "20190731",
    "ContentDate": "20190731",
    "StudyTime": "113355.25",
    "AcquisitionTime": "113355.25",
    "InstitutionName": "Quellklinik Nord",
    "InstitutionAddress": "Lindwurmweg 10",
    "StationName": "CTZk4711x",
    "AccessionNumber": "ACCZk4711x",
    "StudyID": "STZk4711x",
    "StudyDescription": "Thorax Xaverquist",
    "SeriesDescription": "Xaverquist low",
    "ProtocolName": "Xaverquist protocol",
    "DeviceSerialNumber": "DEVZk4711x",
    "ReferringPhysicianName": "Brunnhuber^Severin",
    "PerformingPhysicianName": "Brunnhuber^Severin",
    "OperatorsName": "Brunnhuber^Severin",
    "StudyInstanceUID": "1.2.826.0.1.987654321.1",
    "SeriesInstanceUID": "1.2.826.0.1.987654321.2",
    "FrameOfReferenceUID": "1.2.826.0.1.987654321.3",
    "SOPInstanceUID": "1.2.826.0.1.987654321.4",
    "IrradiationEventUID": "1.2.826.0.1.987654321.5",
}
WORDS = [
    *("Xaverquist", "Ottilie", "Zk4711x", "Quellklinik", "Lindwurm", "Brunnhuber", "Severin"),
    *("19440229", "041733", "081Y", "20190731", "113355", "987654321"),
]
FILE_ONLY = (
    "--input-folder",
    "scans",
    "--patch-size",
    "p24",
    "--output-fname",
    "out.h5",
    "--no-report",
)
#: With a report, of whose images those of one patient and of one slice are enough.
FORM = (*FILE_ONLY[:-1], "--sheets", "1")
UNDRAWN = (*FILE_ONLY[:-1], "--sheets", "0")


def found_in(data: bytes) -> list[str]:
    """Return the planted words that some bytes hold, in the encodings that a file may have."""
    plain = data.lower()
    return [
        word
        for word in WORDS
        for encoding in ("ascii", "utf-16-le", "utf-16-be")
        if word.lower().encode(encoding) in plain
    ]


def read(path: Path) -> bytes:
    """Return the bytes of a file, the images that a page holds decoded.

    In megabytes of base64 any four letters stand somewhere.
    """
    image = rb"data:image/png;base64,([^\"]*)"
    return re.sub(image, lambda found: base64.b64decode(found[1]), path.read_bytes())


def leaks(folder: Path, ended: Ended) -> list[str]:
    """Return where planted words stand: in what a run said, or in a file that it left."""
    out = [f"said: {word}" for word in found_in((ended.out + ended.err).encode())]
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if name.parts[0] != "scans":
            out += [f"{name}: named {word}" for word in found_in(str(name).encode())]
            if path.is_file():
                out += [f"{name}: {word}" for word in found_in(read(path))]
    return out


def planted(folder: Path, names: str = "AB", slices: int = 3, **tags: Any) -> Path:
    """Write patients with every planted tag, and return the folder of the scans."""
    for name in names:
        write_patient(folder / "scans", name, slices, **(PLANTED | tags))
    return folder / "scans"


def test_the_planted_words_are_in_the_scans(tmp_path):
    root = planted(tmp_path, "A", 1)
    data = (root / "A/full_3mm/0001.dcm").read_bytes()
    assert set(found_in(data)) == set(WORDS)
    assert {word for value in PLANTED.values() for word in WORDS if word in value} == set(WORDS)


# --- runs that succeed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--rot_augment", "--ds_augment", "--air_threshold", "--blurr_n_noise"),
        ("--normalization-type", "dataset_std", "--tensor-format", "tf"),
        ("--anonymize", "--random_N", "2"),
    ],
    ids=["plain", "augmented", "figures", "anonymised"],
)
def test_a_good_run_tells_nothing(tmp_path, options):
    planted(tmp_path)
    ended = called(tmp_path, *FORM, *options)
    assert ended.status == 0
    assert leaks(tmp_path, ended) == []


def test_the_same_words_do_not_come_out_of_a_process_of_its_own_either(tmp_path):
    planted(tmp_path, slices=2)
    ended = serial(tmp_path, *FORM)
    assert ended.status == 0
    assert leaks(tmp_path, ended) == []


def test_verifying_tells_nothing(tmp_path):
    planted(tmp_path)
    called(tmp_path, *FILE_ONLY)
    flip(tmp_path / "out.h5", 5000)
    ended = called(tmp_path, "--verify", "out.h5")
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


def test_a_summary_with_every_remark_tells_nothing(tmp_path):
    root = planted(tmp_path, "AB")
    for name in "CDE":
        write_patient(root, name, 3, PatientID=f"{PLANTED['PatientID']}-{name}")
    (root / "C/full_3mm/0001.dcm").unlink()
    edit(root / "D/full_3mm/0001.dcm", IrradiationEventUID=PLANTED["IrradiationEventUID"])
    edit(root / "D/quarter_3mm/0002.dcm", IrradiationEventUID="1.2.826.0.1.987654321.6")
    swap("ImagePositionPatient", *(root / f"E/full_3mm/{i:04d}.dcm" for i in (1, 2)))
    options = ("--unpaired", "skip", "--anatomy-check", "warn", "--random_N", "3")
    ended = called(tmp_path, *UNDRAWN, *options, "--split", "0.34", "0.33", "0.33")
    assert ended.status == 0, ended.err
    assert all(w in ended.out for w in ("A and B are the same person", "E/quarter", "C/quarter"))
    assert leaks(tmp_path, ended) == []


# --- runs that fail --------------------------------------------------------------------------


def cut_to(part: float):
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])

    return damage


def tags(**values: object):
    return lambda path: edit(path, **values)


FAILURES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("Xaverquist"),
    "no head": lambda path: path.write_bytes(path.read_bytes()[132:]),
    "header cut": cut_to(0.04),
    "header cut later": cut_to(0.1),
    "pixels cut": cut_to(0.7),
    "another modality": tags(Modality="MR"),
    "frames": tags(NumberOfFrames=3),
    "samples": tags(SamplesPerPixel=3),
    "colour": tags(PhotometricInterpretation="RGB"),
    "no rescale": tags(RescaleSlope=None),
    "slope 0": tags(RescaleSlope=0),
    "too large": tags(Rows=40000),
    "too small": tags(Rows=7),
    "spacing": tags(PixelSpacing=[0.5, 0.5]),
    "orientation": tags(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "another event": tags(IrradiationEventUID="1.2.826.0.1.987654321.77"),
    "another rescale": tags(RescaleSlope=2),
    "no position": tags(ImagePositionPatient=None),
    "double": lambda path: shutil.copy(path, path.with_name("twice.dcm")),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_run_tells_nothing(tmp_path, failure):
    root = planted(tmp_path, "A")
    FAILURES[failure](root / "A/full_3mm/0002.dcm")
    ended = called(tmp_path, *FORM)
    assert ended.status == 1
    assert "A/full_3mm/" in ended.err or failure == "missing"
    assert leaks(tmp_path, ended) == []


def test_an_anatomy_that_does_not_fit_tells_nothing(tmp_path):
    root = planted(tmp_path, "A")
    swap("ImagePositionPatient", *(root / f"A/full_3mm/{i:04d}.dcm" for i in (1, 2)))
    ended = called(tmp_path, *FORM)
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


def test_a_split_that_cannot_be_tells_nothing(tmp_path):
    planted(tmp_path, "ABC")
    ended = called(tmp_path, *FORM, "--split", "0.4", "0.3", "0.3")
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_pixels_that_do_not_decode_tell_nothing(tmp_path, syntax):
    root = planted(tmp_path, "A")
    path = root / "A/full_3mm/0002.dcm"
    image = phantom((64, 80), 1)[0]
    write_slice(path, image, z=-147, instance=2, syntax=syntax, **PLANTED)
    data = bytearray(path.read_bytes())
    data[-2000:-100] = bytes(1900)
    path.write_bytes(data)
    ended = called(tmp_path, *FORM)
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


# --- damaged headers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless],
    ids=["explicit", "implicit", "big-endian", "RLE"],
)
def test_a_header_with_one_damaged_byte_tells_nothing(tmp_path, capfd, syntax):
    path = tmp_path / "0001.dcm"
    write_slice(path, phantom((24, 24), 0)[0], syntax=syntax, **PLANTED)
    whole = path.read_bytes()
    end = whole.rindex(b"\x7f\xe0" if syntax == ExplicitVRBigEndian else b"\xe0\x7f") + 12
    rng = np.random.default_rng(1)
    told, refused = [], 0
    for at in rng.choice(np.arange(128, end), 500, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            read_pixels(str(tmp_path), read_slice(str(tmp_path), path.name))
        except RunError as error:
            refused += 1
            told += [(at, word) for word in found_in(str(error).encode())]
    assert refused > 50
    assert told == []
    assert found_in("".join(capfd.readouterr()).encode()) == []


@pytest.mark.parametrize("keyword", ["Modality", "PhotometricInterpretation"])
def test_a_length_that_swallows_the_tags_behind_it_tells_nothing(tmp_path, keyword):
    root = planted(tmp_path, "A", 1)
    path = root / "A/full_3mm/0001.dcm"
    tag = pydicom.tag.Tag(keyword)
    data = bytearray(path.read_bytes())
    head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"CS"
    at = data.index(head) + len(head)
    data[at : at + 2] = (int.from_bytes(data[at : at + 2], "little") + 400).to_bytes(2, "little")
    path.write_bytes(data)
    ended = called(tmp_path, *FORM)
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


def test_a_transfer_syntax_that_swallows_the_tags_behind_it_tells_nothing(tmp_path):
    root = planted(tmp_path, "A", 1)
    path = root / "A/full_3mm/0001.dcm"
    data = bytearray(path.read_bytes())
    at = data.index(b"\x02\x00\x10\x00UI") + 6
    data[at : at + 2] = (900).to_bytes(2, "little")
    path.write_bytes(data)
    ended = called(tmp_path, *FORM)
    assert ended.status == 1
    assert leaks(tmp_path, ended) == []


# --- anonymised ------------------------------------------------------------------------------

REAL = ("Hubertus", "Krummsee", "viertel", "voll", "scheibe")


def named(folder: Path, slices: int = 3) -> Path:
    """Write two patients whose folders and files have telling names."""
    root = folder / "scans"
    for i, name in enumerate(("Krummsee", "Hubertus")):
        for pair in write_patient(root, name, slices, folders=("low_viertel", "full_voll")):
            for file in (pair.input_file, pair.target_file):
                at = root / file
                at.rename(at.with_name(f"scheibe_{i}_{at.stem}.dcm"))
    return root


def names_in(folder: Path, ended: Ended, but: str = "out_key.csv") -> list[str]:
    """Return where real names stand outside of the key."""
    out = [f"said: {name}" for name in REAL if name in ended.out + ended.err]
    for path in folder.rglob("*"):
        where = str(path.relative_to(folder))
        if where.startswith("scans/") or where == but:
            continue
        content = read(path) if path.is_file() else b""
        out += [f"{where}: {n}" for n in REAL if n in where or n.encode() in content]
    return out


def key_of(folder: Path) -> dict[str, str]:
    with open(folder / "out_key.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["pseudonym", "name"]
    assert len(dict(rows[1:])) == len(rows) - 1
    return dict(rows[1:])


def test_anonymised_no_real_name_is_in_file_pictures_or_summary(tmp_path):
    named(tmp_path)
    ended = called(tmp_path, *FORM, "--anonymize", "--ds_augment")
    assert ended.status == 0
    assert names_in(tmp_path, ended) == []
    assert any("coverage_P000" in path.name for path in tmp_path.rglob("*.png"))


def test_not_anonymised_they_are(tmp_path):
    named(tmp_path)
    assert set(REAL) <= {n.split(": ")[-1] for n in names_in(tmp_path, called(tmp_path, *UNDRAWN))}


def test_anonymised_the_options_that_name_folders_are_not_in_the_file(tmp_path):
    named(tmp_path)
    folders = ("--input-gen-folder", "low_viertel", "--target-gen-folder", "full_voll")
    ended = called(tmp_path, *UNDRAWN, "--anonymize", *folders)
    assert ended.status == 0
    assert names_in(tmp_path, ended) == []


def test_anonymised_three_sides_have_no_real_name(tmp_path):
    root = named(tmp_path)
    write_patient(root, "Hubertus_2", 1, folders=("low_viertel", "full_voll"))
    ended = called(tmp_path, *UNDRAWN, "--anonymize", "--split", "0.34", "0.33", "0.33")
    assert ended.status == 0
    assert names_in(tmp_path, ended) == []


def test_anonymised_the_remarks_of_the_summary_have_no_real_name(tmp_path):
    root = named(tmp_path)
    for name in ("Hubertus_2", "Hubertus_3"):
        write_patient(root, name, 2, folders=("low_viertel", "full_voll"), PatientID="MRN-1")
    next((root / "Krummsee/full_voll").iterdir()).unlink()
    files = sorted((root / "Hubertus/full_voll").iterdir())
    swap("ImagePositionPatient", files[0], files[1])
    options = ("--unpaired", "skip", "--anatomy-check", "warn", "--random_N", "3")
    ended = called(tmp_path, *UNDRAWN, "--anonymize", *options, "--split", "0.34", "0.33", "0.33")
    assert ended.status == 0, ended.err
    assert "same person" in ended.out
    assert names_in(tmp_path, ended) == []


def test_pseudonyms_have_the_form_that_is_documented(tmp_path):
    named(tmp_path)
    called(tmp_path, *FILE_ONLY, "--anonymize")
    with h5py.File(tmp_path / "out.h5") as file:
        table = {n: [v.decode() for v in file[f"pair/{n}"]] for n in ("patient", "input_file")}
    assert table["patient"] == ["P0001"] * 3 + ["P0002"] * 3
    expected = [f"P000{p}/in_{i:04d}" for p in (1, 2) for i in (1, 2, 3)]
    assert table["input_file"] == expected


def test_the_key_is_readable_by_its_owner_alone(tmp_path):
    named(tmp_path)
    called(tmp_path, *FILE_ONLY, "--anonymize")
    assert stat.S_IMODE((tmp_path / "out_key.csv").stat().st_mode) == 0o600


def test_a_key_that_is_replaced_is_readable_by_its_owner_alone(tmp_path):
    named(tmp_path)
    (tmp_path / "out_key.csv").write_text("older")
    (tmp_path / "out_key.csv").chmod(0o644)
    ended = called(tmp_path, *FILE_ONLY, "--anonymize")
    assert ended.status == 2
    assert "out_key.csv" in ended.err
    assert called(tmp_path, *FILE_ONLY, "--anonymize", "--overwrite").status == 0
    assert stat.S_IMODE((tmp_path / "out_key.csv").stat().st_mode) == 0o600
    assert key_of(tmp_path)["P0001"] == "Hubertus"


def test_the_key_leads_back_to_the_pixels(tmp_path):
    root = named(tmp_path)
    called(tmp_path, *FILE_ONLY, "--anonymize")
    key = key_of(tmp_path)
    with h5py.File(tmp_path / "out.h5") as file, PatchFile(tmp_path / "out.h5") as patches:
        for i in range(len(patches)):
            origin = patches.provenance(i)
            assert key[origin.input_file].startswith(key[origin.patient])
            for side in ("input", "target"):
                path = root / key[getattr(origin, f"{side}_file")]
                image = pydicom.dcmread(path).pixel_array
                there = image[origin.row : origin.row + 24, origin.col : origin.col + 24]
                np.testing.assert_array_equal(file[side][i, 0], there)


def test_the_key_holds_names_of_folders_and_files_and_nothing_else(tmp_path):
    planted(tmp_path)
    called(tmp_path, *FILE_ONLY, "--anonymize")
    key = key_of(tmp_path)
    assert all(re.fullmatch(r"P\d{4}(/(in|target)_\d{4})?", name) for name in key)
    assert all((tmp_path / "scans" / real).exists() for real in key.values())
    assert len(key) == 2 * (1 + 3 + 3)


def test_anonymised_patches_are_those_of_a_run_with_names(tmp_path):
    named(tmp_path)
    augmented = ("--rot_augment", "--blurr_n_noise")
    called(tmp_path, *FILE_ONLY, *augmented)
    called(tmp_path, *FILE_ONLY, *augmented, "--anonymize", "--output-fname", "hidden.h5")
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(tmp_path / "hidden.h5") as other:
        for name in ("input", "target", "patch/orientation"):
            np.testing.assert_array_equal(one[name][...], other[name][...])
