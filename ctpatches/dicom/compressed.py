"""Decoding compressed and Deflated slices, and limits that hold before anything is decoded."""

from __future__ import annotations

import io
import mmap
import os
import resource
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID, RLELossless

from ctpatches.dicom.fast_header import DEFLATED, NATIVE, TAGS
from ctpatches.dicom.slice_file import MAX_FILE_BYTES, BadFile, Slice, parsing, require
from ctpatches.messages import printable

#: RLE can grow 64-fold before its length is known.
MAX_RLE_PIXELS = 2048 * 2048
#: Which decoder reads a compressed slice, the first that can: always the same one, wherever others
#: are installed too.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "gdcm")
#: The decoder that ends the whole process over some damaged code streams, and the processor time
#: that it may use for a slice.
_FRAGILE = "gdcm"
MAX_CPU_S = 20


def read_header(data: bytes, tags: list[str] | None = TAGS) -> tuple[Dataset, UID, int]:
    """Return a header, its transfer syntax, and where it ends, from the first bytes of a file.

    `tags` None reads all elements.
    """
    stream = io.BytesIO(data)
    try:
        _check_inflated(data)
        dataset = dcmread(stream, stop_before_pixels=True, specific_tags=tags)
    except InvalidDicomError:
        raise BadFile("is not a DICOM file; expected: a CT slice") from None
    return dataset, UID(dataset.file_meta.get("TransferSyntaxUID", "")), stream.tell()


def check_decoder(syntax: UID) -> None:
    """Refuse a transfer syntax that cannot be decoded here, before any work is done."""
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    name = printable(syntax.name[:64] if syntax else "missing")
    found = f"transfer syntax {name}, which no decoder reads"
    require(available, found, "install requirements.txt")


def _check_inflated(data: bytes) -> None:
    """Refuse a Deflated file that would grow beyond the limit, without inflating all of it."""
    if DEFLATED.encode() not in data:
        return
    # Where pydicom itself begins to inflate: the length that File Meta Information gives may lie.
    stream = io.BytesIO(data)
    read_preamble(stream, False)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    zipped = data[stream.tell() :]
    fits = len(inflater.decompress(zipped, MAX_FILE_BYTES + 1)) <= MAX_FILE_BYTES
    require(fits, "the inflated data set exceeds the limit", f"at most {MAX_FILE_BYTES} bytes")
    if not inflater.eof or zipped.startswith(b"\0\0"):  # group 0000, which pydicom would skip
        raise ValueError("cut short")


def decode(data: bytes, one: Slice) -> NDArray[Any]:
    """Decode a compressed or Deflated slice, given its file."""
    with parsing(one.file, "has pixels that do not decode"):
        before, syntax, _ = read_header(data)
        dataset = dcmread(io.BytesIO(data))
        if "PixelData" not in dataset:
            raise BadFile("has pixels that do not decode: the file ends before they do")
        # Elements behind the pixels are read only now, and may repeat some of the header.
        same = all(before.get_item(tag) == dataset.get_item(tag) for tag in TAGS)
        require(same, "elements of the header lie behind the pixels", "only before")
        if syntax not in (*NATIVE, DEFLATED):
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
            _check_frame(one, frame, syntax)
        decoder = get_decoder(syntax)
        plugin = next((p for p in _DECODERS if p in decoder.available_plugins), "")
        if plugin == _FRAGILE:
            array = _decode_in_subprocess(one, dataset, decoder)
        else:
            array, _ = decoder.as_array(dataset, decoding_plugin=plugin)
        fits = array.shape == (one.rows, one.columns)
        require(fits, f"pixels of shape {array.shape}", f"{one.rows} x {one.columns}")
    return array


def _decode_in_subprocess(one: Slice, dataset: Dataset, decoder: Decoder) -> NDArray[Any]:
    """Decode in a subprocess, which may crash or hang over a damaged code stream."""
    memory = mmap.mmap(-1, one.rows * one.columns * np.dtype(one.dtype).itemsize)
    array = np.frombuffer(memory, one.dtype).reshape(one.rows, one.columns)
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print what they like
            decoded, _ = decoder.as_array(dataset, decoding_plugin=_FRAGILE)
            np.copyto(array, decoded, casting="no")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        raise ValueError("the decoder failed")
    return array


def _check_frame(one: Slice, frame: bytes, syntax: str) -> None:
    """Refuse a compressed frame that is larger than the header says."""
    if syntax == RLELossless:
        # A header of 64 bytes, and a segment for each byte of a pixel (PS3.5 annex G).
        pixels = one.rows * one.columns
        ends = [int(n) for n in np.frombuffer(frame[:64], "<u4")[1:]]
        longest = max(np.diff([*ends[: np.dtype(one.dtype).itemsize], len(frame)]))
        small = pixels <= MAX_RLE_PIXELS and longest <= 1.02 * pixels + 64
        require(small, f"RLE of {pixels} pixels exceeds the limit", f"at most {MAX_RLE_PIXELS}")
    else:
        found, expected = _codestream_shape(frame), (one.rows, one.columns, 1)
        require(found == expected, f"a code stream of {found}", expected)


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
