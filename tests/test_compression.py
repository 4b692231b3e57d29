"""Compressed files: the same patches and provenance in fewer bytes, for any reader and any rank."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zlib
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  # as any reader of these files does
import numpy as np
import pytest

from ctpatches.checksums import verify
from ctpatches.file import PatchFile
from ctpatches.files import Invalid
from ctpatches.reader import PatchReader
from ctpatches.schema import ROLES
from tests.conftest import Tree
from tests.editing import flip
from tests.faults import (
    Fault,
    argv,
    command,
    finished_blocks,
    kept,
    left,
    mounted,
    one_error,
    run,
)
from tests.reading import read_patches
from tests.running import Ended, called
from tests.scans import write_tree

#: Many small patches: the chunk index has more than one level.
FORM = ("--patch-size", "p12", "--rot_augment", "--ds_augment", "--overlap", "8")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("compression") / "scans"
    return Tree(root, write_tree(root, {"A": 3, "B": 2}))


def job(scans: Tree, output: Path, *options: str) -> list[str]:
    return [*argv(scans.root, output, *options), *FORM]


def created(scans: Tree, output: Path, *options: str) -> Path:
    ended = called(output.parent, *job(scans, output, *options))
    assert ended.status == 0, ended.err
    return output


@pytest.fixture(scope="module")
def plain(scans: Tree, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return uncompressed files by their dtype."""
    folder = tmp_path_factory.mktemp("plain")
    names = ("float32", "float16", "int16")
    return {name: created(scans, folder / f"{name}.h5", "--dtype", name) for name in names}


@pytest.fixture(scope="module")
def packed(scans: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of int16 and lz4; read only."""
    options = ("--dtype", "int16", "--compression", "lz4")
    return created(scans, tmp_path_factory.mktemp("packed") / "x.h5", *options)


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(packed, tmp_path / "copy.h5"))


def chunk(path: Path, role: str, row: int) -> tuple[int, int]:
    """Return first byte and bytes of a chunk, as HDF5 finds them."""
    with h5py.File(path) as file:
        found = file[role].id.get_chunk_info_by_coord((row, 0, 0, 0))
        return int(found.byte_offset), int(found.size)


# --- what readers find -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "compression", "tensor_format"),
    [
        ("int16", "lz4", "tf"),
        ("int16", "zstd", "torch"),
        ("float32", "lz4", "torch"),
        ("float32", "gzip", "torch"),
        ("float16", "zstd", "tf"),
    ],
)
def test_every_dataset_equals_that_of_the_uncompressed_file(
    scans, plain, tmp_path, dtype, compression, tensor_format
):
    options = ("--dtype", dtype, "--compression", compression, "--tensor-format", tensor_format)
    path = created(scans, tmp_path / "x.h5", *options)
    with h5py.File(path) as found, h5py.File(plain[dtype]) as expected:
        n = len(expected["input"])
        assert n > 64**2
        shape = (12, 12, 1) if tensor_format == "tf" else (1, 12, 12)
        for role in ROLES:
            assert found[role].dtype == expected[role].dtype
            assert found[role].shape == (n, *shape)
            assert found[role].chunks == (1, *shape)
            assert found[role].id.get_num_chunks() == n
            np.testing.assert_array_equal(found[role][...].ravel(), expected[role][...].ravel())
            for row in (0, 63, 64, 4095, 4096, n - 1):  # by the index, not all of it
                one = found[role][row]
                np.testing.assert_array_equal(one.ravel(), expected[role][row].ravel())
        for table in ("patch", "pair"):
            for name in expected[table]:
                if name != "checksum":
                    found_rows = found[f"{table}/{name}"][...]
                    np.testing.assert_array_equal(found_rows, expected[f"{table}/{name}"][...])
    assert verify(path) == []


def test_the_loaders_read_the_same_float32(plain, packed):
    rows = np.random.default_rng(0).integers(0, len(PatchReader(packed)), 200)
    for found, expected in zip(
        PatchReader(packed).read(rows), PatchReader(plain["int16"]).read(rows), strict=True
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    with PatchFile(packed) as file, PatchFile(plain["int16"]) as other:
        for choice in (7, slice(60, 200), [5, 5, -1], []):
            for found, expected in zip(file.read(choice), other.read(choice), strict=True):
                np.testing.assert_array_equal(found, expected)
        assert file.provenance(4100) == other.provenance(4100)


def test_blocks_follow_each_other_and_their_sizes_are_columns(packed):
    with h5py.File(packed) as file:
        sizes = {role: file[f"patch/{role}_bytes"][...].tolist() for role in ROLES}
        first, counts = (file[f"pair/{name}"][...].tolist() for name in ("first_patch", "patches"))
    end = chunk(packed, "input", 0)[0]
    for start, count in zip(first, counts, strict=True):
        for role in ROLES:
            rows = range(start, start + count)
            assert chunk(packed, role, start) == (end, sizes[role][start])
            end += sum(sizes[role][row] for row in rows)
    assert end <= packed.stat().st_size


def test_a_file_of_one_patch_has_an_index_too(tmp_path):
    write_tree(tmp_path / "scans", {"A": 1}, shape=(24, 24))
    options = argv(tmp_path / "scans", tmp_path / "x.h5", "--compression", "gzip")
    assert called(tmp_path, *options).errors == []
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["target"].shape == (1, 1, 24, 24)
        np.testing.assert_array_equal(
            file["target"][0, 0], read_patches(tmp_path / "x.h5", 0)[1][0]
        )
    assert verify(tmp_path / "x.h5") == []


# --- the same bytes --------------------------------------------------------------------------


def test_ranks_create_the_bytes_of_the_serial_run_in_two_files(tree, tmp_path):
    names, digests = {"x_train.h5", "x_val.h5"}, []
    for number, folder in ((0, tmp_path / "serial"), (3, tmp_path / "ranks")):
        options = ("--compression", "lz4", "--split", "0.5", "0.5", "0")
        ended = run(command(number, argv(tree.root, folder / "x.h5", *options)), tmp_path)
        assert (ended.status, ended.errors) == (0, [])
        assert kept(folder) == names
        files = [(folder / name).read_bytes() for name in sorted(names)]
        digests.append([hashlib.sha256(data).digest() for data in files])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("n", [0, 2])
def test_a_killed_run_is_continued_to_the_same_bytes(scans, packed, tmp_path, n):
    output = tmp_path / "out" / "x.h5"
    arguments = job(scans, output, "--dtype", "int16", "--compression", "lz4")
    fault = Fault("kill", "writing", int(n > 0), call=2, after=f"{output}.checkpoint")
    assert run(command(n, arguments, fault), tmp_path).status != 0
    assert left(output.parent) == {"x.h5.partial", "x.h5.checkpoint"}
    assert 1 <= finished_blocks(Path(f"{output}.checkpoint")) < 5
    ended = run(command(2, [*arguments, "--resume"]), tmp_path)
    assert (ended.status, ended.errors) == (0, [])
    assert output.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_killed_at_its_end_is_completed(scans, packed, tmp_path, damaged):
    output = tmp_path / "x.h5"
    arguments = job(scans, output, "--dtype", "int16", "--compression", "lz4")
    assert run(command(0, arguments, Fault("kill", "renaming")), tmp_path).status != 0
    if damaged:  # and nothing is known of the places of those after it
        flip(Path(f"{output}.partial"), chunk(packed, "target", 1)[0] + 20)
    ended = called(tmp_path, *arguments, "--resume")
    assert ended.errors == []
    assert f"{0 if damaged else 5} of 5 pairs were already complete" in ended.out
    assert output.read_bytes() == packed.read_bytes()


# --- damage ----------------------------------------------------------------------------------


def test_verify_finds_a_single_bit_anywhere(copy):
    size, raw = copy.stat().st_size, copy.read_bytes()
    places = [*np.random.default_rng(0).integers(0, size, 100).tolist(), size - 1]
    for place in places:
        flip(copy, place)
        assert verify(copy), place
        flip(copy, place)
    assert copy.read_bytes() == raw


def test_verify_names_the_block_of_a_damaged_chunk(copy):
    flip(copy, chunk(copy, "target", 3)[0] + 15)
    (damage,) = verify(copy)
    assert damage.startswith("the block of pair 0 (A/quarter_3mm/0000.dcm), patches 0 to ")


@pytest.mark.parametrize("place", [0, 7, 12, 14])
def test_a_chunk_that_claims_another_size_is_an_error_that_names_the_file(copy, place):
    with open(copy, "r+b") as raw:
        raw.seek(chunk(copy, "input", 5)[0] + place)
        raw.write(b"\x7f")
    dataset = PatchReader(copy)
    with pytest.raises(OSError, match=r"copy\.h5': input cannot be read: a chunk is damaged"):
        dataset.read([4, 5])
    dataset.read([4, 6])


def test_a_gzip_chunk_that_is_not_a_patch_is_an_error_that_names_the_file(scans, tmp_path):
    file = created(scans, tmp_path / "x.h5", "--compression", "gzip", "--random_N", "1")
    dataset, (place, _) = PatchReader(file), chunk(file, "input", 5)
    patch = 12 * 12 * 4
    for content in (bytes(9), zlib.compress(bytes(patch - 1)), zlib.compress(bytes(patch + 1))):
        with open(file, "r+b") as raw:
            raw.seek(place)
            raw.write(content)
        with pytest.raises(OSError, match=r"x\.h5': input cannot be read: a chunk is damaged"):
            dataset.read([4, 5])
        dataset.read([4, 6])


def test_sizes_that_no_chunk_can_have_are_refused(copy):
    with h5py.File(copy, "r+") as file:
        file["patch/input_bytes"][9] = 1 << 31
    expected = r"copy\.h5' is damaged: a compressed patch of 2147483648 bytes"
    with pytest.raises(Invalid, match=expected):
        PatchReader(copy).read([0])


@pytest.mark.parametrize("chunks", [None, (1, 1, 12, 12), (8, 1, 12, 12)])
def test_a_file_that_another_program_has_rewritten_is_refused(packed, tmp_path, chunks):
    with h5py.File(packed) as old, h5py.File(tmp_path / "new.h5", "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name not in ROLES:
                old.copy(name, new)
        for role in ROLES:
            new.create_dataset(role, data=old[role][...], chunks=chunks)
    expected = "is damaged or was rewritten: its patches are not at their places"
    with pytest.raises(Invalid, match=expected):
        PatchReader(tmp_path / "new.h5").read([0])
    assert verify(tmp_path / "new.h5") == [expected]


# --- what ends in one line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("lz4", "--store", "views"), "--compression lz4 requires --store patches, found views"),
        (("lzma",), "argument --compression: 'lzma'; expected: one of none, lz4, zstd, gzip"),
    ],
)
def test_what_cannot_be_compressed_ends_in_one_line(scans, tmp_path, options, expected):
    ended = called(tmp_path, *job(scans, tmp_path / "x.h5", "--compression", *options))
    one_error(ended, expected, status=2)
    assert left(tmp_path) == set()


def without_plugin(code: str, folder: Path, *words: str) -> Ended:
    """Run Python code as if hdf5plugin were not installed."""
    hidden = f"import sys; sys.modules['hdf5plugin'] = None; {code}"
    return run([sys.executable, "-c", hidden, *words], folder)


def test_without_the_plugin_readers_say_what_to_install(packed, scans, tmp_path):
    code = "from ctpatches.reader import PatchReader; PatchReader(sys.argv[1])"
    ended = without_plugin(code, tmp_path, str(packed))
    assert ended.err.splitlines()[-1].endswith(
        f"ctpatches.files.Invalid: {str(packed)!r} has input compressed by HDF5's filter 32008; "
        "to read it: pip install hdf5plugin"
    )
    gzip = created(scans, tmp_path / "gzip.h5", "--compression", "gzip")
    assert without_plugin(code, tmp_path, str(gzip)).status == 0
    code = "import main; sys.exit(main.main())"
    ended = without_plugin(code, tmp_path, *job(scans, tmp_path / "x.h5", "--compression", "lz4"))
    expected = "--compression lz4 needs the package hdf5plugin: pip install hdf5plugin"
    one_error(ended, expected, status=2)


def test_a_disk_that_becomes_full_ends_in_one_line_and_the_run_can_be_resumed(
    scans, packed, tmp_path
):
    with mounted(tmp_path / "disk", f"size={packed.stat().st_size // 2}") as disk:
        output = disk / "x.h5"
        arguments = job(scans, output, "--dtype", "int16", "--compression", "lz4")
        for resume in ((), ("--resume",)):
            ended = run(command(2, [*arguments, *resume]), tmp_path)
            one_error(ended, "no space left for", str(output), "--resume continues", status=1)
        assert left(disk) == {"x.h5.partial", "x.h5.checkpoint"}
        shutil.copytree(disk, tmp_path / "out")
    arguments = job(scans, tmp_path / "out" / "x.h5", "--dtype", "int16", "--compression", "lz4")
    assert called(tmp_path, *arguments, "--resume").errors == []
    assert (tmp_path / "out" / "x.h5").read_bytes() == packed.read_bytes()


def test_a_dry_run_estimates_the_compressed_size(scans, packed, tmp_path):
    options = ("--dtype", "int16", "--compression", "lz4", "--dry-run")
    ended = called(tmp_path, *job(scans, tmp_path / "x.h5", *options))
    assert ended.errors == []
    (line,) = (line for line in ended.out.splitlines() if line.startswith("would write"))
    megabytes = float(line.split("about ")[1].split()[0])
    assert 0.6 < megabytes / (packed.stat().st_size / 1e6) < 1.1
