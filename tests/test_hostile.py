"""Files that were made to do harm, and names that were not thought of."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ctpatches.dicom import header, pixels
from ctpatches.messages import ToolError
from pipeline import command_line
from pipeline.report import figures
from tests.faults import EARLIER, argv, command, kept, left, one_error
from tests.jpeg_lossless import compress
from tests.running import Ended, called, environment
from tests.scans import SHAPE, phantom, write_patient, write_slice, write_tree

#: Bytes of memory that no file may make a run take.
MOST_BYTES = 1 << 30
HANG = 60
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def limited(words: list[str], cwd: Path) -> Ended:
    """Run a command that may not have more than the bounded memory, and not hang."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    out, _, peak = measured.stdout.decode().rpartition("peak ")
    assert int(peak) * 1024 < MOST_BYTES, f"{int(peak) >> 10} MB"
    return Ended(measured.returncode, out, measured.stderr.decode())


_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""

# --- bombs -----------------------------------------------------------------------------------


def recompressed(path: Path, syntax: str, frame: bytes | None = None, **tags: object) -> None:
    """Compress a slice, and replace its frame by another one."""
    dataset = pydicom.dcmread(path)
    if syntax == JPEGLosslessSV1:
        compress(path, JPEGLosslessSV1)
        dataset = pydicom.dcmread(path)
    else:
        dataset.compress(syntax)
    if frame is not None:
        dataset.PixelData = encapsulate([frame])
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def frame_of(path: Path, syntax: str) -> bytes:
    """Return the frame that a slice is compressed to."""
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    return next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))


def rle_of_many(path: Path) -> None:
    recompressed(path, RLELossless, Rows=40000, Columns=40000)


def rle_that_grows(path: Path) -> None:
    segment = b"\x81\0" * (4 << 20)  # each two bytes become 128
    head = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13)
    for side in (path, path.parents[1] / "full_3mm" / path.name):  # of one size, or no pair
        recompressed(side, RLELossless, head + 2 * segment, Rows=2048, Columns=2048)


def deflated(path: Path, *, lie: bool = False, late: bool = False) -> None:
    """Make a file of some 600 kB that would inflate to 1.2 GB."""
    write_slice(path, phantom(SHAPE, 1)[0], syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    meta = bytearray(data[:start])
    if lie:  # the length of the meta information
        meta[140:144] = (4).to_bytes(4, "little")
    if late:  # the transfer syntax is named only after a long element
        meta[144:144] = b"\2\0\1\0OB\0\0" + (5000).to_bytes(4, "little") + bytes(5000)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS)[:200])
    head = b"\x29\0\1\0OB\0\0" + (1200 << 20).to_bytes(4, "little")
    packed += packer.compress(head)
    packed += packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(bytes(meta) + packed + 1200 * zeros + packer.flush())


def deflated_behind_commands(path: Path) -> None:
    """Let the inflated part begin where only elements of group 0000 are skipped."""
    deflated(path)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[:start] + b"\0\0\0\xff\xff\0\0\0" + data[start:])


def codestream(path: Path, syntax: str, find: bytes, at: int, change: bytes) -> None:
    """Overwrite bytes of a frame behind a marker."""
    if syntax == JPEGLosslessSV1:
        compress(path, JPEGLosslessSV1)
        dataset = pydicom.dcmread(path)
        frame = bytearray(
            next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        )
    else:
        frame = bytearray(frame_of(path, syntax))
    where = frame.index(find) + at
    frame[where : where + len(change)] = change
    if syntax == JPEGLosslessSV1:
        dataset.PixelData = encapsulate([bytes(frame)])
        dataset.save_as(path)
    else:
        recompressed(path, syntax, bytes(frame))


LARGE = struct.pack(">HH", 40000, 40000)
#: How a slice is turned into a bomb.
BOMBS: dict[str, Callable[[Path], object]] = {
    "native 40000 x 40000": lambda p: write_slice(
        p, phantom(SHAPE, 1)[0], Rows=40000, Columns=40000
    ),
    "RLE 40000 x 40000": rle_of_many,
    "RLE that grows": rle_that_grows,
    "Deflated": deflated,
    "Deflated, its meta length lies": lambda p: deflated(p, lie=True),
    "Deflated, syntax far behind": lambda p: deflated(p, late=True),
    "Deflated, behind commands": deflated_behind_commands,
    "JPEG-LS 40000 x 40000": lambda p: codestream(p, JPEGLSLossless, b"\xff\xf7", 5, LARGE),
    "JPEG 40000 x 40000": lambda p: codestream(p, JPEGLosslessSV1, b"\xff\xc3", 5, LARGE),
    "JPEG 2000 40000 x 40000": lambda p: codestream(
        p, JPEG2000Lossless, b"\xff\x51", 6, struct.pack(">LL", 40000, 40000)
    ),
    "JPEG 2000 of 16384 components": lambda p: codestream(
        p, JPEG2000Lossless, b"\xff\x51", 38, struct.pack(">H", 16384)
    ),
    "a file of a gigabyte": lambda p: os.truncate(p, 1 << 30),
}
#: Of these the message says that they exceed the limit; of the others, what does not fit.
TOO_LARGE = re.compile("exceeds the limit|code stream of|damaged header")


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path, output, kind):
    pairs = write_patient(tmp_path / "scans", "A", 2)
    BOMBS[kind](tmp_path / "scans" / pairs[1].input_file)
    ended = limited(command(0, argv(tmp_path / "scans", output, "--overwrite")), tmp_path)
    assert TOO_LARGE.search(one_error(ended, pairs[1].input_file, status=1))
    assert output.read_bytes() == EARLIER
    assert left(output.parent) == {output.name}


def nested(path: Path, depth: int, undefined: bool) -> None:
    """Write a slice with a Modality LUT Sequence of that depth before its pixels."""
    write_slice(path, phantom(SHAPE, 1)[0])
    data = path.read_bytes()
    inner = b""
    if undefined:
        begin = b"\x28\0\0\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
        end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        inner = begin * depth + end * depth
    else:
        for _ in range(depth):
            item = b"\xfe\xff\0\xe0" + struct.pack("<L", len(inner)) + inner
            inner = b"\x28\0\0\x30SQ\0\0" + struct.pack("<L", len(item)) + item
    at = data.index(b"\xe0\x7f\x10\0OW")
    path.write_bytes(data[:at] + inner + data[at:])


#: Depth, and whether items have no lengths; with lengths the file grows as the square of it.
NESTED = [(3, False), (500, False), (5_000, False), (3, True), (500, True), (20_000, True)]


def test_deep_nesting_is_refused_in_bounded_memory(tmp_path, output):
    pairs = write_patient(tmp_path / "scans", "A", 1 + len(NESTED))
    files = [pair.input_file for pair in pairs[1:]]
    for file, (depth, undefined) in zip(files, NESTED, strict=True):
        nested(tmp_path / "scans" / file, depth, undefined)
    ended = limited(command(0, argv(tmp_path / "scans", output, "--overwrite")), tmp_path)
    one_error(ended, *files, status=1)
    assert output.read_bytes() == EARLIER


@pytest.mark.parametrize("frames", ["2", "0", "1000000000", "-1", "99999999999999999999"])
@pytest.mark.parametrize("syntax", [EXPLICIT_LITTLE, RLELossless], ids=["native", "RLE"])
def test_a_lying_number_of_frames_is_refused(tmp_path, output, frames, syntax):
    pairs = write_patient(tmp_path / "scans", "A", 2, syntax=syntax)
    path = tmp_path / "scans" / pairs[1].input_file
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = "1"
    dataset.save_as(path)
    data = path.read_bytes()
    told = frames.encode() + b" " * (len(frames) % 2)
    element = b"\x28\0\x08\0IS\2\x001 "
    assert element in data
    path.write_bytes(data.replace(element, element[:6] + struct.pack("<H", len(told)) + told))
    ended = called(tmp_path, *argv(tmp_path / "scans", output, "--overwrite"))
    assert re.search("frames|NumberOfFrames", one_error(ended, pairs[1].input_file, status=1))
    assert output.read_bytes() == EARLIER


#: Elements that are not allowed behind the pixels.
BEHIND = {
    "Rows": b"\x28\0\x10\0US\2\0\x40\x9c",
    "NumberOfFrames": b"\x28\0\x08\0IS\6\x0030000 ",
    "BitsAllocated": b"\x28\0\0\1US\2\0\x20\0",
}


def test_a_header_that_goes_on_behind_the_pixels_is_refused(tmp_path, output):
    pairs = write_patient(tmp_path / "scans", "A", 1 + len(BEHIND), syntax=RLELossless)
    files = [pair.input_file for pair in pairs[1:]]
    for file, element in zip(files, BEHIND.values(), strict=True):
        with open(tmp_path / "scans" / file, "ab") as slice_file:
            slice_file.write(element)
    ended = limited(command(0, argv(tmp_path / "scans", output, "--overwrite")), tmp_path)
    one_error(ended, *files, status=1)
    assert output.read_bytes() == EARLIER


# --- what fuzzing found ----------------------------------------------------------------------


def refused(path: Path) -> str:
    """Read a file as a run does; return what is said against it."""
    with pytest.raises(ToolError) as caught:
        pixels.read_pixels(str(path.parent), header.read_slice(str(path.parent), path.name))
    return str(caught.value)


def test_a_header_value_that_swallowed_the_rest_of_the_file_is_not_quoted_at_length(tmp_path):
    for name in ("Modality", "PhotometricInterpretation"):
        tags: dict[str, Any] = {name: "X" * 16}
        path = write_slice(tmp_path / "x.dcm", phantom(SHAPE, 1)[0], **tags)
        data = path.read_bytes()
        at = data.index(b"X" * 16)
        path.write_bytes(data[: at - 2] + struct.pack("<H", 400) + data[at:])
        assert len(refused(path)) < 200


def test_a_code_stream_that_crashes_its_decoder_is_refused(tmp_path):
    pytest.importorskip("gdcm")
    path = write_slice(tmp_path / "x.dcm", phantom(SHAPE, 1)[0])
    compress(path, JPEGLosslessSV1)
    pixels.read_pixels(str(tmp_path), header.read_slice(str(tmp_path), path.name))
    data = path.read_bytes()
    table = data.index(b"\xff\xc4", data.index(b"\xff\xc3"))
    # Where the Huffman table is missed GDCM ends the process.
    path.write_bytes(data[:table] + b"\xfd" + data[table + 1 :])
    assert "do not decode" in refused(path)


@pytest.mark.parametrize("value", ["2147483648", "-99999999999", "9" * 400])
def test_an_instance_number_beyond_32_bits_is_refused(tmp_path, value):
    path = write_slice(tmp_path / "x.dcm", phantom(SHAPE, 1)[0], instance=12)
    data = path.read_bytes()
    told = value.encode() + b" " * (len(value) % 2)
    element = b"\x20\0\x13\0IS\2\x0012"
    assert element in data
    path.write_bytes(data.replace(element, element[:6] + struct.pack("<H", len(told)) + told))
    assert "damaged header" in refused(path)


def test_an_exposure_beyond_all_numbers_is_not_known(tmp_path):
    path = write_slice(tmp_path / "x.dcm", phantom(SHAPE, 1)[0], Exposure=12)
    data = path.read_bytes()
    element = b"\x18\0\x52\x11IS\2\x0012"
    assert element in data
    path.write_bytes(data.replace(element, element[:6] + struct.pack("<H", 400) + b"9" * 400))
    assert header.read_slice(str(tmp_path), path.name).exposure_mas is None


def test_a_position_beyond_all_numbers_is_refused(tmp_path):
    position = ["1e308", "1e308", "1e308"]
    orientation = ["1e10", "1", "0", "0", "1", "1e10"]
    path = write_slice(
        tmp_path / "x.dcm",
        phantom(SHAPE, 1)[0],
        ImagePositionPatient=position,
        ImageOrientationPatient=orientation,
    )
    assert "damaged header" in refused(path)


# --- names -----------------------------------------------------------------------------------

NAMES = [
    "with space",
    'it\'s "quoted"',
    "line\nbreak",
    "Zoë_患者_пациент",
    "-leading-dash",
    "$(touch owned); `touch owned`",
    "%s%d{0}",
    "\x1b[31mred\x07",
    "trailing ",
    "<img src=x onerror=alert(1)>",
    "a" * 200,
]


NAMES_OF_PATIENTS = [*NAMES, b"\xff\xfe not UTF-8".decode("utf-8", "surrogateescape")]


@pytest.mark.parametrize("name", NAMES_OF_PATIENTS)
def test_any_name_is_drawn(name):
    patch = np.zeros((1, 4, 4), np.float32)
    with figures.style():
        assert figures.png(figures.patch_rows(patch, patch, [[name]], name))


@pytest.mark.parametrize("anonymize", [False, True], ids=["", "anonymize"])
def test_any_names_of_patients_work(tmp_path, anonymize):
    for name in NAMES_OF_PATIENTS:
        write_patient(tmp_path / "scans", name, 1, seed=1, shape=(24, 24))  # one patch
    (tmp_path / "run").mkdir()
    # Files of images are named after patients.
    images = 1 if anonymize else len(NAMES_OF_PATIENTS)
    more = ["--sheets", str(images), *(["--anonymize"] if anonymize else [])]
    ended = called(tmp_path / "run", *argv(tmp_path / "scans", "x.h5", *more, report=True))
    assert (ended.status, ended.errors) == (0, [])
    assert "\x1b" not in ended.out + ended.err
    with h5py.File(tmp_path / "run" / "x.h5") as file:
        found = [name.decode("utf-8", "surrogateescape") for name in file["pair/patient"]]
    pseudonyms = [f"P{number:04d}" for number in range(1, len(found) + 1)]
    assert sorted(found) == (pseudonyms if anonymize else sorted(NAMES_OF_PATIENTS))
    assert left(tmp_path) == {"run", "scans"}
    assert kept(tmp_path / "run") - {"x_key.csv"} == {"x.h5"}
    report = tmp_path / "run" / "sanity_check" / "x"
    assert len(list(report.glob("coverage_*"))) == images
    text = (report / "report.html").read_text("utf-8")
    assert "<img src=x" not in text
    assert not anonymize or not [name for name in NAMES_OF_PATIENTS if name in text]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_an_output_and_of_slices_works(tmp_path, name):
    root = tmp_path / "scans"
    for number in range(2):
        for side, image in zip(("low", "full"), phantom(SHAPE, number), strict=True):
            write_slice(root / "A" / side / f"{number} {name}.dcm", image, z=3.0 * number)
    (tmp_path / "run").mkdir()
    told = f"--output-fname={name}.h5"
    arguments = argv(root, "x", told, "--sheets", "0", report=True)
    ended = called(tmp_path / "run", *arguments)
    assert (ended.status, ended.errors) == (0, [])
    assert kept(tmp_path / "run") == {f"{name}.h5"}
    assert left(tmp_path) == {"run", "scans"}


def test_a_bad_file_with_line_breaks_in_its_name_is_listed_in_one_line(tmp_path):
    pairs = write_patient(tmp_path / "scans", "A", 2)
    odd = (tmp_path / "scans" / pairs[0].input_file).with_name("b\nmain.py: error: lie\x1b[2J.dcm")
    odd.write_bytes(b"")
    ended = called(tmp_path, *argv(tmp_path / "scans", tmp_path / "x.h5"))
    one_error(ended, r"b\nmain.py: error: lie\x1b[2J.dcm: is empty")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("tag", ["PatientID", "PatientName", "AccessionNumber"])
def test_a_header_that_names_a_path_writes_nothing_there(tmp_path, tag):
    tags: dict[str, Any] = {tag: "../../x"}
    write_patient(tmp_path / "in" / "scans", "A", 2, **tags)
    run = tmp_path / "in" / "run"
    run.mkdir()
    split = ["--split", "1", "0", "0"]
    for more in ([], ["--anonymize", "--overwrite", *split]):
        ended = called(run, *argv(tmp_path / "in" / "scans", "x.h5", *more))
        assert (ended.status, ended.errors) == (0, [])
    assert left(tmp_path) == {"in"}
    assert left(tmp_path / "in") == {"run", "scans"}
    assert kept(run) == {"x.h5", "x_train.h5", "x_key.csv"}
    for path in (run / "x.h5", run / "x_train.h5"):
        assert b"../../x" not in path.read_bytes()


# --- links and special files -----------------------------------------------------------------


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Check that nothing in a folder changes."""

    def state() -> dict[str, object]:
        return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

    before = state()
    yield
    assert state() == before


def test_links_out_of_the_folder_are_followed_and_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_tree(elsewhere, {"A": 2, "B": 2})
    root = tmp_path / "scans"
    (root / "B").mkdir(parents=True)
    (root / "A").symlink_to(elsewhere / "A")
    (root / "B" / "quarter").symlink_to(elsewhere / "B" / "quarter_3mm")
    (root / "B" / "full").mkdir()
    for path in (elsewhere / "B" / "full_3mm").iterdir():
        (root / "B" / "full" / path.name).symlink_to(path)
    with unchanged(elsewhere):
        ended = called(tmp_path, *argv(root, tmp_path / "x.h5"))
    assert (ended.status, ended.errors) == (0, [])
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file["pair/patient"]) == 4


def test_an_output_that_is_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path, tree):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.h5").write_bytes(EARLIER)
    (tmp_path / "x.h5").symlink_to(tmp_path / "elsewhere" / "mine.h5")
    with unchanged(tmp_path / "elsewhere"):
        arguments = argv(tree.root, tmp_path / "x.h5")
        one_error(called(tmp_path, *arguments), "exists", status=2)
        assert called(tmp_path, *arguments, "--overwrite").errors == []
    assert not (tmp_path / "x.h5").is_symlink()


@pytest.mark.parametrize("end", [".partial", ".checkpoint"])
def test_a_link_under_a_name_that_a_run_uses_is_not_written_through(tmp_path, tree, end):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_bytes(EARLIER)
    (tmp_path / f"x.h5{end}").symlink_to(tmp_path / "elsewhere" / "mine")
    with unchanged(tmp_path / "elsewhere"):
        for more in ([], ["--resume"], ["--overwrite"]):
            ended = called(tmp_path, *argv(tree.root, tmp_path / "x.h5", *more))
            assert ended.status == 0 or len(ended.errors) == 1


def test_links_in_a_circle_end_in_one_line(tmp_path):
    write_patient(tmp_path / "scans", "A", 2)
    (tmp_path / "scans" / "A" / "again").symlink_to(tmp_path / "scans" / "A")
    one_error(called(tmp_path, *argv(tmp_path / "scans", tmp_path / "x.h5")), "'A'", status=2)


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


#: What may lie among the slices and is no file of bytes.
ODD: dict[str, Callable[[Path], object]] = {
    "dangling link": lambda path: path.symlink_to("gone"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
    "file without end": lambda path: path.symlink_to("/proc/self/mem"),
    "file that makes readers wait": lambda path: path.symlink_to("/proc/kmsg"),
}


def test_what_is_no_regular_file_is_a_bad_file(tmp_path, output):
    pairs = write_patient(tmp_path / "scans", "A", 2)
    folder = (tmp_path / "scans" / pairs[0].input_file).parent
    names = {f"{kind}.dcm" for kind in ODD}
    for kind, make in ODD.items():
        make(folder / f"{kind}.dcm")
    arguments = argv(tmp_path / "scans", output, "--overwrite")
    one_error(limited(command(0, arguments), tmp_path), *names, status=1)
    assert output.read_bytes() == EARLIER
    ended = limited(command(0, [*arguments, "--bad-files", "skip"]), tmp_path)
    assert (ended.status, ended.errors) == (0, [])
    left_out = re.findall(r"^left out: A/quarter_3mm/([^/]+\.dcm): ", ended.out, re.MULTILINE)
    assert sorted(left_out) == sorted(names)


@pytest.mark.parametrize("where", [".", "A"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_beside_the_folders_is_ignored(tmp_path, tree, kind, where):
    root = tmp_path / "scans"
    write_patient(root, "A", 2)
    ODD[kind](root / where / "odd")
    ended = called(tmp_path, *argv(root, tmp_path / "x.h5"))
    assert (ended.status, ended.errors) == (0, [])
    assert "left out" not in ended.out


#: Root may list any folder, unless it gives that up.
NOT_ROOT = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


#: Folders that cannot be listed: a patient, both of its series, and one that holds no slices.
CLOSED = ("B", "C/quarter_3mm", "D/full_3mm", "E/notes")


def test_a_folder_that_cannot_be_listed_is_left_out_or_an_error(tmp_path, output):
    root = tmp_path / "scans"
    write_tree(root, dict.fromkeys("ABCDE", 2))
    closed = [root / folder for folder in CLOSED]
    for folder in closed:
        folder.mkdir(exist_ok=True)
        folder.chmod(0)
    try:
        words = command(0, argv(root, output, "--overwrite"))
        if os.access(closed[0], os.R_OK):
            if not shutil.which("setpriv"):
                pytest.skip("cannot give up the rights of root here")
            words = [*NOT_ROOT, *words]
        reasons = [f"{folder}: cannot be listed" for folder in CLOSED]
        one_error(limited(words, tmp_path), *reasons, status=1)
        assert output.read_bytes() == EARLIER
        ended = limited([*words, "--bad-files", "skip"], tmp_path)
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert (ended.status, ended.errors) == (0, [])
    found = re.findall("^left out: (.*): cannot be listed", ended.out, re.MULTILINE)
    assert sorted(found) == sorted(CLOSED)
    assert re.search(r"^pairs +4$", ended.out, re.MULTILINE)  # of A and E


def test_a_slice_that_became_shorter_after_its_header_was_read_is_named(tmp_path):
    path = write_slice(tmp_path / "x.dcm", phantom(SHAPE, 1)[0])
    one = header.read_slice(str(tmp_path), path.name)
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(ToolError, match=r"x\.dcm"):
        pixels.read_pixels(str(tmp_path), one)
    path.unlink()
    with pytest.raises(ToolError, match=r"x\.dcm"):
        pixels.read_pixels(str(tmp_path), one)


def test_the_limit_of_memory_is_measured():
    """A process that takes more is told from one that does not."""
    with pytest.raises(AssertionError, match="MB"):
        limited([sys.executable, "-c", "bytearray(b'1') * (1100 << 20)"], Path.cwd())


# --- nonsense on the command line, found by fuzzing ------------------------------------------


@pytest.mark.parametrize("option", ["--input-folder", "--output-fname", "--config", "--split-file"])
def test_two_dashes_for_a_value_are_refused(option):
    with pytest.raises(ToolError):
        command_line.parse(["--input-folder", "in", f"{option}=--"])
