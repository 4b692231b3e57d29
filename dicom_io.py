"""Finding patients, reading headers and pixels of CT slices, pairing. Alone imports pydicom."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pairing import PatientPairs, Sample, pair_slices, sample_steps
from utils import AIR_HU, CallError, Config, RunError, Slice, listed, quoted, shown

if TYPE_CHECKING:
    from pydicom import Dataset

#: Folder names that are taken when no option names them, by how they begin.
INPUT_NAMES = ("quarter*", "low*")
TARGET_NAMES = ("full*", "high*")
#: How deep below a patient its two folders may lie: TCIA has a folder for the date between.
SEARCH_DEPTH = 4

#: A file with one of these endings is no slice, and one that names no slice is no damage.
STRAY_ENDINGS = frozenset(
    [
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".xml",
        ".yml",
        ".yaml",
        ".md",
        ".html",
        ".pdf",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".db",
        ".ini",
        ".log",
        ".zip",
        ".gz",
        ".tar",
        ".7z",
        ".mat",
        ".npy",
        ".npz",
        ".h5",
        ".nii",
        ".mhd",
        ".py",
        ".sh",
    ]
)
STRAY_NAMES = frozenset(("dicomdir", "thumbs.db", "version", "license", "readme"))

#: Larger images, and larger files, are refused before any of their pixels is decoded.
MOST_PIXELS_A_SIDE = 8192
MOST_FILE_BYTES = 256 << 20

#: Each alone tells that two folders are of one person; the date does with the time.
_PERSON_TAGS = ("PatientID", "StudyInstanceUID", "IrradiationEventUID")
#: Values that say nothing of a person.
PLACEHOLDERS = frozenset(
    (
        *("anonymous", "anonymized", "anonymised", "anon", "deidentified", "de-identified"),
        *("removed", "unknown", "none", "null", "na", "n/a", "test", "patient", "noid", "no_id"),
        *("xxx", "19000101"),
    )
)

_TAGS = [
    "SOPClassUID",
    "Modality",
    "SliceThickness",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    *_PERSON_TAGS,
    "StudyDate",
    "StudyTime",
]
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = (_EXPLICIT_LITTLE, _IMPLICIT_LITTLE, _EXPLICIT_BIG)


@dataclass(frozen=True)
class PatientFolders:
    """A patient and its two series folders, as paths below the input folder."""

    patient: str
    input: str
    target: str


# --- folders ---------------------------------------------------------------------------------


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if wanted(e))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a folder's name fits, with or without TCIA's series number before it."""
    bare = re.sub(r"^\d+(\.\d+)?-", "", name)
    return any(
        fnmatch.fnmatchcase(n.casefold(), p.casefold()) for n in (name, bare) for p in patterns
    )


def _series_folders(root: Path, folder: str, patterns: Sequence[str], depth: int) -> Iterator[str]:
    for name in _names(root / folder, _is_folder):
        path = f"{folder}/{name}"
        if _fits(name, patterns):
            yield path
        elif depth > 1:
            yield from _series_folders(root, path, patterns, depth - 1)


def find_patients(config: Config) -> list[PatientFolders]:
    """List the patients below the input folder, each with its input and its target folder.

    Raises
    ------
    CallError
        No such folder; no patient in it; a patient without one of its folders, or with several.
    """
    root = Path(config.input_folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise CallError(
            f"--input-folder {quoted(root)} {what}; wanted: a folder with one sub-folder a patient"
        )
    try:
        patients = _names(root, _is_folder)
        found, problems = _series_of(root, patients, config)
    except OSError as error:
        raise CallError(f"cannot list {shown(error.filename)}: {error.strerror}") from None
    if not patients:
        raise CallError(
            f"--input-folder {quoted(root)} holds no folders; wanted: one sub-folder a patient"
        )
    if problems:
        raise CallError(listed(f"--input-folder {quoted(root)}", problems))
    return found


def _series_of(
    root: Path, patients: Sequence[str], config: Config
) -> tuple[list[PatientFolders], list[str]]:
    sides = (
        ("input (low-dose)", "--input-gen-folder", config.input_gen_folder, INPUT_NAMES),
        ("target (full-dose)", "--target-gen-folder", config.target_gen_folder, TARGET_NAMES),
    )
    found, problems = [], []
    for patient in patients:
        chosen = []
        for side, option, pattern, defaults in sides:
            patterns = (pattern,) if pattern else defaults
            fits = list(_series_folders(root, patient, patterns, SEARCH_DEPTH))
            chosen += fits
            wanted = " or ".join(repr(p) for p in patterns)
            if not fits:
                problems.append(
                    f"patient {quoted(patient)} has no {side} folder; wanted: a folder named "
                    f"{wanted} (see {option})"
                )
            elif len(fits) > 1:
                names = ", ".join(shown(f) for f in fits)
                problems.append(
                    f"patient {quoted(patient)} has several {side} folders that fit {wanted}: "
                    f"{names}; name one with {option}"
                )
        if len(chosen) == 2 and chosen[0] == chosen[1]:
            problems.append(
                f"patient {quoted(patient)}: {shown(chosen[0])} fits both --input-gen-folder and "
                "--target-gen-folder; name two different folders"
            )
        elif len(chosen) == 2:
            found.append(PatientFolders(patient, chosen[0], chosen[1]))
    return found, problems


# --- headers ---------------------------------------------------------------------------------


def _stray(name: str) -> bool:
    stem, ending = os.path.splitext(name.casefold())
    return (
        name.startswith(".")
        or ending in STRAY_ENDINGS
        or {name.casefold(), stem} & STRAY_NAMES != set()
    )


def read_slice(root: str, file: str) -> Slice:
    """Read the header of one slice.

    Parameters
    ----------
    root : str
        The input folder.
    file : str
        Path below it.

    Raises
    ------
    RunError
        Not a DICOM file, not a CT slice, or one that the tool has no rule for.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    path = os.path.join(root, file)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
            tail = stream.read(12)
            return _slice_of(dataset, file, syntax, tail, stream.tell() - len(tail), size)
    except InvalidDicomError:
        found = "is empty" if size == 0 else "is not a DICOM file"
        raise RunError(f"{shown(file)} {found}; wanted: a CT slice") from None
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {shown(file)}: {error.strerror}") from None
    except Exception as error:  # whatever a parser meets in a damaged file
        # Its words stay out: they may quote any tag, names among them.
        raise RunError(f"{shown(file)} has a damaged header ({type(error).__name__})") from None


def _refuse(file: str, found: str, wanted: str) -> RunError:
    return RunError(f"{shown(file)}: {found}; wanted: {wanted}")


def _numbers(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in (value if count > 1 else [value]))
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(name)
    return numbers


@functools.lru_cache(maxsize=4096)
def _digest(value: str) -> str:
    """Return what stands for an identifying value: equal for equal ones, and not readable."""
    return hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _persons(dataset: Dataset) -> tuple[str, ...]:
    """Return digests of what tells who was scanned, each behind the name of its tag."""

    def value(name: str) -> str:
        text = str(dataset.get(name) or "").strip()
        plain = text.casefold()
        if name == "StudyTime":
            plain = plain.partition(".")[0]
        return "" if plain in PLACEHOLDERS or not plain.strip("0-_ ") else text

    found = [f"{name} {_digest(value(name))}" for name in _PERSON_TAGS if value(name)]
    date, time = value("StudyDate"), value("StudyTime")
    if date and time:
        found.append(f"StudyDate with StudyTime {_digest(f'{date} {time}')}")
    return tuple(found)


def _slice_of(
    dataset: Dataset, file: str, syntax: str, tail: bytes, offset: int, size: int
) -> Slice:
    """Turn a header into a `Slice`, refusing what the tool has no rule for."""

    def whole(name: str, default: int | None = None) -> int:
        value = dataset.get(name, default)
        if value is None or value == "":
            raise _refuse(file, f"no {name}", "a CT slice with pixels")
        return int(value)

    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise _refuse(file, f"Modality {quoted(modality)}", "CT")
    if (samples := whole("SamplesPerPixel", 1)) != 1:
        raise _refuse(file, f"{samples} samples a pixel", "1")
    if (frames := whole("NumberOfFrames", 1)) != 1:
        raise _refuse(file, f"{frames} frames", "one slice a file")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _refuse(file, f"PhotometricInterpretation {photometric!r}", "MONOCHROME2")
    rows, columns = whole("Rows"), whole("Columns")
    if not (0 < rows <= MOST_PIXELS_A_SIDE and 0 < columns <= MOST_PIXELS_A_SIDE):
        raise _refuse(
            file,
            f"{rows} x {columns} pixels exceeds the limit",
            f"1 to {MOST_PIXELS_A_SIDE} a side",
        )
    if size > MOST_FILE_BYTES:
        raise _refuse(file, f"{size} bytes exceeds the limit", f"at most {MOST_FILE_BYTES}")
    slope, intercept = (_numbers(dataset, n, 1) for n in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        raise _refuse(file, "no RescaleSlope or RescaleIntercept", "both, they give the HU")
    if slope[0] == 0:
        raise _refuse(file, "RescaleSlope 0", "any other")
    if dataset.get("ModalityLUTSequence"):
        raise _refuse(file, "a Modality LUT Sequence", "RescaleSlope and RescaleIntercept")
    dtype, bits = _stored_type(file, whole, syntax)
    pixel_offset = _native_offset(file, syntax, tail, offset, size, rows * columns * dtype.itemsize)
    along, in_plane, orientation = _geometry(dataset)
    thickness = _numbers(dataset, "SliceThickness", 1)
    instance = dataset.get("InstanceNumber")
    event = str(dataset.get("IrradiationEventUID") or "")
    return Slice(
        file=file,
        rows=rows,
        columns=columns,
        position_mm=along,
        in_plane_mm=in_plane,
        orientation=orientation,
        spacing_mm=_numbers(dataset, "PixelSpacing", 2) or (),
        thickness_mm=thickness[0] if thickness else None,
        instance=int(instance) if instance not in (None, "") else None,
        slope=slope[0],
        intercept=intercept[0],
        pixel_offset=pixel_offset,
        dtype=dtype.str,
        bits_stored=bits,
        padding=_padding(dataset, dtype),
        event=_digest(event) if event else "",
        persons=_persons(dataset),
    )


def _padding(dataset: Dataset, dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the range of stored values that mean 'no image here' (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None or limit == "" else limit)]
    # The tag is read as signed or unsigned by its VR, which does not always follow the pixels'.
    bits = 8 * dtype.itemsize
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    ends = [(end - low) % (1 << bits) + low for end in ends]
    return min(ends), max(ends)


def _stored_type(file: str, whole: Callable[..., int], syntax: str) -> tuple[np.dtype[Any], int]:
    """Return the NumPy type of stored values and how many of its bits count."""
    allocated, signed = whole("BitsAllocated"), whole("PixelRepresentation")
    stored = whole("BitsStored")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise _refuse(file, f"{stored} of {allocated} bits stored", "at most 16 of 8 or 16")
    if (high := whole("HighBit", stored - 1)) != stored - 1:
        raise _refuse(file, f"HighBit {high} with {stored} bits stored", str(stored - 1))
    order = ">" if syntax == _EXPLICIT_BIG else "<"
    return np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}"), stored


def _native_offset(
    file: str, syntax: str, tail: bytes, offset: int, size: int, wanted: int
) -> int | None:
    """Return where native pixels begin; None for a compressed transfer syntax.

    `tail` is what follows the header: tag, VR and length of Pixel Data (7FE0,0010).
    """
    order = ">" if syntax == _EXPLICIT_BIG else "<"
    tag = (0x7FE0, 0x0010)
    if tuple(np.frombuffer(tail[:4].ljust(4, b"\0"), f"{order}u2")) != tag and syntax != _DEFLATED:
        raise _refuse(file, "no pixels: the file ends before them", "a CT slice with pixels")
    if syntax not in _NATIVE:
        _check_decoder(file, syntax)
        return None
    head = 8 if syntax == _IMPLICIT_LITTLE else 12
    length = int(np.frombuffer(tail[head - 4 : head].ljust(4, b"\0"), f"{order}u4")[0])
    there = size - offset - head
    if length not in (wanted, wanted + wanted % 2) or there < wanted:
        raise _refuse(file, f"{min(length, there)} bytes of pixels", f"{wanted}")
    return offset + head


def _check_decoder(file: str, syntax: str) -> None:
    """Refuse a transfer syntax that cannot be decoded here, before any work is done."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        available = get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        available = False
    if not available:
        name = UID(syntax).name if syntax else "missing"
        raise _refuse(
            file,
            f"transfer syntax {shown(name)}, which no decoder reads",
            "install requirements.txt",
        )


def _geometry(dataset: Dataset) -> tuple[float | None, tuple[float, ...], tuple[float, ...]]:
    """Return the position along the slice normal, the position in the plane, the orientation."""
    position = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None, (), orientation or ()
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along_row, along_column)
    at = np.array(position)
    return float(at @ normal), (float(at @ along_row), float(at @ along_column)), orientation


# --- pixels ----------------------------------------------------------------------------------


def read_pixels(root: str, one: Slice) -> NDArray[np.float32]:
    """Read the stored values of a slice.

    Parameters
    ----------
    root : str
        The input folder.
    one : Slice

    Returns
    -------
    ndarray of float32, shape (rows, columns)
        Exact: no stored value has more than 16 bits. Padding has become air.

    Raises
    ------
    RunError
        The file is gone or damaged, or no decoder reads its transfer syntax.
    """
    path = os.path.join(root, one.file)
    shape = (one.rows, one.columns)
    if one.pixel_offset is None:
        stored = _decode(path, one)
    else:
        try:
            flat = np.fromfile(path, one.dtype, one.rows * one.columns, offset=one.pixel_offset)
        except OSError as error:
            raise RunError(f"cannot read {shown(one.file)}: {error.strerror}") from None
        if len(flat) != one.rows * one.columns:
            raise _refuse(
                one.file, f"{flat.nbytes} bytes of pixels", f"{shape[0]} x {shape[1]} pixels"
            )
        stored = _without_unused_bits(flat, one.bits_stored)
    return _padding_to_air(stored.reshape(shape), one)


def _padding_to_air(stored: NDArray[Any], one: Slice) -> NDArray[np.float32]:
    """Return stored values as float32, those of padding replaced by what air would be stored as."""
    out = stored.astype(np.float32)
    if one.padding:
        low, high = one.padding
        out[(stored >= low) & (stored <= high)] = (AIR_HU - one.intercept) / one.slope
    return out


def _without_unused_bits(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Clear the bits above those stored (overlays once lay there), keeping the sign."""
    unused = stored.dtype.itemsize * 8 - bits
    if not unused:
        return stored
    native = stored.astype(stored.dtype.newbyteorder("="))
    return (native << unused) >> unused


def _decode(path: str, one: Slice) -> NDArray[Any]:
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path)
            array = dataset.pixel_array
    except Exception as error:  # decoders raise what they like
        raise RunError(f"cannot decode the pixels of {shown(one.file)}: {shown(error)}") from None
    if array.shape != (one.rows, one.columns):
        raise _refuse(one.file, f"pixels of shape {array.shape}", f"{one.rows} x {one.columns}")
    return array


def read_sample(root: str, one: Slice) -> Sample:
    """Read a few pixels of a slice, HU rounded, for the anatomy check.

    Returns
    -------
    ndarray of int16, shape (about 64, about 64)
    """
    if one.pixel_offset is None:
        return sample_of(to_hu(read_pixels(root, one), one))
    down, right = sample_steps(one.rows, one.columns)
    width = np.dtype(one.dtype).itemsize * one.columns
    rows = range(0, one.rows, down)
    try:
        with open(os.path.join(root, one.file), "rb", buffering=0) as file:
            raw = b"".join(
                os.pread(file.fileno(), width, one.pixel_offset + row * width) for row in rows
            )
    except OSError as error:
        raise RunError(f"cannot read {shown(one.file)}: {error.strerror}") from None
    if len(raw) != width * len(rows):
        raise _refuse(one.file, "fewer pixels than when its header was read", "a file at rest")
    flat = _without_unused_bits(np.frombuffer(raw, one.dtype), one.bits_stored)
    few = flat.reshape(len(rows), one.columns)[:, ::right]
    return _rounded(to_hu(_padding_to_air(few, one), one))


def sample_of(hu: NDArray[np.float32]) -> Sample:
    """Return the same few pixels of an image in HU as `read_sample` reads."""
    down, right = sample_steps(hu.shape[0], hu.shape[1])
    return _rounded(hu[::down, ::right])


def _rounded(hu: NDArray[np.float32]) -> Sample:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def to_hu(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    """Return stored values in HU: slope x value + intercept (PS3.3 C.11.1.1.2), float32."""
    if one.slope == 1:
        return stored + np.float32(one.intercept)
    return (stored * one.slope + one.intercept).astype(np.float32)


# --- pairs -----------------------------------------------------------------------------------


def find_pairs(root: str, folders: PatientFolders) -> PatientPairs:
    """Read the headers of a patient's two series and pair their slices.

    Never raises for what it finds in the files: that goes into `problems`.
    """
    out = PatientPairs()
    sides: list[list[Slice]] = []
    for folder in (folders.input, folders.target):
        slices: list[Slice] = []
        try:
            names = _names(Path(root, folder), lambda e: not e.is_dir())
        except OSError as error:
            out.problems.append(f"cannot list {shown(folder)}: {error.strerror}")
            names = []
        for name in names:
            if _stray(name):
                out.strays += 1
                continue
            try:
                slices.append(read_slice(root, f"{folder}/{name}"))
            except RunError as error:
                out.problems.append(str(error))
        if not slices and not out.problems:
            out.problems.append(f"{shown(folder)} holds no CT slice")
        out.persons.update(*(s.persons for s in slices))
        sides.append(slices)
    if not out.problems:
        pair_slices(folders.patient, sides[0], sides[1], out)
    return out
