"""Feeds forged and damaged h5 files to every function that reads them.

    python tests/fuzz_h5.py FILE --cases 1000 [--seed 0] [--kind forged|damaged]

Whatever a file holds, a reader must return or raise one of the errors that it documents, without
a warning, within `SECONDS`, `MAX_BYTES` and without opening another file. Cases run in a child
process, so that a crash of the HDF5 library is found too; it is counted apart. FILE is a file of
the tool; `forged` files are valid HDF5 but for one or two changes of names, links, types, shapes or
values; `damaged` ones have flipped bits outside of the patches or are truncated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches import __main__ as command
from ctpatches.checksums import verify
from ctpatches.file import denormalise, overview
from ctpatches.reader import PatchReader, patient_names
from ctpatches.schema import ATTRIBUTES, COPY, SCHEMA
from ctpatches.stitching import stitch
from tests.editing import sign
from tests.reading import provenance, read_patches

SECONDS = 10
MAX_BYTES = 400 << 20
#: What documented errors are; an index out of range, since a forged file may have no patch or pair.
DOCUMENTED = (ValueError, OSError, IndexError)
#: A pipe that nobody writes to, beside the file: whoever opens it as another file waits for ever.
PIPE = "pipe"
GIANT = (1 << 33, 1 << 40, 1 << 62)
NUMBERS = (0, 1, 2, 5, 6, 23, 255, -1, -(1 << 31), (1 << 31) - 1, (1 << 32) - 1, 1 << 63)
TEXTS = (b"", b"../x", b"/etc/passwd", b"\xff\xfe", b"\x1b[31m", b"hu", b"[]", b"{}", b"[" * 9999)
#: JSON that is no configuration.
CONFIGURATIONS = (
    *(b"null", b"1" * 5000, b'{"ds_augment": 1}', b'{"ds_augment": true, "edge": []}'),
    b'{"ds_augment": true, "edge": "pad", "anonymize": null}',
)


# --- files ----------------------------------------------------------------------------------------


def odd_values(rng: random.Random, rows: int) -> Any:
    """Return what a dataset or an attribute of another type or shape may hold."""
    return rng.choice(
        (
            lambda: "text",
            lambda: b"bytes",
            lambda: h5py.Empty("f4"),
            lambda: h5py.Empty("S5"),
            lambda: np.float64(rng.choice((0.5, np.nan, np.inf, -1e308))),
            lambda: np.bool_(True),
            lambda: np.uint64(1 << 63),
            lambda: np.zeros(rows, "f2"),
            lambda: np.zeros(rows, ">f4"),
            lambda: np.zeros(rows, "i8"),
            lambda: np.zeros(rows, "u1"),
            lambda: np.zeros(rows + 1, "<u4"),
            lambda: np.zeros((rows, 1), "<f8"),
            lambda: np.zeros((rows, 2, 3, 3), "<f4"),
            lambda: np.zeros((0, 1, 24, 24), "<f4"),
            lambda: np.zeros((rows, 24, 24), "<f4"),
            lambda: np.zeros(0, "S1"),
            lambda: np.zeros(rows, [("a", "<u4"), ("b", "S3")]),
            lambda: np.array(["vlen"] * rows, h5py.string_dtype()),
            lambda: np.zeros(rows, h5py.enum_dtype({"A": 0, "B": 1}, "u1")),
            lambda: np.array([h5py.Reference()] * rows, h5py.ref_dtype),
        )
    )()


def names(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return sorted(found)


def remove(file: h5py.File, rng: random.Random) -> None:
    del file[rng.choice(names(file))]


def rename(file: h5py.File, rng: random.Random) -> None:
    one, other = rng.sample([n for n in names(file) if isinstance(file[n], h5py.Dataset)], 2)
    del file[one]
    file[one] = file[other]


def retype(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(names(file))
    rows = len(file[name])
    del file[name]
    file[name] = odd_values(rng, rows)


def inflate(file: h5py.File, rng: random.Random) -> None:
    """Give all datasets of a kind, or one, more rows or larger patches than there are bytes for."""
    name = rng.choice([n for n in names(file) if isinstance(file[n], h5py.Dataset)])
    kind = SCHEMA[name].row_of if name in SCHEMA else ""
    alike = [n for n, field in SCHEMA.items() if field.row_of == kind and n in file]
    rows, side = rng.choice((*GIANT, 100_000)), rng.choice((0, 0, 4096, 1 << 20))
    chunked = rng.choice((True, False))
    for one in rng.choice((alike, [name])):
        shape, dtype = file[one].shape, file[one].dtype
        del file[one]
        shape = (rows, *(n if n == 1 or not side else side for n in shape[1:]))
        with contextlib.suppress(ValueError, OSError):  # more than HDF5 itself can express
            chunks = tuple(min(n, rng.choice((1, 64, 1 << 14))) for n in shape) if chunked else None
            pack = "gzip" if chunked and rng.randrange(2) else None
            file.create_dataset(one, shape, dtype, chunks=chunks, compression=pack)


def link(file: h5py.File, rng: random.Random) -> None:
    """Put a link, or values in another file, in the place of a dataset or a group."""
    name = rng.choice(names(file))
    kind = file[name]
    pipe = os.path.join(os.path.dirname(file.filename), PIPE)
    shape, dtype = getattr(kind, "shape", (1,)), getattr(kind, "dtype", np.dtype("<f4"))
    del file[name]
    change = rng.randrange(5)
    if change == 0:
        file[name] = h5py.ExternalLink(pipe, name)
    elif change == 1:
        file[name] = h5py.SoftLink(rng.choice(("/", "/nowhere", f"/{name}", "/pair/patient")))
    elif change == 2:
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(name, shape, dtype, external=[(pipe, 0, max(size, 1))])
    elif change == 3:
        layout = h5py.VirtualLayout(shape, dtype, maxshape=(None, *shape[1:]))
        source = h5py.VirtualSource(pipe, name, shape, dtype, maxshape=(None, *shape[1:]))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = file["/"]


def change_attribute(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(list(ATTRIBUTES))
    del file.attrs[name]
    file.attrs.pop(name + COPY, None)  # which readers prefer
    values = [np.bytes_(text) for text in (TEXTS, CONFIGURATIONS)[name == "configuration"]]
    change = rng.randrange(4)
    if change:
        value = rng.choice(values) if change > 1 else odd_values(rng, 3)
        with contextlib.suppress(OSError, TypeError):
            file.attrs[name] = value


def change_values(file: h5py.File, rng: random.Random) -> None:
    """Write impossible values into a column."""
    name = rng.choice([n for n in names(file) if "/" in n and len(file[n])])
    column = file[name]
    rows = rng.choice((range(min(len(column), 100)), [rng.randrange(len(column))]))
    for row in rows:
        if column.dtype.kind == "S":
            column[row] = rng.choice(TEXTS)[: column.dtype.itemsize]
        elif column.dtype.kind == "f":
            column[row] = rng.choice((np.nan, np.inf, -1e30, 0.0, 0.8))
        else:
            info = np.iinfo(column.dtype)
            column[row] = min(max(rng.choice(NUMBERS), info.min), info.max)


FORGERIES: tuple[Callable[[h5py.File, random.Random], None], ...] = (
    *(remove, rename, retype, inflate, link, change_attribute, change_values, change_values),
)


def forge(path: Path, rng: random.Random) -> str:
    """Change a copy of a valid file with h5py; return what was done."""
    done = []
    with h5py.File(path, "r+", locking=False) as file:
        for _ in range(rng.choice((1, 1, 1, 2))):
            change = rng.choice(FORGERIES)
            # A change may not fit what an earlier one has left.
            with contextlib.suppress(KeyError, ValueError, TypeError, RuntimeError, OSError):
                change(file, rng)
            done.append(change.__name__)
            if change is link:  # HDF5 itself would wait for the pipe
                return " ".join(done)
    if rng.randrange(2):
        with contextlib.suppress(Exception):  # some forgeries have no place for a checksum
            sign(path)
    return " ".join(done)


def header_bytes(path: Path) -> NDArray[np.int64]:
    """Return the offsets of all bytes outside of the pixels but for zeros that fill gaps."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    with h5py.File(path) as file:
        used = np.convolve(data != 0, np.ones(9), "same") > 0
        for name in filter(file.__contains__, ("input", "target", "views/input", "views/target")):
            start = file[name].id.get_offset()
            used[start : start + file[name].id.get_storage_size()] = False
    return np.flatnonzero(used)


def damage(path: Path, rng: random.Random) -> str:
    """Flip bits of a copy of a valid file outside of its patches, or truncate it."""
    others = header_bytes(path)
    data = bytearray(path.read_bytes())
    if not rng.randrange(10):
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at, width = int(rng.choice(others)), rng.choice((0, 0, 1, 4, 8))
            if width:
                number = rng.choice((0, 1, (1 << 8 * width) - 1, rng.getrandbits(8 * width)))
                data[at : at + width] = number.to_bytes(width, "little")
            else:
                data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return "damage"


# --- readers --------------------------------------------------------------------------------------


def from_dataset(path: Path) -> None:
    dataset = PatchReader(path, augment=True, provenance=True)
    dataset.samples([0, -1, len(dataset) // 2])


def from_shell(path: Path) -> None:
    """Run the commands that write files; they must end in one line."""
    calls = [
        ["stitch", "--source", str(path.parent), *words.split()]
        for words in (
            "--pair 0 --output out.npy",
            "--pair 0 --output out.dcm",
            "--all --output out",
        )
    ]
    calls.append(["convert", "--store", "views", "--dtype", "int16", "out.h5"])
    for name, *words, output in calls:
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            first, last = [name, str(path)], [str(path.with_name(output)), "--overwrite"]
            status = command.main([*first, *words, *last])
        assert (status in (1, 2)) == bool(said.getvalue()), said.getvalue()
        assert said.getvalue().isprintable() or said.getvalue().count("\n") <= 3, said.getvalue()


READERS: tuple[Callable[[Path], object], ...] = (
    from_dataset,
    patient_names,
    lambda path: provenance(path, 0),
    lambda path: provenance(path, 7),
    lambda path: read_patches(path, [5, 0]),
    overview,
    lambda path: denormalise(np.zeros((1, 2)), path, 3, "input", "stored"),
    verify,
    lambda path: stitch(None, path, 0, "input"),
    lambda path: stitch(None, path, 1, unit="stored"),
    lambda path: stitch(None, path, 1, scale=0.6, unit="file"),
    from_shell,
)


def findings(path: Path) -> Iterator[str]:
    """Yield what a reader should not have done with a file."""
    for reader in READERS:
        try:
            # For each reader; its default action ends one that hangs.
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                reader(path)
        except DOCUMENTED as error:
            if len(str(error)) > 1000 or "\n" in str(error):
                yield f"a message of several lines: {error}"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            yield f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    if peak > MAX_BYTES:
        yield f"{peak >> 20} MB of memory"


def run_case(source: Path, folder: Path, number: int, arguments: Any) -> None:
    """Make one file and read it; print findings."""
    rng = random.Random(f"{arguments.kind} {arguments.seed} {number}")
    path = Path(shutil.copy(source, folder / "case.h5"))
    done = {"forged": forge, "damaged": damage}[arguments.kind](path, rng)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of memory
    for found in findings(path):
        print(f"case {number} ({done}): {found}", flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)


def child(arguments: Any) -> None:
    """Run the cases from a number on, under limits, until all are done or the process dies."""
    resource.setrlimit(resource.RLIMIT_AS, (8 * MAX_BYTES, 8 * MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(arguments.child)
    for number in range(arguments.first, arguments.cases):
        (folder / "number").write_text(str(number))
        run_case(arguments.file, folder, number, arguments)


def run_child(folder: Path, first: int) -> tuple[int, int, str]:
    """Run cases from a number on; return findings, exit status and last words of the child."""
    found = 0
    words = [sys.executable, *sys.argv, "--child", str(folder), "--first", str(first)]
    with (
        open(folder / "errors", "w+") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        for line in process.stdout or ():
            found += 1
            print(line, end="", flush=True)
        status = process.wait()
        errors.seek(0)
        return found, status, errors.read()[-300:].strip()


def supervise(arguments: Any) -> int:
    """Run all cases in children; return how many findings there are."""
    first, found, crashes = arguments.first, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.mkfifo(folder / PIPE)
        while first < arguments.cases:
            new, status, reason = run_child(folder, first)
            found += new
            if not status:
                break
            first = int((folder / "number").read_text()) + 1
            if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE):
                crashes += 1
            else:
                found += 1
            print(f"case {first - 1} ended its process: status {status}, {reason}", flush=True)
    print(f"{arguments.cases} {arguments.kind} files: {found} findings, {crashes} crashes of HDF5")
    return found


def parsed() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("forged", "damaged"), default="forged")
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    asked = parsed()
    if asked.child:
        child(asked)
    else:
        sys.exit(supervise(asked) > 0)
