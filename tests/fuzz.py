"""Feeds damaged bytes to the DICOM reader and nonsense to the command line: `fuzz.py --minutes 10`.

Whatever the bytes, the answer must be a result or one of the tool's own errors (`utils.ToolError`)
within `SECONDS` and `MOST_BYTES`. The target runs in a child process, so that a decoder that
crashes or hangs is found too. Inputs are real files of every transfer syntax, mutated; with
`--engine atheris` (pip install atheris) coverage guides the mutations. What is found is kept in
--findings; `fuzz.py --replay FILE` runs one of these files again.

`fuzz.py --headers 20000` mutates headers instead and compares with pydicom: where both accept a
file, all values and pixels must be equal; what pydicom rejects must be rejected.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pydicom.data
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.pixels.decoders import base as pydicom_decoders
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ctpatches.dicom import compressed, fast_header, header, pixels
from ctpatches.dicom.slice_file import Slice
from ctpatches.messages import ToolError
from pipeline import command_line
from pipeline.cohort.pairing import pair_slices
from pipeline.cohort.patients import Patient
from pipeline.config import Config
from tests.jpeg_lossless import compress
from tests.scans import phantom, write_slice

SECONDS = 10
#: Inputs that are kept when a child dies: a decoder may have spoiled its memory some time before.
LAST = 200
MOST_BYTES = 1 << 30
#: What the address space of the child is limited to: far above MOST_BYTES, to spare the machine.
ADDRESS_SPACE = 6 << 30
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
#: Samples that come with pydicom, in syntaxes that nothing here writes.
SAMPLES = (
    *("JPGExtended.dcm", "JPEG-lossy.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm"),
    *("JPEGLSNearLossless_08.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"),
    *("693_J2KI.dcm", "CT_small.dcm", "nested_priv_SQ.dcm", "UN_sequence.dcm", "MR_truncated.dcm"),
)
#: Real scans, where they are.
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ldct"
NUMBERS = (0, 1, 2, 7, 8, 16, 64, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 40000, 65535)

# --- what is fed in --------------------------------------------------------------------------


def seeds(folder: Path) -> list[bytes]:
    """Return whole files of every transfer syntax, each of one CT slice."""
    image = phantom((40, 36), 1)[1]
    out = []
    for syntax in SYNTAXES:
        for stored in (image, (image.astype(int) - 1024).astype("<i2"), (image >> 4).astype("u1")):
            path = write_slice(folder / "seed.dcm", stored, syntax=syntax, PixelPaddingValue=3)
            out.append(path.read_bytes())
    path = write_slice(folder / "seed.dcm", image)
    out.append(compress(path, JPEGLosslessSV1).read_bytes())
    for name in SAMPLES:
        sample = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / name)
        sample.Modality, sample.RescaleSlope, sample.RescaleIntercept = "CT", 1, -1024
        sample.save_as(folder / "seed.dcm")
        out.append((folder / "seed.dcm").read_bytes())
    return out


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return bytes that differ in a few places, often in the pixels or in a field of the header."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        where = rng.randrange(len(out) + 1)
        kind = rng.randrange(10)
        if kind < 2:  # what the decoders see
            start = max(out.rfind(b"\xe0\x7f\x10\0"), 0)
            where = rng.randrange(start, min(start + 300, len(out)) + 1)
        elif kind < 5:  # what the header says
            tags = [m.start() for m in re.finditer(rb"(?s)[\x08\x18\x20\x28]\0..[A-Z]{2}", out)]
            where = rng.choice(tags or [where]) + rng.randrange(12)
        length = rng.choice((1, 1, 1, 2, 4, 16, 200))
        width = rng.choice((1, 2, 4))
        number = rng.choice((*NUMBERS, rng.getrandbits(32)))
        other = rng.choice(others)
        start = rng.randrange(len(other))
        change = rng.randrange(8)
        if change == 0 and where < len(out):
            out[where] ^= 1 << rng.randrange(8)
        elif change <= 2:
            order = rng.choice(("little", "big"))
            out[where : where + width] = (number % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
        elif change == 3:
            del out[where : where + length]
        elif change == 4:
            out[where:where] = out[where : where + length] * rng.choice((1, 2, 50))
        elif change == 5:
            out[where : where + length] = other[start : start + length]
        elif change == 6:
            out[where:where] = other[start : start + length]
        elif rng.randrange(4) == 0:
            del out[where:]
    return bytes(out)


# --- headers ---------------------------------------------------------------------------------

#: Values that parsers may read in different ways.
VALUES = (
    *(b"", b" ", b"\0", b"1", b" 1", b"1 ", b"1\0", b"+1", b"-1", b"1.", b".5", b"1.0", b"1e0"),
    *(b"1E+2", b"1_0", b"0x1", b"nan", b"inf", b"1\\2", b"1\\", b"\\1", b"\\", b"1 2", b"\t1"),
    *(b"1\n", b"--1", b"CT", b"ct", b" CT", b"CT\0", b"CT\\MR", b"0\\0\\0", b"1\\0\\0\\0\\1\\0"),
    *(b"\xe9", b"\x1b$B", b"\xb2", b"\xd9\xa3", b"999999999999", b"1" * 17, b"ISO_IR 192"),
    *(b"ISO 2022 IR 87", b"ISO_IR 13", b"UTF-8", b"\0\0", b"\1\0", b"\2\0", b"\x10\0"),
    *(b"\xff\xff", b"\0\0\0\0", bytes(8), b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"),
    *(b"1.2.840.10008.1.2.1 ", b"1.2.840.10008.1.2.2", b"MONOCHROME1", b"00", b"01"),
)
VRS = (*sorted(STANDARD_VR), "ZZ", "zz", "\0\0")
#: Elements to put in: what the tool reads, and what parsers treat in a way of its own.
TAGS = (
    *(int(tag_for_keyword(name) or 0) for name in fast_header.TAGS),
    *(0x00000000, 0x00020000, 0x00020010, 0x00080001, 0x00080005, 0x00090010, 0x00280006),
    *(0x00280106, 0x7FE00001, 0x7FE00008, 0x7FE00009, 0x7FE00010, 0x7FE10010, 0xFFFCFFFC),
    *(0xFFFEE000, 0xFFFEE00D),
)


class Element(NamedTuple):
    """An element of an Explicit VR Little Endian file."""

    tag: int
    vr: str
    value: bytes

    def encoded(self, lie: int = 0) -> bytes:
        """Return its bytes; `lie` is added to its length."""
        head = struct.pack("<HH2s", self.tag >> 16, self.tag & 0xFFFF, self.vr.encode("latin1"))
        length = (len(self.value) + lie) % (1 << 32)
        if self.vr in EXPLICIT_VR_LENGTH_32:
            return head + struct.pack("<HL", 0, length) + self.value
        return head + struct.pack("<H", length & 0xFFFF) + self.value


def elements_of(data: bytes) -> tuple[list[Element], bytes]:
    """Return the elements of an Explicit VR Little Endian file, and what no such element begins.

    That is compressed pixels; in a file of another encoding all behind the File Meta Information.
    """
    out, at = [], 132
    while at + 8 <= len(data):
        group, number, raw, length = struct.unpack_from("<HH2sH", data, at)
        vr, start = raw.decode("latin1"), at + 8
        if vr in EXPLICIT_VR_LENGTH_32:
            (length,), start = struct.unpack_from("<L", data, start), start + 4
        if not vr.isalpha() or start + length > len(data):
            break
        out.append(Element(group << 16 | number, vr, data[start : start + length]))
        at = start + length
    return out, data[at:]


def mutate_header(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a file with a few elements of its header changed, moved, removed or put in."""
    elements, rest = elements_of(data)
    if rng.randrange(8) == 0:
        return mutate(data, others, rng)
    parts = [one.encoded() for one in elements]
    read = [i for i, one in enumerate(elements) if one.tag in TAGS]
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.choice((rng.choice(read or [0]), rng.randrange(len(elements))))
        one, where = elements[i], rng.choice((rng.randrange(len(parts)), len(parts)))
        other = Element(rng.choice(TAGS), rng.choice(VRS), rng.choice(VALUES))
        change = rng.randrange(11)
        if change == 0:  # another value
            parts[i] = one._replace(value=other.value).encoded()
        elif change == 1:  # another padding
            padding = rng.choice((b" ", b"\0", b"  ", b" \0", b"\0\0", b"\0 "))
            value = rng.choice((padding + one.value, one.value + padding, one.value.strip(b" \0")))
            parts[i] = one._replace(value=value).encoded()
        elif change == 2:
            parts[i] = one._replace(vr=other.vr).encoded()
        elif change == 3:
            parts[i] = one.encoded(lie=rng.choice((-2, -1, 1, 2, 4, 100, 0xFFFF, 0xFFFFFFFF)))
        elif change == 4:
            parts[i] = b""
        elif change == 5:  # the same element again, anywhere, often behind the pixels
            parts.insert(where, parts[i])
        elif change == 6:  # and with another value
            parts.insert(where, one._replace(value=other.value).encoded())
        elif change == 7:
            j = rng.randrange(len(elements))
            parts[i], parts[j] = parts[j], parts[i]
        elif change == 8:
            parts.insert(where, other.encoded())
        elif change == 9:  # the length of the File Meta Information
            length = rng.choice((0, 4, 26, 100, 192, 400, 0xFFFFFFFF, rng.randrange(1000)))
            parts[0] = Element(0x00020000, "UL", struct.pack("<L", length)).encoded()
        else:
            position = rng.randrange(len(parts[i]) or 1)
            flipped = bytearray(parts[i] or b"\0")
            flipped[position] ^= 1 << rng.randrange(8)
            parts[i] = bytes(flipped)
    out = data[:132] + b"".join(parts) + rest
    return out[: rng.randrange(len(out))] if rng.randrange(40) == 0 else out


WORDS = (
    "",
    "-",
    "--",
    "=",
    "p55",
    "p0",
    "p9999",
    "-1",
    "1e308",
    "nan",
    "0x1",
    "é\n",
    "\udcff",
    "٣",
)


def arguments(rng: random.Random) -> list[str]:
    """Return a command line of options that exist, options that do not, and nonsense."""
    options = [n for action in command_line.build_parser()._actions for n in action.option_strings]
    out = []
    for _ in range(rng.randrange(12)):
        word = rng.choice((*options, *options, *WORDS, str(rng.choice(NUMBERS))))
        if rng.randrange(4) == 0:
            word = "".join(
                chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in word
            )
        if rng.randrange(4) == 0:
            word += "=" + rng.choice(WORDS)
        out.append(word)
    return out


# --- what must hold --------------------------------------------------------------------------


def read_file(data: bytes, folder: Path) -> str:
    """Read a file as a run does; return how far that came."""
    (folder / "slice.dcm").write_bytes(data)
    reached = "refused"
    try:
        one = header.read_slice(str(folder), "slice.dcm")
        for twins in ([one], [one, one]):
            pair_slices(Patient("P"), twins, twins)
        reached = "header"
        image = pixels.read_hu(str(folder), one)
    except ToolError as error:
        if len(str(error)) > 2000:
            raise ValueError("a message that nobody reads") from error
        return reached
    assert image.shape == (one.rows, one.columns)
    assert np.isfinite(image).all(), "not finite"
    return "pixels"


def header_seeds(folder: Path) -> list[bytes]:
    """Return whole files, half of them uncompressed ones with the header of a real scanner."""
    out = seeds(folder)
    real = [path.read_bytes() for path in sorted(REAL.glob("L*/*/*"))[::6]]
    scanner = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    return [*out, *(real or [Path(str(scanner)).read_bytes()]) * (len(out) // max(1, len(real)))]


def by_pydicom(data: bytes, one: Slice) -> tuple[Slice, NDArray[Any]]:
    """Return what pydicom reads from the whole file: the header, and the pixels as stored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO(data)
        pydicom.dcmread(stream, stop_before_pixels=True)
        dataset = pydicom.dcmread(io.BytesIO(data))
        at, syntax = stream.tell(), str(dataset.file_meta.TransferSyntaxUID)
        expected = header._slice_in(dataset, syntax, at, one.file, data, one.stamp)
        plugins = pydicom_decoders.get_decoder(UID(syntax)).available_plugins
        plugin = next((name for name in compressed._DECODERS if name in plugins), "")
        dataset.pixel_array_options(decoding_plugin=plugin)
        stored = dataset.pixel_array
    # In uncompressed pixels, bits above those stored may be an overlay.
    bits = 8 * stored.dtype.itemsize - one.bits_stored if one.pixel_offset else 0
    return expected, (stored << bits) >> bits


def compare_with_pydicom(data: bytes, folder: Path) -> str:
    """Read a file with the tool and with pydicom; return whether the tool accepted it.

    Raises
    ------
    AssertionError
        It did, and pydicom reads something else, or rejects it.
    """
    (folder / "slice.dcm").write_bytes(data)
    try:
        one = header.read_slice(str(folder), "slice.dcm")
        found = pixels.read_pixels(str(folder), dataclasses.replace(one, padding=None))
    except ToolError:
        return "rejected"
    try:
        expected, stored = by_pydicom(data, one)
    except Exception as error:
        raise AssertionError(f"pydicom rejects it: {type(error).__name__}: {error}") from error
    different = [
        field.name
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(expected, field.name)
    ]
    assert not different, f"differs from pydicom: {', '.join(different)}"
    np.testing.assert_array_equal(found, stored)
    return "accepted"


def compare_headers(
    number: int, seed: int, folder: Path, findings: Path | None = None
) -> dict[str, int]:
    """Compare so many mutated headers with pydicom; return how many were accepted and rejected.

    Raises
    ------
    AssertionError
        For the first difference, unless there is a folder for findings.
    """
    rng = random.Random(seed)
    corpus = header_seeds(folder)
    counts: dict[str, int] = {}
    for _ in range(number):
        data = mutate_header(rng.choice(corpus), corpus, rng)
        try:
            kind = compare_with_pydicom(data, folder)
        except Exception as error:
            if findings is None:
                raise
            kind = f"FOUND {type(error).__name__} {str(error).strip()[:200]}"
            (findings / f"found_{counts.get(kind, 0)}_{zlib.crc32(kind.encode())}").write_bytes(
                data
            )
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def read_command_line(argv: list[str]) -> str:
    """Parse a command line; return whether it was taken."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config = command_line.parse(argv)
            for field in dataclasses.fields(config) if isinstance(config, Config) else ():
                value = getattr(config, field.name)
                assert not isinstance(value, list), field.name
        except ToolError:
            return "refused"
        except SystemExit as leaving:  # --help and --version
            if leaving.code:
                raise ValueError("an exit with a status of its own") from leaving
    return "command line"


class Watch:
    """Runs the target, and keeps what should not have happened; an input of each kind."""

    def __init__(self, findings: Path) -> None:
        self.findings = findings
        self.folder = Path(os.environ["FUZZ_FOLDER"])
        self.counts: dict[str, int] = {}
        self.started = time.monotonic()

    def run(self, target: Callable[[], str], data: bytes) -> None:
        """Run the target once; `data` is what to keep of its input."""
        number = self.counts.get("inputs", 0) % LAST
        (self.folder / f"last_{number:04}").write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of memory
        # Its default action ends the process, even inside of a decoder. Of processor time: the disk
        # of a busy machine may take its time.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                kind = target()
            ours = [w for w in warned if "/site-packages/" not in w.filename]
            if ours:
                self.keep(f"warning {ours[0].message}", data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{Path(frames[-1].filename).name}-{frames[-1].lineno}"
            kind = self.keep(f"{type(error).__name__} {place}", data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
        if peak > MOST_BYTES:
            kind = self.keep("memory", data)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.counts["inputs"] = self.counts.get("inputs", 0) + 1
        if self.counts["inputs"] % 200 == 0:
            self.report()

    def keep(self, kind: str, data: bytes) -> str:
        name = re.sub(r"\W+", "_", kind)[:80]
        path = self.findings / f"found_{name}"
        if not path.exists():
            path.write_bytes(data)
        return f"FOUND {kind}"

    def report(self) -> None:
        lines = "".join(f"{kind}\t{number}\n" for kind, number in self.counts.items())
        (self.findings / f"counts.{os.getpid()}").write_text(lines)


def own_engine(watch: Watch, seed: int, until: float) -> None:
    """Mutate at random until the time is over."""
    rng = random.Random(seed)
    corpus = seeds(watch.folder)
    while time.monotonic() - watch.started < until:
        if rng.randrange(10):
            data = mutate(rng.choice(corpus), corpus, rng)
            watch.run(lambda data=data: read_file(data, watch.folder), data)  # type: ignore[misc]
        else:
            argv = arguments(rng)
            told = repr(argv).encode()
            watch.run(lambda argv=argv: read_command_line(argv), told)  # type: ignore[misc]
    watch.report()


def atheris_engine(watch: Watch, seed: int, until: float) -> None:
    """Let libFuzzer choose by coverage what to mutate further."""
    atheris: Any = importlib.import_module("atheris")
    corpus = seeds(watch.folder)
    kept = watch.findings / "corpus"
    kept.mkdir(exist_ok=True)
    for number, data in enumerate(corpus):
        (kept / f"seed_{number}").write_bytes(data)
    for module in (header, compressed, pixels, pydicom.filereader, pydicom_decoders):
        for name, value in vars(module).items():
            if type(value).__name__ == "function" and value.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(value))

    def mutator(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.randrange(3) == 0:
            return bytes(atheris.Mutate(data, most))
        return mutate(data or corpus[0], corpus, rng)[:most]

    def target(data: bytes) -> None:
        watch.run(lambda: read_file(data, watch.folder), data)

    options = [
        f"-seed={seed + 1}",
        f"-max_total_time={until:.0f}",
        "-max_len=400000",
        "-rss_limit_mb=0",
    ]
    options += [
        "-timeout=0",
        "-handle_alrm=0",
        "-handle_segv=0",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(kept)], target, custom_mutator=mutator)
    atheris.Fuzz()


def child(arguments: Any) -> None:
    """Run one engine under limits until the time is over or the process dies."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    engine = {"own": own_engine, "atheris": atheris_engine}[arguments.engine]
    engine(Watch(arguments.findings), arguments.seed, 60 * arguments.minutes)


def replay(path: Path) -> None:
    """Run one kept input again, without any net."""
    data = path.read_bytes()
    if data.startswith(b"["):
        print(read_command_line(ast.literal_eval(data.decode())))
    else:
        print(read_file(data, Path(tempfile.mkdtemp())))


def supervise(arguments: Any) -> int:
    """Start children until the time is over; return the number of findings."""
    arguments.findings.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    while (left := ends - time.monotonic()) > 1:
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        how = [f"--engine={arguments.engine}", f"--seed={seed}", f"--findings={arguments.findings}"]
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", f"--minutes={left / 60}", *how],
            stdout=subprocess.DEVNULL,
            stderr=None if arguments.loud else subprocess.DEVNULL,
            env={**os.environ, "FUZZ_FOLDER": str(folder)},
        )
        try:
            status = process.wait(left + 3 * SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        seed += 1
        if status:
            shutil.copytree(folder, arguments.findings / f"found_end_{-status}_{seed}")
        shutil.rmtree(folder)
    total: dict[str, int] = {}
    for path in arguments.findings.glob("counts.*"):
        for line in path.read_text().splitlines():
            kind, number = line.split("\t")
            total[kind] = total.get(kind, 0) + int(number)
    found = sorted(path.name for path in arguments.findings.glob("found_*"))
    print(f"{arguments.engine}: {total.pop('inputs', 0)} inputs ({total}), {len(found)} findings")
    for name in found:
        print(f"  {name}")
    return len(found)


def parsed() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("--loud", action="store_true", help="show what the children say")
    parser.add_argument("--headers", type=int, help="compare so many headers with pydicom")
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    told = parsed()
    if told.headers:
        told.findings.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            counts = compare_headers(told.headers, told.seed, Path(folder), told.findings)
        for kind, number in sorted(counts.items()):
            print(f"{number:8} {kind}")
        sys.exit(any(kind.startswith("FOUND") for kind in counts))
    if told.replay:
        replay(told.replay)
    elif told.child:
        child(told)
    else:
        sys.exit(supervise(told) > 0)
