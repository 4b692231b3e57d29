"""Decoding compressed and Deflated slices, and limits that hold before anything is decoded."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.fast_header import EXPLICIT_LITTLE, TAGS
from pipeline.dicom.slice_file import MAX_FILE_BYTES, BadFile, refusal, too_large
from pipeline.model import Slice
from utils import printable

if TYPE_CHECKING:
    from pydicom import Dataset

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG)
#: JPEG Baseline, JPEG Extended, JPEG-LS Near-lossless, JPEG 2000 and High-Throughput JPEG 2000: all
#: that need not be lossless, of those that can be decoded (PS3.6 table A-1).
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
#: RLE can grow 64-fold before its length is known.
MAX_RLE_PIXELS = 2048 * 2048
#: Which decoder reads a compressed slice, the first that can: always the same one, wherever others
#: are installed too.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "gdcm")
#: Those that end the whole process over some damaged code streams.
_FRAGILE = ("gdcm",)
#: Processor time that such a one may take for a slice.
MAX_CPU_S = 20


def check_decoder(file: str, syntax: str) -> None:
    """Refuse a transfer syntax that cannot be decoded here, before any work is done."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        available = get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        available = False
    if not available:
        name = UID(syntax).name if syntax else "missing"
        raise refusal(
            file,
            f"transfer syntax {printable(name[:64])}, which no decoder reads",
            "install requirements.txt",
        )


def check_inflated(file: str, data: bytes) -> None:
    """Refuse a Deflated file that would grow beyond the limit, without letting it."""
    if DEFLATED.encode() not in data:
        return
    from pydicom.filereader import read_dataset, read_preamble

    # Where pydicom itself begins to inflate: the length that File Meta Information gives may lie.
    stream = io.BytesIO(data)
    read_preamble(stream, False)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    zipped = data[stream.tell() :]
    if len(inflater.decompress(zipped, MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
        raise too_large(file, "the inflated data set", f"{MAX_FILE_BYTES} bytes")
    if not inflater.eof or zipped.startswith(b"\0\0"):  # group 0000, which pydicom would skip
        raise ValueError("cut short")


def decode(data: bytes, one: Slice) -> NDArray[Any]:
    """Decode a compressed or Deflated slice, given its file."""
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_inflated(one.file, data)
            dataset = dcmread(io.BytesIO(data))
            syntax = dataset.file_meta.TransferSyntaxUID
            _check_frame(one, data, dataset, syntax)
            decoder = get_decoder(syntax)
            plugin = next((p for p in _DECODERS if p in decoder.available_plugins), "")

            def decode() -> NDArray[Any]:
                return decoder.as_array(dataset, decoding_plugin=plugin)[0]

            array = _decode_in_subprocess(decode) if plugin in _FRAGILE else decode()
    except BadFile:
        raise
    except Exception as error:  # decoders raise what they like
        raise BadFile(one.file, f"has pixels that do not decode ({type(error).__name__})") from None
    if array.shape != (one.rows, one.columns):
        raise refusal(one.file, f"pixels of shape {array.shape}", f"{one.rows} x {one.columns}")
    return array


def _decode_in_subprocess(decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Decode in a subprocess, which may crash or hang over a damaged code stream.

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
            resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
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
    before = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=TAGS)
    if any(before.get_item(tag) != dataset.get_item(tag) for tag in TAGS):
        raise refusal(one.file, "elements of the header lie behind the pixels", "only before")
    if syntax in (*NATIVE, DEFLATED):
        return
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    pixels = one.rows * one.columns
    if syntax == RLELossless:
        # A header of 64 bytes, and a segment for each byte of a pixel (PS3.5 annex G).
        ends = [int(n) for n in np.frombuffer(frame[:64], "<u4")[1:]]
        segments = np.dtype(one.dtype).itemsize
        longest = max(np.diff([*ends[:segments], len(frame)]))
        if pixels > MAX_RLE_PIXELS or longest > 1.02 * pixels + 64:
            raise too_large(one.file, f"RLE of {pixels} pixels", f"{MAX_RLE_PIXELS} pixels")
        return
    claimed = _codestream_shape(frame)
    if claimed != (one.rows, one.columns, 1):
        raise refusal(one.file, f"a code stream of {claimed}", f"{(one.rows, one.columns, 1)}")


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
