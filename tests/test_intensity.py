"""Pixels in HU: pydicom's samples against SimpleITK, transfer syntaxes, bits, padding, refusals."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ctpatches.dicom.header import read_slice
from ctpatches.dicom.pixels import read_pixels, to_hu
from tests import jpeg_lossless
from tests.editing import edit
from tests.running import called
from tests.scans import SHAPE, find_pairs, phantom, write_patient, write_slice
from utils import RunError

sitk.ProcessObject.SetGlobalWarningDisplay(False)

SAMPLES = Path(pydicom.__file__).parent / "data"

#: Every CT file with pixels in the wheel of pydicom, and how many of its pixels are padding.
CT_SAMPLES = {
    "test_files/693_J2KI.dcm": 74496,
    "test_files/CT_small.dcm": 0,
    "test_files/J2K_pixelrep_mismatch.dcm": 0,
    "test_files/dicomdirtests/77654033/CT2/17106": 0,
    "test_files/dicomdirtests/77654033/CT2/17136": 0,
    "test_files/dicomdirtests/77654033/CT2/17166": 0,
    "test_files/dicomdirtests/77654033/CT2/17196": 0,
    "test_files/dicomdirtests/98892001/CT2N/6293": 0,
    "test_files/dicomdirtests/98892001/CT2N/6924": 0,
    "test_files/dicomdirtests/98892001/CT5N/2062": 0,
    "test_files/dicomdirtests/98892001/CT5N/2392": 0,
    "test_files/dicomdirtests/98892001/CT5N/2693": 0,
    "test_files/dicomdirtests/98892001/CT5N/3023": 0,
    "test_files/dicomdirtests/98892001/CT5N/3353": 0,
}
#: Why each of the others is refused: most are of another modality, which the message names.
OTHER_MODALITY = {
    "test_files/ExplVR_BigEnd.dcm": "US",
    "test_files/GDCMJ2K_TextGBR.dcm": "",
    "test_files/JPEG-lossy.dcm": "NM",
    "test_files/JPEG2000-embedded-sequence-delimiter.dcm": "NM",
    "test_files/JPEG2000.dcm": "NM",
    "test_files/JPEGLSNearLossless_08.dcm": "",
    "test_files/JPEGLSNearLossless_16.dcm": "",
    "test_files/JPGExtended.dcm": "NM",
    "test_files/MR_small.dcm": "MR",
    "test_files/MR_small_RLE.dcm": "MR",
    "test_files/MR_small_bigendian.dcm": "MR",
    "test_files/MR_small_expb.dcm": "MR",
    "test_files/MR_small_implicit.dcm": "MR",
    "test_files/MR_small_jp2klossless.dcm": "MR",
    "test_files/MR_small_jpeg_ls_lossless.dcm": "MR",
    "test_files/MR_small_padded.dcm": "MR",
    "test_files/MR_truncated.dcm": "MR",
    "test_files/SC_rgb_jpeg_gdcm.dcm": "OT",
    "test_files/SC_rgb_rle_16bit.dcm": "OT",
    "test_files/UN_sequence.dcm": "",
    "test_files/badVR.dcm": "RTDOSE",
    "test_files/dicomdirtests/77654033/CR1/6154": "CR",
    "test_files/dicomdirtests/98892003/MR1/15820": "MR",
    "test_files/dicomdirtests/DICOMDIR": "",
    "test_files/examples_jpeg2k.dcm": "US",
    "test_files/image_dfl.dcm": "OT",
    "test_files/liver_1frame.dcm": "SEG",
    "test_files/meta_missing_tsyntax.dcm": "",
    "test_files/reportsi.dcm": "SR",
    "test_files/rtdose_rle.dcm": "RTDOSE",
    "test_files/rtplan.dcm": "RTPLAN",
    "test_files/waveform_ecg.dcm": "ECG",
}
#: Grey samples of one frame, of other modalities: as CT they show what other encoders write.
AS_CT = [
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "image_dfl.dcm",
]


@cache
def shipped() -> dict[str, Dataset]:
    """Return the CT files with pixels that are in the installed package."""
    found: dict[str, Dataset] = {}
    for path in sorted(p for p in SAMPLES.rglob("*") if p.is_file()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(path)
            except Exception:  # not a DICOM file, or one that is damaged on purpose
                continue
            if dataset.get("Modality") == "CT" and "PixelData" in dataset:
                found[str(path.relative_to(SAMPLES))] = dataset
    return found


def hu_of(path: Path) -> NDArray[np.float32]:
    one = read_slice(str(path.parent), path.name)
    return to_hu(read_pixels(str(path.parent), one), one)


def stored_of(path: Path) -> NDArray[np.float32]:
    return read_pixels(str(path.parent), read_slice(str(path.parent), path.name))


def hu_by_itk(path: Path) -> NDArray[np.float64]:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert image.shape[0] == 1
    return np.asarray(image[0], np.float64)


def refusal(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        read_slice(str(path.parent), path.name)
    return str(caught.value)


# --- pydicom's samples -----------------------------------------------------------------------


def test_the_samples_of_ct_are_those_that_are_compared():
    assert sorted(CT_SAMPLES) == sorted(shipped())


@pytest.mark.parametrize("name", CT_SAMPLES)
def test_pixels_in_hu_equal_those_of_simpleitk(name):
    path = SAMPLES / name
    dataset = shipped()[name]
    value = dataset.get("PixelPaddingValue")
    padded = np.zeros((dataset.Rows, dataset.Columns), bool)
    if value is not None:
        lossy = dataset.get("LossyImageCompression") == "01"
        padded = dataset.pixel_array < 0 if lossy else dataset.pixel_array == value
    found = hu_of(path)
    np.testing.assert_array_equal(found[~padded], hu_by_itk(path)[~padded])
    assert (found[padded] == -1024).all()
    assert padded.sum() == CT_SAMPLES[name]


@pytest.mark.parametrize("name", OTHER_MODALITY)
def test_another_modality_is_refused_by_name(name):
    assert refusal(SAMPLES / name).endswith(f"Modality '{OTHER_MODALITY[name]}'; expected: CT")


def test_ct_headers_without_pixels_are_refused():
    without = sorted((SAMPLES / "test_files/dicomdirtests/TINY_ALPHA").rglob("IM*"))
    assert len(without) == 50
    reasons = {refusal(path).partition(": ")[2] for path in without}
    assert reasons == {"no SamplesPerPixel; expected: a CT slice with pixels"}


@pytest.mark.parametrize("name", ["no_meta.dcm", "ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm"])
def test_a_file_without_the_head_of_a_dicom_file_is_refused(name):
    assert refusal(SAMPLES / "test_files" / name).endswith("DICOM file; expected: a CT slice")


@pytest.mark.parametrize("name", AS_CT)
def test_grey_samples_of_other_encoders_equal_simpleitk_once_they_are_called_ct(name, tmp_path):
    path = tmp_path / name
    path.write_bytes((SAMPLES / "test_files" / name).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit(path, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    np.testing.assert_array_equal(hu_of(path), hu_by_itk(path))


def test_more_pixels_than_rows_times_columns_are_refused(tmp_path):
    path = tmp_path / "MR_small_padded.dcm"
    path.write_bytes((SAMPLES / "test_files" / path.name).read_bytes())
    edit(path, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert "8320 bytes of pixels; expected: 8192" in refusal(path)


# --- transfer syntaxes and bits --------------------------------------------------------------

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
]


def stored_values(bits: int, signed: bool) -> NDArray[Any]:
    """Return an image with texture that reaches both ends of what so many bits hold."""
    low = -(1 << (bits - 1)) if signed else 0
    values = np.random.default_rng(bits).integers(low, low + (1 << bits), SHAPE)
    values[:40] = phantom(SHAPE, bits)[0][:40].astype(int) // 4 + low // 2
    values[0, 0], values[-1, -1] = low, low + (1 << bits) - 1
    return values.astype(np.int16 if signed else np.uint16)


def write_as(path: Path, stored: NDArray[Any], syntax: UID, **options: Any) -> Path:
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        return jpeg_lossless.compress(write_slice(path, stored, **options), syntax)
    return write_slice(path, stored, syntax=syntax, **options)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name.split(" (")[0])
@pytest.mark.parametrize("bits", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_hu_is_exact_in_every_transfer_syntax(tmp_path, syntax, bits, signed):
    stored = stored_values(bits, signed)
    path = write_as(tmp_path / "a", stored, syntax, bits_stored=bits, slope=0.5, intercept=-1000)
    expected = stored.astype(np.float64) * 0.5 - 1000
    np.testing.assert_array_equal(hu_of(path), expected)
    np.testing.assert_array_equal(hu_by_itk(path), expected)


@pytest.mark.parametrize("syntax", SYNTAXES[:5], ids=lambda s: s.name.split(" (")[0])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_overlay_bits_above_those_stored_are_no_part_of_a_value(tmp_path, syntax, signed):
    stored = stored_values(12, signed)
    overlay = np.random.default_rng(0).integers(0, 16, SHAPE) << 12
    mixed = ((stored.astype(np.int64) & 0x0FFF) | overlay).astype(np.uint16).view(stored.dtype)
    path = write_as(tmp_path / "a", mixed, syntax, bits_stored=12)
    np.testing.assert_array_equal(hu_of(path), stored.astype(np.float64) - 1024)


def test_monochrome1_says_how_to_show_a_value_and_not_what_it_is(tmp_path):
    stored = stored_values(12, False)
    path = write_slice(tmp_path / "a", stored, PhotometricInterpretation="MONOCHROME1")
    # PS3.3 C.7.6.3.1.2: shown inverted, after all rescaling. SimpleITK inverts what it returns.
    np.testing.assert_array_equal(hu_of(path), stored.astype(np.float64) - 1024)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (-1, 1000), (2.5, -1024), (1e-3, 0.25)])
def test_hu_is_slope_times_value_plus_intercept_in_float32(tmp_path, slope, intercept):
    stored = stored_values(16, True)
    path = write_slice(tmp_path / "a", stored, slope=slope, intercept=intercept)
    expected = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    np.testing.assert_allclose(hu_of(path), expected, rtol=2**-22, atol=2**-22)


# --- padding ---------------------------------------------------------------------------------

UNSIGNED = np.array([[0, 1, 5, 6], [7, 8, 9, 4095]], np.uint16)
SIGNED = np.array([[-2000, -1999, -1024, 0], [1, 50, 3071, -2001]], np.int16)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name.split(" (")[0])
def test_padding_is_air_in_hu(tmp_path, syntax):
    stored = stored_values(16, True)
    stored[:20, :30] = -2000
    path = write_as(tmp_path / "a", stored, syntax, PixelPaddingValue=-2000)
    expected = np.where(stored == -2000, -1024.0, stored - 1024.0)
    np.testing.assert_array_equal(hu_of(path), expected)


@pytest.mark.parametrize(
    ("stored", "value", "limit", "padded"),
    [
        (UNSIGNED, 0, None, [[1, 0, 0, 0], [0, 0, 0, 0]]),
        (UNSIGNED, 4095, None, [[0, 0, 0, 0], [0, 0, 0, 1]]),
        (UNSIGNED, 5, 8, [[0, 0, 1, 1], [1, 1, 0, 0]]),
        (UNSIGNED, 8, 5, [[0, 0, 1, 1], [1, 1, 0, 0]]),
        (UNSIGNED, 7, 7, [[0, 0, 0, 0], [1, 0, 0, 0]]),
        (UNSIGNED, 100, None, [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (SIGNED, -2000, None, [[1, 0, 0, 0], [0, 0, 0, 0]]),
        (SIGNED, -2001, -1999, [[1, 1, 0, 0], [0, 0, 0, 1]]),
        (SIGNED, -1999, -2001, [[1, 1, 0, 0], [0, 0, 0, 1]]),
        (SIGNED, -1, 50, [[0, 0, 0, 1], [1, 1, 0, 0]]),
    ],
)
@pytest.mark.parametrize("syntax", SYNTAXES[:3], ids=["implicit", "explicit", "big-endian"])
def test_padding_is_the_value_or_all_up_to_the_limit(
    tmp_path, stored, value, limit, padded, syntax
):
    path = write_slice(
        tmp_path / "a",
        stored,
        slope=0.5,
        intercept=-1000,
        bits_stored=16,
        syntax=syntax,
        PixelPaddingValue=value,
        PixelPaddingRangeLimit=limit,
    )
    expected = np.where(np.array(padded, bool), -1024, stored.astype(float) * 0.5 - 1000)
    assert hu_of(path).tolist() == expected.tolist()


def test_a_negative_padding_value_that_is_written_as_unsigned_is_understood(tmp_path):
    path = write_slice(tmp_path / "a", SIGNED)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    dataset.save_as(path)
    assert hu_of(path)[0, 0] == -1024
    assert hu_of(path)[0, 1] == -1999 - 1024


def test_padding_as_stored_is_what_air_would_be_stored_as(tmp_path):
    path = write_slice(tmp_path / "a", UNSIGNED, slope=2, intercept=-2000, PixelPaddingValue=4095)
    assert stored_of(path).tolist() == [[0, 1, 5, 6], [7, 8, 9, (-1024 + 2000) / 2]]


def circle(padding: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Return a round image of a round body in air as scanners pad it, and where it is padded."""
    rows, cols = np.indices((128, 128))
    radius = np.hypot(rows - 64, cols - 64)
    tissue = np.where(radius < 40, 1064, 24) + np.random.default_rng(0).normal(0, 15, radius.shape)
    stored = np.where(radius < 62, tissue.round().clip(0), padding).astype(np.int16)
    return stored, radius >= 62


@pytest.mark.parametrize(
    ("syntax", "options"),
    [
        (JPEG2000, {"j2k_cr": [8]}),
        (JPEG2000, {"j2k_cr": [20]}),
        (JPEGLSNearLossless, {"jls_error": 4}),
    ],
    ids=["JPEG 2000, 8:1", "JPEG 2000, 20:1", "JPEG-LS, error of 4"],
)
def test_padding_of_a_lossy_file_is_air_with_the_ringing_at_its_edge(tmp_path, syntax, options):
    stored, padded = circle(-2000)
    path = write_slice(tmp_path / "a", stored, PixelPaddingValue=-2000)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, **options)
    dataset.save_as(path)
    decoded = pydicom.dcmread(path).pixel_array
    assert len(np.unique(decoded[padded])) > 1  # it is not the one value any more
    hu = hu_of(path)
    assert (hu[padded] == -1024).all()
    np.testing.assert_array_equal(hu, np.maximum(decoded - 1024.0, -1024))


@pytest.mark.parametrize(
    ("slope", "stored", "value"),
    [(1, [-2000, -1990, -1, 0, 24], -2000), (-1, [2000, 1990, 1, 0, -24], 2000)],
    ids=["slope 1", "slope -1"],
)
@pytest.mark.parametrize(("lossy", "first"), [("01", 3), ("00", 1), (None, 1)])
def test_files_that_were_lossy_once_are_treated_as_lossy(
    tmp_path, slope, stored, value, lossy, first
):
    path = write_slice(
        tmp_path / "a",
        np.array([stored], np.int16),
        slope=slope,
        PixelPaddingValue=value,
        LossyImageCompression=lossy,
    )
    expected = [-1024] * first + [s * slope - 1024 for s in stored[first:]]
    assert hu_of(path).tolist() == [expected]


@pytest.mark.parametrize(("value", "hu"), [(4000, 2976), (25, -999)])
def test_padding_of_a_lossy_file_that_may_be_tissue_is_refused(tmp_path, value, hu):
    stored = circle(value)[0]
    path = write_slice(tmp_path / "a", stored, PixelPaddingValue=value, LossyImageCompression="01")
    assert f"lossy compression with padding of {hu} HU" in refusal(path)
    write_slice(path, stored, PixelPaddingValue=24, LossyImageCompression="01")  # air
    assert (hu_of(path) >= -1024).all()


# --- refused by name -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"RescaleSlope": None}, "no RescaleSlope or RescaleIntercept"),
        ({"RescaleIntercept": None}, "no RescaleSlope or RescaleIntercept"),
        ({"NumberOfFrames": 2}, "2 frames; expected: one slice per file"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel; expected: 1"),
        ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation 'RGB'"),
        ({"Modality": "MR"}, "Modality 'MR'; expected: CT"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 of 32 bits stored"),
        ({"BitsStored": 12, "HighBit": 15}, "HighBit 15 with 12 bits stored"),
        ({"Rows": 40000, "Columns": 40000}, "40000 x 40000 pixels exceeds the limit"),
        ({"Rows": SHAPE[0] - 1}, "10240 bytes of pixels; expected: 10080"),
        ({"Rows": SHAPE[0] + 1}, "10240 bytes of pixels; expected: 10400"),
        ({"ModalityLUTSequence": [Dataset()]}, "a Modality LUT Sequence"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_no_rule_covers_is_refused(tmp_path, tags, reason):
    path = edit(write_slice(tmp_path / "a.dcm", phantom(SHAPE, 0)[0]), **tags)
    assert refusal(path).startswith(f"a.dcm: {reason}")


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"),
        ("1.2.840.10008.1.2.4.94", "JPIP Referenced"),
        ("1.2.826.0.1.3680043.9.1", "1.2.826.0.1.3680043.9.1"),
    ],
)
def test_a_transfer_syntax_that_nobody_decodes_is_named(tmp_path, syntax, named):
    path = jpeg_lossless.compress(write_slice(tmp_path / "a", UNSIGNED), JPEGLosslessSV1)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    assert f"transfer syntax {named}, which no decoder reads" in refusal(path)


# --- one job, several scanners ---------------------------------------------------------------


def two_scanners(root: Path) -> Path:
    write_patient(root, "A", 2, slope=1, intercept=-1024)
    write_patient(root, "B", 2, slope=0.5, intercept=-1000)
    return root


def test_stored_values_of_two_scanners_in_one_job_are_refused_naming_files_of_both(tmp_path):
    root = two_scanners(tmp_path / "scans")
    ended = called(tmp_path, "--input-folder", root, "--patch-size", "p24")
    assert ended.status == 1
    first, *rest = ended.err.splitlines()
    assert "--intensity hu" in first
    assert [line.strip() for line in rest] == [
        "A/quarter_3mm/0000.dcm: slope 1, intercept -1024",
        "B/quarter_3mm/0000.dcm: slope 0.5, intercept -1000",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["scans"]


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_one_slice_of_another_rescale_is_enough_to_refuse_and_is_named(tmp_path, tag):
    root = tmp_path / "scans"
    made = write_patient(root, "A", 3)
    edit(root / made[1].target_file, **{tag: 3})
    ended = called(tmp_path, "--input-folder", root, "--patch-size", "p24")
    assert ended.status == 1
    assert made[1].target_file in ended.err


def test_in_hu_two_scanners_are_one_data_set(tmp_path):
    root = two_scanners(tmp_path / "scans")
    options = ("--input-folder", root, "--patch-size", "p24", "--intensity", "hu")
    assert called(tmp_path, *options, "--output-fname", "out.h5").status == 0


def test_the_intensity_of_all_slices_is_read_for_each_file(tmp_path):
    root = two_scanners(tmp_path / "scans")
    found = [
        find_pairs(str(root), patient, "quarter_3mm", "full_3mm").pairs for patient in ("A", "B")
    ]
    assert [{(s.slope, s.intercept) for q in p for s in (q.input, q.target)} for p in found] == [
        {(1.0, -1024.0)},
        {(0.5, -1000.0)},
    ]
