"""Feeds damaged bytes to the DICOM reader and nonsense to the command line: `fuzz.py --minutes 10`.

Whatever the bytes, the answer must be a result or one of the tool's own errors (`utils.ToolError`)
within `SECONDS` and `MOST_BYTES`. The target runs in a child process, so that a decoder that
crashes or hangs is found too. Inputs are real files of every transfer syntax, mutated; with
`--engine atheris` (pip install atheris) coverage guides the mutations. What is found is kept in
--findings; `fuzz.py --replay FILE` runs one of these files again.
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
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels.decoders import base as pydicom_decoders
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dicom_io
import main
from pairing import PatientPairs, pair_slices
from tests.jpeg_lossless import compress
from tests.scans import phantom, write_slice
from utils import Config, ToolError

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
            pixels = max(out.rfind(b"\xe0\x7f\x10\0"), 0)
            where = rng.randrange(pixels, min(pixels + 300, len(out)) + 1)
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
    options = [n for action in main.build_parser()._actions for n in action.option_strings]
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
        one = dicom_io.read_slice(str(folder), "slice.dcm")
        for twins in ([one], [one, one]):
            pair_slices("P", twins, twins, PatientPairs())
        reached = "header"
        dicom_io.read_sample(str(folder), one)
        image = dicom_io.to_hu(dicom_io.read_pixels(str(folder), one), one)
    except ToolError as error:
        if len(str(error)) > 2000:
            raise ValueError("a message that nobody reads") from error
        return reached
    assert image.shape == (one.rows, one.columns)
    assert np.isfinite(image).all(), "not finite"
    return "pixels"


def read_command_line(argv: list[str]) -> str:
    """Parse a command line; return whether it was taken."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config = main.parse(argv)
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
    for module in (dicom_io, pydicom.filereader, pydicom_decoders):
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
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    told = parsed()
    if told.replay:
        replay(told.replay)
    elif told.child:
        child(told)
    else:
        sys.exit(supervise(told) > 0)
