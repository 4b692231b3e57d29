"""Headers in which something is wrong: all values as pydicom reads them, or the file is refused."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ctpatches.dicom import header, pixels
from pipeline.cohort.anatomy import sample_of
from tests.fuzz import Element, compare_headers, compare_with_pydicom
from tests.scans import SHAPE, phantom, write_slice

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
}
PIXEL_DATA = b"\xe0\x7f\x10\0OW"


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """Return a plain slice."""
    return write_slice(tmp_path / "plain.dcm", phantom(SHAPE, 1)[0]).read_bytes()


@pytest.mark.parametrize("length", [0, 4, 20, 26, 100, 300, 600, 1 << 31, 0xFFFFFFFF])
def test_the_length_of_the_file_meta_information_may_be_wrong(tmp_path, data, length):
    wrong = data[:140] + struct.pack("<L", length) + data[144:]
    assert compare_with_pydicom(wrong, tmp_path) == "accepted"


def test_elements_that_a_wrong_length_claims_are_read(tmp_path):
    """Date and time of the study, which tell one person from another."""
    data = write_slice(
        tmp_path / "plain.dcm", phantom(SHAPE, 1)[0], StudyDate="20200101", StudyTime="101010"
    ).read_bytes()
    length = struct.pack("<L", data.index(b"\x08\0\x60\0CS") - 144)
    assert compare_with_pydicom(data[:140] + length + data[144:], tmp_path) == "accepted"
    persons = header.read_slice(str(tmp_path), "slice.dcm").persons
    assert [person.split()[0] for person in persons] == ["StudyDate"]


@pytest.mark.parametrize("tag", [0x7FE00001, 0x7FE00008, 0x7FE00009])
@pytest.mark.parametrize("value", [b"", bytes(8), bytes(4 * SHAPE[0] * SHAPE[1])])
def test_other_elements_of_pixel_data_before_it_are_refused(tmp_path, data, tag, value):
    vr = {0x7FE00001: "OV", 0x7FE00008: "OF", 0x7FE00009: "OD"}[tag]
    wrong = data.replace(PIXEL_DATA, Element(tag, vr, value).encoded() + PIXEL_DATA)
    assert compare_with_pydicom(wrong, tmp_path) == "rejected"


REPEATED = {
    "RescaleIntercept": Element(0x00281052, "DS", b"0 "),
    "RescaleSlope": Element(0x00281053, "DS", b"2 "),
    "PixelPaddingValue": Element(0x00280120, "US", b"\1\0"),
    "ImagePositionPatient": Element(0x00200032, "DS", b"0\\0\\100 "),
    "PatientID": Element(0x00100020, "LO", b"P2"),
    "Rows": Element(0x00280010, "US", b"\x08\0"),
    "PixelData": Element(0x7FE00010, "OW", bytes(2 * SHAPE[0] * SHAPE[1])),
    "FloatPixelData": Element(0x7FE00008, "OF", bytes(4 * SHAPE[0] * SHAPE[1])),
}


@pytest.mark.parametrize("where", ["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=["native", "RLE"])
@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_element_counts_as_for_pydicom_or_is_refused(tmp_path, name, syntax, where):
    data = write_slice(tmp_path / "plain.dcm", phantom(SHAPE, 1)[0], syntax=syntax).read_bytes()
    again = REPEATED[name].encoded()
    at = data.index(b"\xe0\x7f\x10\0") if where == "before the pixels" else len(data)
    compare_with_pydicom(data[:at] + again + data[at:], tmp_path)


def test_what_may_follow_the_pixels_is_no_damage(tmp_path, data):
    for tag in (0x7FE10010, 0xFFFCFFFC):
        more = Element(tag, "OB", bytes(6)).encoded()
        assert compare_with_pydicom(data + more, tmp_path) == "accepted"


@pytest.mark.parametrize(
    ("charset", "patient"),
    [(b"ISO_IR 13 ", b"A~1 "), (b"ISO 2022 IR 87", b"\x1b$B;3"), (b"ISO_IR 192", b"\xc3\xa9")],
)
def test_patients_are_the_same_whatever_reads_their_character_set(tmp_path, charset, patient):
    path = write_slice(tmp_path / "plain.dcm", phantom(SHAPE, 1)[0], PatientID="plain 12")
    data = path.read_bytes()
    at = data.index(b"\x08\0\x16\0UI")
    patient = patient.ljust(8)
    data = data.replace(b"plain 12", patient)
    named = data[:at] + Element(0x00080005, "CS", charset).encoded() + data[at:]
    assert compare_with_pydicom(named, tmp_path) == "accepted"


def test_mutated_headers_are_read_as_by_pydicom_or_refused(tmp_path):
    counts = compare_headers(1000, 0, tmp_path)
    assert counts["accepted"] > 250, counts
    assert counts["rejected"] > 250, counts


# --- how pixels are stored -------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_pixels_equal_those_of_pydicom(tmp_path, syntax, bits, vr, signed):
    """In images of an even and of an odd number of pixels."""
    kind = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    for shape, padded in itertools.product([(6, 8), (7, 9)], [True, False]):
        stored = np.random.default_rng(bits).integers(0, 256, shape, np.uint8).astype(kind)
        stored[0, :2] = np.iinfo(kind).min, np.iinfo(kind).max
        path = write_slice(tmp_path / "a.dcm", stored, syntax=SYNTAXES[syntax])
        data = path.read_bytes()
        if syntax != "implicit":
            data = data.replace(b"OB" if bits == 8 else b"OW", vr.encode())
        if not padded and stored.nbytes % 2:
            data = data[:-1]
        path.write_bytes(data)
        if compare_with_pydicom(data, tmp_path) == "rejected":  # as by pydicom
            assert (syntax, bits, vr, padded) == ("big-endian", 8, "OW", False)
            continue
        expected = pydicom.dcmread(path).pixel_array
        found = pixels.read_pixels(
            str(tmp_path), one := header.read_slice(str(tmp_path), path.name)
        )
        np.testing.assert_array_equal(found, expected)
        sample = sample_of(pixels.read_hu(str(tmp_path), one))
        np.testing.assert_array_equal(sample, np.clip(expected.astype(int) - 1024, -32768, 32767))
