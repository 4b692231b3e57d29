"""Files that are not what they claim: every reader refuses them, and reads no other file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from ctpatches import __main__ as command
from ctpatches.checksums import pixel_digest, verify
from ctpatches.file import denormalise
from ctpatches.reader import PatchReader, patient_names
from ctpatches.schema import COPY, PATCH_COLUMNS, ROLES, SCHEMA, VERSION
from ctpatches.stitching import stitch
from tests.editing import sign
from tests.reading import provenance, read_patches
from tests.running import REPO, called, run
from tests.scans import write_patient

Change = Callable[[h5py.File], object]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of 48 x 44 pixels, 42 patches each; read only."""
    folder = tmp_path_factory.mktemp("valid")
    write_patient(folder / "scans", "A", 2, shape=(48, 44))
    form = ("--patch-size", "p24", "--ds_augment", "--rot_augment", "--no-report")
    where = ("--input-folder", folder / "scans", "--output-fname", folder / "out.h5")
    ended = called(folder, *where, *form)
    assert ended.status == 0, ended.err
    return folder / "out.h5"


@pytest.fixture
def forge(valid: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that changes a copy of the valid file."""

    def forge(change: Change) -> Path:
        copy = Path(shutil.copy(valid, tmp_path / "forged.h5"))
        with h5py.File(copy, "r+") as file:
            change(file)
        return copy

    return forge


def samples(path: Path) -> None:
    """Read patches with their provenance as a DataLoader does, but without torch."""
    dataset = PatchReader(path, provenance=True)
    dataset.samples(range(len(dataset)))


READERS: dict[str, Callable[[Path], object]] = {
    "PatchReader": PatchReader,
    "samples": samples,
    "patient_names": patient_names,
    "provenance": lambda path: provenance(path, 0),
    "read_patches": lambda path: read_patches(path, 0),
    "denormalise": lambda path: denormalise(np.zeros((1, 2)), path, 0),
    "stitch": lambda path: stitch(None, path, 0),
}
every_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


def put(name: str, value: Any) -> Change:
    """Replace a dataset."""

    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def fill(name: str, value: Any) -> Change:
    """Set all values of a dataset."""
    return lambda file: file[name].write_direct(np.full(file[name].shape, value, file[name].dtype))


def attribute(name: str, value: Any) -> Change:
    """Set an attribute to a value of any type."""

    def change(file: h5py.File) -> None:
        file.attrs.create(name, value)
        file.attrs.pop(name + COPY, None)  # which readers prefer

    return change


def empty(file: h5py.File) -> None:
    """Remove all patches."""
    for name in (*ROLES, *(f"patch/{name}" for name in PATCH_COLUMNS)):
        put(name, file[name][:0])(file)
    for name in ("first_patch", "patches"):
        fill(f"pair/{name}", 0)(file)


REFERENCE = np.array([h5py.Reference()] * 2, h5py.ref_dtype)
STRINGS = np.array(["A", "A"], h5py.string_dtype())
INVALID: dict[str, tuple[Change, str]] = {
    "no dataset": (lambda file: file.pop("target"), "has no target, or a link in its place"),
    "no group": (lambda file: file.pop("pair"), "has no pair, or a link in its place"),
    "a group": (put("patch/row", h5py.SoftLink("/pair")), "has no patch/row, or a link"),
    "long strings": (
        put("pair/patient", STRINGS),
        r"patient of shape \(2,\), string of 8 bytes; expected: fixed-length strings of shape \(N",
    ),
    "references": (
        put("pair/rows", REFERENCE),
        r"pair/rows of shape \(2,\), reference of \d+ bytes; expected: uint32 of shape \(2,\)",
    ),
    "a scalar": (put("pair/checksum", np.uint64(1)), r"pair/checksum of shape \(\), integer of 8"),
    "nothing": (put("pair/columns", h5py.Empty("<u4")), "has pair/columns of shape None, integer"),
    "float64": (
        put("input", np.zeros((84, 1, 24, 24))),
        r"input .*, float of 8 bytes; expected: float32 of shape \(N, 1, p, p\) or \(N, p, p, 1\)",
    ),
    "big-endian": (put("patch/row", np.zeros(84, ">i4")), "patch/row .* expected: int32 of shape"),
    "oblong patches": (put("target", np.zeros((84, 1, 24, 23), "<f4")), r"target .* \(84, 1, p, p"),
    "small patches": (put("target", np.zeros((84, 1, 23, 23), "<f4")), "target of shape"),
    "fewer targets": (put("target", np.zeros((83, 1, 24, 24), "<f4")), r"expected: .* \(84, 1,"),
    "fewer rows": (put("patch/col", np.zeros(83, "<i4")), r"patch/col .* expected: int32 .* \(84"),
    "fewer pairs": (put("pair/patches", np.zeros(1, "<u8")), r"pair/patches .* shape \(2,\)"),
    "short checksum": (put("checksum", np.zeros(8, "u1")), r"checksum .* uint8 of shape \(16,\)"),
    "bytes": (attribute("format", np.bytes_(b"patches")), "is not a file of ctpatches"),
    "no fixed text": (lambda file: file.attrs.pop("unit_bytes"), "attribute unit is not valid"),
    "two long texts": (
        attribute("configuration_bytes", "{}"),
        "attribute configuration is not valid",
    ),
    "no version": (attribute("format_version", h5py.Empty("<u4")), "format_version is not valid"),
    "version 0": (
        attribute("format_version", np.uint32(0)),
        f"format version 0; known: up to {VERSION}",
    ),
    "text": (attribute("complete", "yes"), "attribute complete is not valid"),
    "a list": (attribute("seed", [1, 2]), "attribute seed is not valid"),
    "a reference": (attribute("unit", h5py.Reference()), "attribute unit is not valid"),
    "another unit": (attribute("unit", np.bytes_(b"mm")), "attribute unit is not valid"),
    "no patch": (empty, "contains no patch"),
    "past the end": (
        fill("pair/first_patch", 43),
        "pair/first_patch and pair/patches do not match",
    ),
    "overflow": (fill("pair/patches", (1 << 63) + 21), "pair/first_patch and pair/patches do not"),
}


@pytest.mark.parametrize(("change", "words"), INVALID.values(), ids=INVALID)
def test_what_the_schema_forbids_is_refused_in_one_line(
    change: Change, words: str, forge: Callable[[Change], Path]
) -> None:
    path = forge(change)
    with pytest.raises(ValueError, match=words) as caught:
        PatchReader(path)
    message = str(caught.value)
    assert message.startswith(f"'{path}' ")
    assert "\n" not in message
    assert verify(path) != []


@every_reader
def test_every_reader_checks_the_whole_file(
    reader: Callable[[Path], object], forge: Callable[[Change], Path]
) -> None:
    with pytest.raises(ValueError, match=r"forged\.h5' has no left_out/kind"):
        reader(forge(lambda file: file.pop("left_out/kind")))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pair", 2), ("pair", 1), ("scale", 0.5), ("scale", np.nan), ("row", -1), ("row", 30)),
        *(("col", -1), ("col", (1 << 31) - 1), ("orientation", 6)),
    ],
)
def test_a_patch_with_impossible_provenance_is_refused(
    name: str, value: float, forge: Callable[[Change], Path]
) -> None:
    path = forge(fill(f"patch/{name}", value))
    for reader in ("PatchReader", "samples", "provenance", "stitch"):
        with pytest.raises(ValueError, match=rf"patch 0 has .*\b{name} {value}.* view of pair 0"):
            READERS[reader](path)
    assert len(read_patches(path, 0)[0]) == 1  # its pixels are there


def test_a_worker_of_a_loader_names_the_file_too(forge: Callable[[Change], Path]) -> None:
    data = pytest.importorskip("torch.utils.data")
    from ctpatches.torch import PatchDataset

    dataset = PatchDataset(forge(lambda _: None), provenance=True)
    forge(fill("patch/row", -1))
    loader = data.DataLoader(dataset, 4, num_workers=1)
    with pytest.raises(ValueError, match=r"forged\.h5' is damaged: patch 0 has .*row -1"):
        next(iter(loader))


def test_slices_of_impossible_size_or_scale_are_refused(
    forge: Callable[[Change], Path],
) -> None:
    for value in (0, 4097, (1 << 32) - 1):
        with pytest.raises(ValueError, match="has slices of sides beyond 1 to 4096 pixels"):
            stitch(None, forge(fill("pair/rows", value)), 0)
    for slope in (0, np.nan, np.inf):
        with pytest.raises(ValueError, match="hold NaN, infinity or a slope of 0"):
            stitch(None, forge(fill("pair/target_slope", slope)), 0)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"\xff", b"[" * 9999, b"1" * 5000, b'{"ds_augment": 1}']
)
def test_a_configuration_of_another_kind_is_refused(
    text: bytes, forge: Callable[[Change], Path]
) -> None:
    path = forge(attribute("configuration", np.array(text, f"S{len(text) or 1}")))
    with pytest.raises(ValueError, match="contains no configuration of ctpatches"):
        stitch(None, path, 0)


# --- more than the file can hold -------------------------------------------------------------


def claim(rows: int, names: tuple[str, ...], **options: Any) -> Change:
    """Give datasets so many rows, none of them stored."""

    def change(file: h5py.File) -> None:
        for name in names:
            shape, dtype = (rows, *file[name].shape[1:]), file[name].dtype
            del file[name]
            file.create_dataset(name, shape, dtype, **options)

    return change


OF_PATCHES = ("input", "target", *(f"patch/{name}" for name in PATCH_COLUMNS))
OF_PAIRS = tuple(name for name, field in SCHEMA.items() if field.row_of == "pair")


@every_reader
@pytest.mark.parametrize("rows", [10_000_000, 1 << 50])
@pytest.mark.parametrize("layout", ["contiguous", "chunked"])
@pytest.mark.parametrize("kind", ["patch", "pair"])
def test_shapes_beyond_the_size_of_the_file_are_refused_before_memory_is_taken(
    kind: str,
    layout: str,
    rows: int,
    reader: Callable[[Path], object],
    forge: Callable[[Change], Path],
) -> None:
    def change(file: h5py.File) -> None:
        there = tuple(n for n in (OF_PATCHES if kind == "patch" else OF_PAIRS) if n in file)
        claim(rows, there, chunks=True if layout == "chunked" else None)(file)

    with pytest.raises(ValueError, match=rf"of shape \({rows},.*, more than the file can hold"):
        reader(forge(change))


def test_chunks_larger_than_any_image_are_refused(forge: Callable[[Change], Path]) -> None:
    size = (1 << 26) // 4 + 1
    path = forge(claim(84, ("patch/row",), chunks=(size,), maxshape=(None,)))
    with pytest.raises(ValueError, match=r"patch/row .* more than the file can hold"):
        PatchReader(path)


def test_columns_in_too_many_chunks_to_be_read_are_refused(forge: Callable[[Change], Path]) -> None:
    columns = tuple(name for name, field in SCHEMA.items() if field.row_of == "left out")
    path = forge(claim(20_000, columns, chunks=(1,)))
    with pytest.raises(ValueError, match="in 20000 chunks; expected: at most 10000"):
        PatchReader(path)


def test_the_length_that_a_text_claims_is_not_believed(valid: Path, tmp_path: Path) -> None:
    raw = bytearray(valid.read_bytes())
    with h5py.File(valid) as file:
        length = len(file.attrs["configuration"])
    # In HDF5 a text of variable length is its length, the address of a heap, and a number in it.
    descriptor = raw.index(length.to_bytes(4, "little"), raw.index(b"configuration\0"))
    assert raw[int.from_bytes(raw[descriptor + 4 : descriptor + 12], "little") :][:4] == b"GCOL"
    raw[descriptor : descriptor + 4] = b"\xff" * 4
    path = tmp_path / "forged.h5"
    path.write_bytes(raw)
    script = (
        "import resource, sys\n"
        "from ctpatches.file import PatchFile\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)\n"
        "print(PatchFile(sys.argv[1]).config['patch_size'])\n"
    )
    ended = run([sys.executable, "-c", script, path], tmp_path)
    assert (ended.out, ended.err) == ("24\n", "")
    assert verify(path) == ["header or tables of pairs are damaged"]


# --- other files -----------------------------------------------------------------------------


def linked(kind: str, valid: Path) -> Change:
    """Take `target` from another file, in every way that HDF5 has."""

    def change(file: h5py.File) -> None:
        shape, dtype = file["target"].shape, file["target"].dtype
        with h5py.File(valid) as other:
            offset, size = other["target"].id.get_offset(), other["target"].id.get_storage_size()
        del file["target"]
        if kind == "external link":
            file["target"] = h5py.ExternalLink(valid, "target")
        elif kind == "soft link":
            file["elsewhere"] = h5py.ExternalLink(valid, "/")
            file["target"] = h5py.SoftLink("/elsewhere/target")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(valid, "target", shape)
            file.create_virtual_dataset("target", layout)
        else:
            file.create_dataset("target", shape, dtype, external=[(valid, offset, size)])

    return change


@every_reader
@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external storage"])
def test_no_other_file_is_read(
    kind: str, reader: Callable[[Path], object], valid: Path, forge: Callable[[Change], Path]
) -> None:
    path = forge(linked(kind, valid))
    with h5py.File(path) as file:  # HDF5 itself would read it
        assert file["target"][...].any()
    with pytest.raises(ValueError, match=r"has (no target, or a link|target in other files)"):
        reader(path)
    assert len(verify(path)) == 1


@pytest.mark.parametrize("name", ["../scans/x.dcm", "/etc/passwd", "A/../../x", "", "A\0x"])
def test_a_source_slice_outside_of_the_folder_is_refused(
    name: str, valid: Path, forge: Callable[[Change], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(file: h5py.File) -> None:
        del file["pair/target_file"]
        file["pair/target_file"] = np.array([name.encode()] * 2, "S40")

    path = forge(change)
    root, output = valid.parent / "scans", path.with_name("out.dcm")
    words = (path, "--pair", 0, "--source", root, "--output", output)
    assert command.main(["stitch", *map(str, words)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected: a path below an input folder" in error
    assert not output.exists()


# --- files that stay readable ----------------------------------------------------------------


def test_a_file_of_which_everything_was_compressed_is_read_alike(
    valid: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.h5"
    with h5py.File(valid) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)

        def pack(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                chunks = {"chunks": True, "compression": "gzip"} if item.size else {}
                new.create_dataset(name, data=item[...], dtype=item.dtype, **chunks)

        old.visititems(pack)
    for one, other in zip(
        PatchReader(packed).read([5, -1]), PatchReader(valid).read([5, -1]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    samples(packed)
    assert provenance(packed, 50) == provenance(valid, 50)
    for scale in (1, 0.8):
        np.testing.assert_array_equal(
            stitch(None, packed, 1, scale=scale), stitch(None, valid, 1, scale=scale)
        )
    assert verify(packed) == ["was compressed or rewritten: its checksums are of other bytes"]


def test_damaged_compressed_patches_are_an_error_that_names_the_file(
    forge: Callable[[Change], Path],
) -> None:
    def change(file: h5py.File) -> None:
        values = file["target"][...]
        del file["target"]
        target = file.create_dataset(
            "target", data=values, chunks=(4, 1, 24, 24), compression="gzip"
        )
        target.id.write_direct_chunk((0, 0, 0, 0), b"no zlib stream")

    path = forge(change)
    for read in (PatchReader(path).read, lambda rows: read_patches(path, rows)):
        with pytest.raises(OSError, match=r"forged\.h5': target cannot be read"):
            read([0])
        assert len(read([4])[0]) == 1


def test_a_signed_copy_is_whole(forge: Callable[[Change], Path]) -> None:
    path = forge(lambda file: file["left_out"].attrs.create("note", 1))
    assert verify(path) == ["header or tables of pairs are damaged"]
    assert verify(sign(path)) == []


def test_the_digest_of_pixels_is_that_of_little_endian_rows() -> None:
    image = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
    expected = xxhash.xxh3_64_intdigest(image.astype("<f4").tobytes())
    assert pixel_digest(image) == expected
    assert pixel_digest(np.asfortranarray(image)) == expected
    assert pixel_digest(image.astype(">f4")) == expected
    assert pixel_digest(image.T) != expected


# --- at random -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["patches", "views"])
@pytest.mark.parametrize(("kind", "cases"), [("forged", 40), ("damaged", 40)])
def test_random_forgeries_end_in_documented_errors(
    kind: str, cases: int, store: str, valid: Path, tmp_path: Path
) -> None:
    if store == "views":
        scans, valid = valid.with_name("scans"), tmp_path / "views.h5"
        form = ("--patch-size", "p24", "--ds_augment", "--rot_augment", "--store", "views")
        called(tmp_path, "--input-folder", scans, "--output-fname", valid, *form, "--no-report")
    words: list[str | Path] = [
        sys.executable,
        REPO / "tests" / "fuzz_h5.py",
        valid,
        "--cases",
        str(cases),
    ]
    ended = run([*words, "--kind", kind], tmp_path)
    assert ended.status == 0, ended.out + ended.err
    assert f"{cases} {kind} files: 0 findings" in ended.out
