"""The h5 file: its layout, writing blocks at their place, what a failed run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from ctpatches import files
from ctpatches.checksums import pixel_digest
from ctpatches.dicom.pixels import read_pixels
from ctpatches.header import RecordedFile
from ctpatches.schema import VERSION
from patching import Block
from pipeline.cohort.selection import find
from pipeline.config import Config
from pipeline.filling import make_block
from pipeline.model import Difference, Plan
from pipeline.mpi.ranks import Ranks
from pipeline.output import file_header
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.partial_file import Layout, PartialFile
from pipeline.plan import make_plans
from tests.conftest import Tree
from tests.cutting import patches_of
from tests.scans import write_tree
from utils import Affine

COUNTS = {"A": 2, "B": 1}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("store") / "scans"
    return Tree(root, write_tree(root, COUNTS))


def planned(root: Path, folder: Path, **options: Any) -> tuple[Plan, Config]:
    """Return the plan of a job and its configuration."""
    config = Config(
        str(root),
        output_fname=str(folder / "out" / "made.h5"),
        **{"patch_size": 24, "overlap": 4, "rot_augment": True, "ds_augment": True, **options},
    )
    plans = make_plans(find(config, Ranks()), config, Ranks())
    return plans[""], config


def made_blocks(plan: Plan, config: Config) -> Iterator[tuple[Block, list[Affine]]]:
    for planned in plan.pairs:
        slices = planned.pair.input, planned.pair.target
        images = [read_pixels(config.input_folder, one) for one in slices]
        yield make_block(planned, images[0], images[1], config)[:2]


def laid_out(plan: Plan, config: Config) -> Layout:
    """Create the file with room for every patch; return where its bytes lie."""
    path = Path(config.output_fname)
    path.parent.mkdir(parents=True)
    header = file_header.header(plan, config)
    with open(path, "x+b") as file:
        file.truncate(header.size)
        header.write(file.fileno())
    layout = Layout(str(path), header.rows, header.extents[-1][0])
    with open(path, "r+b") as file:
        files.write_at(file.fileno(), layout.token, layout.checksum)
    return layout


def write(plan: Plan, config: Config, order: list[int]) -> list[Block]:
    """Make the file, its blocks in that order; return the blocks in the plan's order."""
    made, affines = map(list, zip(*made_blocks(plan, config), strict=True))
    layout = laid_out(plan, config)
    checksums = {}
    with contextlib.closing(PartialFile(layout)) as file:
        for i in order:
            place = plan.pairs[i].place
            checksums[i] = made[i].write(file.write, layout.rows, i, place)
    records = [
        BlockRecord(one, other, checksums[i], (2 * i, 2 * i + 1), Difference(i), (0.5, i))
        for i, (one, other) in enumerate(affines)
    ]
    with open(layout.path, "r+b") as whole:
        file_header.header(plan, config, records).write(whole.fileno())
    return made


@pytest.mark.parametrize(("tensor_format", "shape"), [("torch", (1, 24, 24)), ("tf", (24, 24, 1))])
def test_patches_are_contiguous_float32_of_the_formats_shape(scans, tmp_path, tensor_format, shape):
    plan, config = planned(scans.root, tmp_path, tensor_format=tensor_format)
    write(plan, config, [0, 1, 2])
    with h5py.File(config.output_fname) as file:
        for name in ("input", "target"):
            assert file[name].shape == (plan.patches, *shape)
            assert file[name].dtype == np.dtype("<f4")
            layout = file[name].id.get_create_plist().get_layout()
            assert layout == h5py.h5d.CONTIGUOUS


def test_every_dataset_is_contiguous(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    write(plan, config, [0, 1, 2])
    chunked = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks is not None:
            chunked.append(name)

    with h5py.File(config.output_fname) as file:
        file.visititems(note)
    assert chunked == []


def test_the_tables_have_a_row_a_patch_and_a_row_a_pair(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    write(plan, config, [0, 1, 2])
    with h5py.File(config.output_fname) as file:
        assert set(file["patch"]) == {"pair", "scale", "row", "col", "orientation"}
        assert {len(column) for column in file["patch"].values()} == {plan.patches}
        assert {len(column) for column in file["pair"].values()} == {3}


def test_blocks_written_in_any_order_lie_at_their_place(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    made = write(plan, config, [2, 0, 1])
    with h5py.File(config.output_fname) as file:
        for name in ("input", "target"):
            expected = np.concatenate([patches_of(block, name) for block in made])
            np.testing.assert_array_equal(file[name][:, 0], expected)
        for name in ("scale", "row", "col", "orientation"):
            expected = np.concatenate([getattr(block, name) for block in made])
            np.testing.assert_array_equal(file[f"patch/{name}"][...], expected)
        pairs = np.repeat(range(3), [len(block) for block in made])
        np.testing.assert_array_equal(file["patch/pair"][...], pairs)


def test_the_order_of_writing_leaves_no_trace(scans, tmp_path):
    found = []
    for order in ([0, 1, 2], [2, 1, 0]):
        plan, config = planned(scans.root, tmp_path / str(order[0]))
        write(plan, config, order)
        found.append(Path(config.output_fname).read_bytes())
    assert found[0] == found[1]


def test_the_pair_table_names_files_and_positions(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    write(plan, config, [0, 1, 2])
    with h5py.File(config.output_fname) as file:
        table = {name: column[...].tolist() for name, column in file["pair"].items()}
    assert table["patient"] == [pair.patient.encode() for pair in scans.pairs]
    assert table["input_file"] == [pair.input_file.encode() for pair in scans.pairs]
    assert table["target_file"] == [pair.target_file.encode() for pair in scans.pairs]
    assert table["position_mm"] == [pair.z for pair in scans.pairs]
    assert table["first_patch"] == plan.starts[:-1]
    assert table["patches"] == np.diff(plan.starts).tolist()


def test_the_pair_table_holds_what_undoes_the_normalisation(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path, normalization_type="unity_independent")
    write(plan, config, [0, 1, 2])
    with h5py.File(config.output_fname) as file:
        for side in ("input", "target"):
            images = [getattr(pair, side).astype(float) for pair in scans.pairs]
            offsets = file[f"pair/{side}_offset"][...].tolist()
            divisors = file[f"pair/{side}_divisor"][...].tolist()
            assert offsets == [image.min() for image in images]
            assert divisors == [np.ptp(image) for image in images]


def test_the_pair_table_holds_the_digests_of_both_slices(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    write(plan, config, [2, 1, 0])
    with h5py.File(config.output_fname) as file:
        assert file["pair/input_digest"].dtype == file["pair/target_digest"].dtype == "<u8"
        assert file["pair/input_digest"][...].tolist() == [0, 2, 4]
        assert file["pair/target_digest"][...].tolist() == [1, 3, 5]


def test_a_digest_is_of_the_pixels_in_hu_alone():
    hu = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
    assert pixel_digest(hu) == xxhash.xxh3_64_intdigest(hu.astype("<f4").tobytes())
    assert pixel_digest(np.asfortranarray(hu)) == pixel_digest(hu)
    assert pixel_digest(hu + 1) != pixel_digest(hu)


def test_attributes_say_how_the_file_was_made(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path, seed=7)
    write(plan, config, [0, 1, 2])
    with h5py.File(config.output_fname) as file:
        attrs = dict(file.attrs)
    assert attrs["seed"] == 7
    assert attrs["complete"] == 1
    assert attrs["format_version"] == VERSION
    assert json.loads(attrs["configuration"])["patch_size"] == 24
    for name in ("format", "unit", "configuration", "orientations"):
        assert type(attrs[name]) is str


def test_no_path_or_host_name_is_in_the_bytes(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    write(plan, config, [0, 1, 2])
    raw = Path(config.output_fname).read_bytes()
    for word in (str(tmp_path), str(scans.root), scans.root.parent.name, socket.gethostname()):
        assert word.encode() not in raw


# --- while it is written ---------------------------------------------------------------------


def test_before_the_end_the_file_is_not_marked_complete(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    laid_out(plan, config)
    with h5py.File(config.output_fname) as file:
        assert file.attrs["complete"] == 0


def test_the_header_alone_is_no_larger_than_its_tables(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    header = file_header.header(plan, config)
    assert header.size > 1_000_000
    assert sum(len(data) for _, data in header.writes) <= 256 << 10


def test_a_recorded_file_keeps_the_writes_in_their_order():
    file, expected = RecordedFile(), []
    for offset, length in ((97, 7), (0, 1), (200, 101), (99, 2)):
        data = bytes(i % 255 + 1 for i in range(length))
        file.seek(offset)
        assert file.write(data) == length
        assert file.tell() == offset + length
        expected.append((offset, data))
    assert file.writes == expected
    assert file.size == 301
    assert file.seek(-file.size, 2) == 0
    assert file.truncate(500) == 500 == file.seek(0, 2)


def test_a_process_that_sees_another_file_does_not_write(scans, tmp_path):
    plan, config = planned(scans.root, tmp_path)
    layout = laid_out(plan, config)
    PartialFile(layout).close()
    Path(layout.path).rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        PartialFile(layout)
    Path(layout.path).write_bytes(b"a file of the same name")
    with pytest.raises(FileNotFoundError):
        PartialFile(layout)


@pytest.mark.parametrize("limit", [1, 7, 1 << 20])
def test_bytes_are_written_whole_however_many_a_call_takes(scans, tmp_path, monkeypatch, limit):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:limit], at))
    plan, config = planned(scans.root, tmp_path)
    layout = laid_out(plan, config)
    data = np.arange(100, dtype=np.float32)
    with contextlib.closing(PartialFile(layout)) as file:
        file.write(layout.rows["input"][0] + 400, data.data)
    with h5py.File(layout.path) as read:
        np.testing.assert_array_equal(read["input"][...].ravel()[100:200], data)
