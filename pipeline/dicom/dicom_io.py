"""Reading headers and pixels of CT slices. Alone imports pydicom."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cohort.pairing import Sample, sample_steps
from pipeline.dicom import fast_header
from utils import AIR_HU, RunError, Slice, quoted, shown

if TYPE_CHECKING:
    from pydicom import Dataset

    Header = Mapping[str, Any] | Dataset

#: Larger images, and larger files, are refused before any of their pixels is decoded.
MOST_PIXELS_A_SIDE = 4096
MOST_FILE_BYTES = 64 << 20
#: RLE can grow 64-fold before its length is known.
MOST_RLE_PIXELS = 2048 * 2048
#: Longest value of VR CS (PS3.5 6.2): in a damaged file what comes next may pass for a part of it.
CS_LETTERS = 16
#: No scanner writes a slope or an intercept beyond, nor a slope below its inverse.
MOST_RESCALE = 1e9
#: Padding in lossy files is at most as bright as air, -1000 HU by definition.
MAX_PADDING_HU = -1000.0
#: Most headers are shorter than this.
HEAD_BYTES = 64 << 10

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
    "Exposure",
    "ConvolutionKernel",
    "CTDIvol",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PlanarConfiguration",
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
    "LossyImageCompression",
    "ModalityLUTSequence",
    *_PERSON_TAGS,
    "StudyDate",
    "StudyTime",
    "ExtendedOffsetTable",
]
#: Kind of what `--bad-files` is about.
BAD = "bad file"

_EXPLICIT_LITTLE = fast_header.EXPLICIT_LITTLE
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = (_EXPLICIT_LITTLE, _IMPLICIT_LITTLE, _EXPLICIT_BIG)
#: JPEG Baseline, JPEG Extended, JPEG-LS Near-lossless, JPEG 2000 and High-Throughput JPEG 2000: all
#: that need not be lossless, of those that can be decoded (PS3.6 table A-1).
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))


# --- headers ---------------------------------------------------------------------------------


class BadFile(RunError):
    """A file that cannot be used, and why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{shown(self.file)}: {self.reason}"


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
    BadFile
        Not a DICOM file, not a CT slice, or one that the tool has no rule for.
    """
    with _opened(root, file) as stream:
        stamp = _stamp(stream)
        if stamp[0] > MOST_FILE_BYTES:
            raise _too_large(file, f"{stamp[0]} bytes", f"{MOST_FILE_BYTES}")
        if not stamp[0]:  # as are those of /proc, which may have no end
            raise _refuse(file, "is empty", "a CT slice")
        head = os.read(stream.fileno(), HEAD_BYTES)
        if len(head) < stamp[0]:
            try:
                return _parse(file, head, stamp)
            except BadFile:
                pass  # perhaps a header that is longer than most: judged by the whole file
        return _parse(file, head + (stream.read() or b""), stamp)


@contextlib.contextmanager
def _opened(root: str, file: str) -> Iterator[io.FileIO]:
    """Open a slice for reading; turn errors of the system into a `BadFile`."""

    def without_waiting(path: str, flags: int) -> int:  # for the writer of a FIFO
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(os.path.join(root, file), "rb", buffering=0, opener=without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise _refuse(file, "is no regular file", "a CT slice")
            yield stream
    except OSError as error:
        raise BadFile(file, f"cannot be read: {error.strerror}") from None


def _stamp(stream: io.FileIO) -> tuple[int, int, int]:
    """Return size, modification time and status change time of an open file, ns.

    The status change time (ctime) also reveals a rewritten file whose modification time was set
    back, as nothing can set it; new access rights or hard links change it, too, which seldom
    happens during a run. It comes from the file server, so all hosts see the same. The inode number
    is left out: some network file systems number files anew on every host or mount.
    """
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def _unchanged(root: str, one: Slice) -> Iterator[io.FileIO]:
    """Open a slice for its pixels, and check that no byte changed since its header was read.

    Raises
    ------
    RunError
        It changed. Not a `BadFile`, which a run may leave out: what was read before is wrong, too.
    """

    def check(stream: io.FileIO) -> None:
        if _stamp(stream) != one.stamp:
            raise RunError(
                f"{shown(one.file)}: changed while it was being used: its size, modification time "
                "or status change time is not what it was when its header was read; run again "
                "when nothing writes to the scans"
            )

    with _opened(root, one.file) as stream:
        check(stream)
        yield stream
        check(stream)


def _parse(file: str, data: bytes, stamp: tuple[int, int, int]) -> Slice:
    """Read the header from the first bytes of a file.

    A length in a damaged file may claim gigabytes: from bytes in memory, no more can be read than
    there are.
    """
    plain = fast_header.read(data)
    if plain:
        header, offset = plain
        with contextlib.suppress(ValueError, TypeError):  # an odd value, for pydicom to judge
            tail = data[offset : offset + 12]
            return _slice_of(header, file, _EXPLICIT_LITTLE, tail, offset, stamp)

    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_inflated(file, data)
            stream = io.BytesIO(data)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
            offset = stream.tell()
            return _slice_of(dataset, file, syntax, data[offset : offset + 12], offset, stamp)
    except BadFile:
        raise
    except InvalidDicomError:
        raise _refuse(file, "is no DICOM file", "a CT slice") from None
    except Exception as error:  # whatever a parser meets in a damaged file
        # Its words stay out: they may quote any tag, names among them.
        raise BadFile(file, f"has a damaged header ({type(error).__name__})") from None


def _check_inflated(file: str, data: bytes) -> None:
    """Refuse a Deflated file that would grow beyond the limit, without letting it."""
    if _DEFLATED.encode() not in data:
        return
    from pydicom.filereader import read_dataset, read_preamble

    # Where pydicom itself begins to inflate: the length that File Meta Information gives may lie.
    stream = io.BytesIO(data)
    read_preamble(stream, False)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    zipped = data[stream.tell() :]
    if len(inflater.decompress(zipped, MOST_FILE_BYTES + 1)) > MOST_FILE_BYTES:
        raise _too_large(file, "the inflated data set", f"{MOST_FILE_BYTES} bytes")
    if not inflater.eof or zipped.startswith(b"\0\0"):  # group 0000, which pydicom would skip
        raise ValueError("cut short")


def _too_large(file: str, found: str, most: str) -> BadFile:
    return BadFile(file, f"{found} exceeds the limit; wanted: at most {most}")


def _refuse(file: str, found: str, wanted: str) -> BadFile:
    return BadFile(file, f"{found}; wanted: {wanted}")


def _numbers(dataset: Header, name: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    if count > 1 and isinstance(value, str):
        raise ValueError(name)
    numbers = tuple(float(v) for v in (value if count > 1 else [value]))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(name)
    return numbers


@functools.lru_cache(maxsize=4096)
def _digest(value: str) -> str:
    """Return what stands for an identifying value: equal for equal ones, and not readable."""
    return hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _persons(dataset: Header) -> tuple[str, ...]:
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
    dataset: Header, file: str, syntax: str, tail: bytes, offset: int, stamp: tuple[int, int, int]
) -> Slice:
    """Turn a header into a `Slice`, refusing what the tool has no rule for."""

    def whole(name: str, default: int | None = None) -> int:
        value = dataset.get(name, default)
        if value is None or value == "":
            raise _refuse(file, f"no {name}", "a CT slice with pixels")
        if not isinstance(value, int):
            raise _refuse(file, f"a {name} that is no integer", "an integer")
        return int(value)

    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise _refuse(file, f"Modality {quoted(modality[:CS_LETTERS])}", "CT")
    if (samples := whole("SamplesPerPixel")) != 1:
        raise _refuse(file, f"{samples} samples a pixel", "1")
    dataset.get("PlanarConfiguration")  # without effect, but where damaged, pydicom reads no pixels
    if (frames := whole("NumberOfFrames", 1)) != 1:
        raise _refuse(file, f"{frames} frames", "one slice a file")
    photometric = dataset.get("PhotometricInterpretation", "")
    if not isinstance(photometric, str) or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"PhotometricInterpretation {quoted(str(photometric)[:CS_LETTERS])}"
        raise _refuse(file, found, "MONOCHROME2")
    rows, columns = whole("Rows"), whole("Columns")
    if not (0 < rows <= MOST_PIXELS_A_SIDE and 0 < columns <= MOST_PIXELS_A_SIDE):
        raise _refuse(
            file,
            f"{rows} x {columns} pixels exceeds the limit",
            f"1 to {MOST_PIXELS_A_SIDE} a side",
        )
    slope, intercept = (_numbers(dataset, n, 1) for n in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        raise _refuse(file, "no RescaleSlope or RescaleIntercept", "both, they give the HU")
    if slope[0] == 0:
        raise _refuse(file, "RescaleSlope 0", "any other")
    if not 1 / MOST_RESCALE <= abs(slope[0]) <= MOST_RESCALE or abs(intercept[0]) > MOST_RESCALE:
        # Beyond it float32 would make infinity of some values, or NaN when they are normalised.
        found = f"RescaleSlope {slope[0]:g} with RescaleIntercept {intercept[0]:g}"
        raise _refuse(file, found, f"slopes from {1 / MOST_RESCALE:g} to {MOST_RESCALE:g}")
    if dataset.get("ModalityLUTSequence"):
        raise _refuse(file, "a Modality LUT Sequence", "RescaleSlope and RescaleIntercept")
    dtype, bits = _stored_type(file, whole, syntax)
    pixel_offset = _native_offset(
        file, syntax, tail, offset, stamp[0], rows * columns * dtype.itemsize
    )
    if "ExtendedOffsetTable" in dataset or (syntax == _EXPLICIT_BIG and dtype.itemsize == 1):
        pixel_offset = None  # no table is expected; and bytes may be swapped (PS3.5 8.1.1)
    along, in_plane, orientation = _geometry(dataset)
    thickness = _numbers(dataset, "SliceThickness", 1)
    instance = _instance(dataset)
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
        instance=instance,
        slope=slope[0],
        intercept=intercept[0],
        pixel_offset=pixel_offset,
        dtype=dtype.str,
        bits_stored=bits,
        padding=_padding(file, dataset, syntax, dtype, slope[0], intercept[0]),
        event=_digest(event) if event else "",
        persons=_persons(dataset),
        stamp=stamp,
        kernel=_kernel(dataset.get("ConvolutionKernel")),
        exposure_mas=_told(dataset, "Exposure"),
        ctdi_mgy=_told(dataset, "CTDIvol"),
    )


def _kernel(value: Any) -> str:
    """Return the words of Convolution Kernel, of which there may be several."""
    words = [value] if isinstance(value, str) else (value or [])
    return " ".join(str(word) for word in words)


def _told(dataset: Header, name: str) -> float | None:
    """Return a number that is shown and no more: a senseless one is none."""
    try:
        numbers = _numbers(dataset, name, 1)
    except (ValueError, TypeError):
        return None
    return numbers[0] if numbers else None


def _instance(dataset: Header) -> int | None:
    """Return the Instance Number; a VR of IS has 32 bits (PS3.5 6.2)."""
    value = dataset.get("InstanceNumber")
    if value is None or value == "":
        return None
    if not -(1 << 31) <= int(value) < 1 << 31:
        raise ValueError("InstanceNumber")
    return int(value)


def _padding(
    file: str, dataset: Header, syntax: str, dtype: np.dtype[Any], slope: float, intercept: float
) -> tuple[int, int] | None:
    """Return the range of stored values that mean 'no image here' (PS3.3 C.7.5.1.1.2).

    Lossy compression changes padding, and leaves ringing at its edge. Where padding is no more than
    air, in a file of a lossy transfer syntax or with Lossy Image Compression (0028,2110) 01, the
    range is extended to all values below the lowest of a CT scale, -1024 HU: no tissue has those.
    Padding of higher values cannot be told from tissue then, and the file is refused.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None or limit == "" else limit)]
    # The tag is read as signed or unsigned by its VR, which does not always follow the pixels'.
    bits = 8 * dtype.itemsize
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    high = low + (1 << bits) - 1
    ends = [(end - low) % (1 << bits) + low for end in ends]
    if syntax not in _LOSSY and str(dataset.get("LossyImageCompression", "")) != "01":
        return min(ends), max(ends)
    brightest = max(slope * end + intercept for end in ends)
    if brightest > MAX_PADDING_HU:
        raise _refuse(
            file,
            f"lossy compression with padding of {brightest:g} HU, which cannot be told from tissue",
            f"padding of at most {MAX_PADDING_HU:g} HU, or lossless compression",
        )
    lowest_stored = (AIR_HU - intercept) / slope
    if slope > 0:
        return low, max(*ends, math.ceil(lowest_stored) - 1)
    return min(*ends, math.floor(lowest_stored) + 1), high


def _stored_type(file: str, whole: Callable[..., int], syntax: str) -> tuple[np.dtype[Any], int]:
    """Return the NumPy type of stored values and how many of its bits count."""
    allocated, signed = whole("BitsAllocated"), whole("PixelRepresentation")
    stored = whole("BitsStored")
    if signed not in (0, 1):
        raise _refuse(file, f"PixelRepresentation {signed}", "0 or 1")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise _refuse(file, f"{stored} of {allocated} bits stored", "at most 16 of 8 or 16")
    if (high := whole("HighBit", stored - 1)) != stored - 1:
        raise _refuse(file, f"HighBit {high} with {stored} bits stored", str(stored - 1))
    order = ">" if syntax == _EXPLICIT_BIG else "<"
    return np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}"), stored


def _native_offset(
    file: str, syntax: str, tail: bytes, offset: int, size: int, wanted: int
) -> int | None:
    """Return where native pixels begin; None where pydicom has to read them.

    That is in compressed files and in those of unusual structure. `tail` is what follows the
    header: tag, VR and length of Pixel Data (7FE0,0010).
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
    # Elements behind the pixels may repeat some of the header.
    usual = there == length and (syntax == _IMPLICIT_LITTLE or tail[4:6] in (b"OB", b"OW"))
    return offset + head if usual else None


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
            f"transfer syntax {shown(name[:64])}, which no decoder reads",
            "install requirements.txt",
        )


def _geometry(dataset: Header) -> tuple[float | None, tuple[float, ...], tuple[float, ...]]:
    """Return the position along the slice normal, the position in the plane, the orientation."""
    position = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None, (), orientation or ()
    at = np.array(position)
    with np.errstate(all="ignore"):
        places = [float(at @ axis) for axis in _axes(orientation)]
    if not all(map(math.isfinite, places)):
        raise ValueError("ImagePositionPatient")
    return places[0], (places[1], places[2]), orientation


@functools.lru_cache  # most slices of a series lie alike
def _axes(orientation: tuple[float, ...]) -> tuple[NDArray[np.float64], ...]:
    """Return the slice normal, and the directions along a row and along a column."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    with np.errstate(all="ignore"):
        return np.cross(along_row, along_column), along_row, along_column


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
        The file is gone or damaged, changed since its header was read, or no decoder reads its
        transfer syntax.
    """
    with _unchanged(root, one) as stream:
        if one.pixel_offset is None:
            data = stream.read()
        else:
            size = one.rows * one.columns * np.dtype(one.dtype).itemsize
            data = _bytes_at(stream, one, one.pixel_offset, size)
    if one.pixel_offset is None:
        stored = _decode(data, one)
    else:
        stored = _without_unused_bits(np.frombuffer(data, one.dtype), one.bits_stored)
    return _padding_to_air(stored.reshape(one.rows, one.columns), one)


def _bytes_at(stream: io.FileIO, one: Slice, offset: int, size: int) -> bytes:
    """Return that many bytes of a slice's file."""
    data = os.pread(stream.fileno(), size, offset)
    if len(data) != size:
        raise _refuse(one.file, f"only {len(data)} bytes could be read at {offset}", f"{size}")
    return data


def _padding_to_air(stored: NDArray[Any], one: Slice) -> NDArray[np.float32]:
    """Return stored values as float32, those of padding replaced by what air would be stored as."""
    out = stored.astype(np.float32)
    if one.padding:
        low, high = one.padding
        inside = stored == low if low == high else (stored >= low) & (stored <= high)
        if inside.any():
            out[inside] = (AIR_HU - one.intercept) / one.slope
    return out


def _without_unused_bits(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Clear the bits above those stored (overlays once lay there), keeping the sign."""
    unused = stored.dtype.itemsize * 8 - bits
    if not unused:
        return stored
    if stored.dtype.kind == "u":
        masked: NDArray[Any] = stored & stored.dtype.type((1 << bits) - 1)
        return masked
    native = stored.astype(stored.dtype.newbyteorder("="))
    return (native << unused) >> unused


#: Which decoder reads a compressed slice, the first that can: always the same one, wherever others
#: are installed too.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "gdcm")
#: Those that end the whole process over some damaged code streams.
_FRAGILE = ("gdcm",)
#: Processor time that such a one may take for a slice.
MOST_SECONDS = 20


def _decode(data: bytes, one: Slice) -> NDArray[Any]:
    """Decode a compressed or Deflated slice, given its file."""
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_inflated(one.file, data)
            dataset = dcmread(io.BytesIO(data))
            syntax = dataset.file_meta.TransferSyntaxUID
            _check_frame(one, data, dataset, syntax)
            decoder = get_decoder(syntax)
            plugin = next((p for p in _DECODERS if p in decoder.available_plugins), "")

            def decode() -> NDArray[Any]:
                return decoder.as_array(dataset, decoding_plugin=plugin)[0]

            array = _apart(decode) if plugin in _FRAGILE else decode()
    except BadFile:
        raise
    except Exception as error:  # decoders raise what they like
        raise BadFile(one.file, f"has pixels that do not decode ({type(error).__name__})") from None
    if array.shape != (one.rows, one.columns):
        raise _refuse(one.file, f"pixels of shape {array.shape}", f"{one.rows} x {one.columns}")
    return array


def _apart(decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Decode in a process of its own, which may crash or hang over a damaged code stream.

    Raises
    ------
    ValueError
        It did, or it could not decode.
    """
    import resource

    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print what they like
            buffer = io.BytesIO()
            np.save(buffer, decode(), allow_pickle=False)
            with open(send, "wb") as pipe:
                pipe.write(buffer.getbuffer())
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with open(receive, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise ValueError("the decoder failed")
    array: NDArray[Any] = np.load(io.BytesIO(data))
    return array


def _check_frame(one: Slice, data: bytes, dataset: Dataset, syntax: str) -> None:
    """Refuse a compressed frame that would grow beyond what the header says."""
    from pydicom import dcmread
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    if "PixelData" not in dataset:
        raise BadFile(one.file, "has pixels that do not decode: the file ends before they do")
    # Elements behind the pixels are read only now, and may repeat some of the header.
    before = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_TAGS)
    if any(before.get_item(tag) != dataset.get_item(tag) for tag in _TAGS):
        raise _refuse(one.file, "elements of the header lie behind the pixels", "only before")
    if syntax in (*_NATIVE, _DEFLATED):
        return
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    pixels = one.rows * one.columns
    if syntax == RLELossless:
        # A header of 64 bytes, and a segment for each byte of a pixel (PS3.5 annex G).
        ends = [int(n) for n in np.frombuffer(frame[:64], "<u4")[1:]]
        segments = np.dtype(one.dtype).itemsize
        longest = max(np.diff([*ends[:segments], len(frame)]))
        if pixels > MOST_RLE_PIXELS or longest > 1.02 * pixels + 64:
            raise _too_large(one.file, f"RLE of {pixels} pixels", f"{MOST_RLE_PIXELS} pixels")
        return
    claimed = _codestream_shape(frame)
    if claimed != (one.rows, one.columns, 1):
        raise _refuse(one.file, f"a code stream of {claimed}", f"{(one.rows, one.columns, 1)}")


def _codestream_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components that a JPEG, JPEG-LS or JPEG 2000 code stream claims.

    JPEG: SOF markers of ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2. JPEG 2000: the SIZ marker of
    ISO/IEC 15444-1 A.5.1.
    """

    def number(at: int, width: int) -> int:
        return int.from_bytes(frame[at : at + width], "big")

    if frame[:4] == b"\xff\x4f\xff\x51":
        rows, columns = number(12, 4) - number(20, 4), number(8, 4) - number(16, 4)
        return rows, columns, number(40, 2)
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return number(at + 5, 2), number(at + 7, 2), number(at + 9, 1)
        else:
            at += 2 + number(at + 2, 2)
    return None


def read_sample(root: str, one: Slice) -> Sample:
    """Read a few pixels of a slice, HU rounded, for the anatomy check.

    Returns
    -------
    ndarray of int16, shape (about 64, about 64)
    """
    if one.pixel_offset is None:
        return sample_of(read_pixels(root, one), one)
    down, right = sample_steps(one.rows, one.columns)
    width = np.dtype(one.dtype).itemsize * one.columns
    rows = range(0, one.rows, down)
    with _unchanged(root, one) as stream:
        raw = b"".join(
            _bytes_at(stream, one, one.pixel_offset + row * width, width) for row in rows
        )
    flat = _without_unused_bits(np.frombuffer(raw, one.dtype), one.bits_stored)
    few = flat.reshape(len(rows), one.columns)[:, ::right]
    return _rounded(to_hu(_padding_to_air(few, one), one))


def sample_of(stored: NDArray[np.float32], one: Slice) -> Sample:
    """Return the same few pixels of an image that was read as `read_sample` reads."""
    down, right = sample_steps(one.rows, one.columns)
    return _rounded(to_hu(stored[::down, ::right], one))


def _rounded(hu: NDArray[np.float32]) -> Sample:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def to_hu(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    """Return stored values in HU: slope x value + intercept (PS3.3 C.11.1.1.2), float32."""
    return _to_hu_in_place(stored.copy(), one)


def _to_hu_in_place(stored: NDArray[np.float32], one: Slice) -> NDArray[np.float32]:
    if one.slope != 1:
        stored *= np.float32(one.slope)
    stored += np.float32(one.intercept)
    return stored


class Reader:
    """Reads the images of one pair, each at most once.

    Parameters
    ----------
    root : str
        The input folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.images: dict[str, NDArray[np.float32]] = {}

    def stored(self, one: Slice) -> NDArray[np.float32]:
        """Return the stored values of a slice."""
        if one.file not in self.images:
            self.images[one.file] = read_pixels(self.root, one)
        return self.images[one.file]

    def hu(self, one: Slice) -> NDArray[np.float32]:
        """Return a slice in HU."""
        return to_hu(self.stored(one), one)

    def last_hu(self, one: Slice) -> NDArray[np.float32]:
        """Return a slice in HU, as the last of the pair: no image is kept."""
        stored = self.stored(one)
        self.images.clear()
        return _to_hu_in_place(stored, one)

    def sample(self, one: Slice) -> Sample:
        """Return the few pixels of a slice that the anatomy check looks at."""
        if one.file in self.images:
            return sample_of(self.images[one.file], one)
        return read_sample(self.root, one)
