"""What a training gets from the file: the same values, whatever process reads them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ctpatches import reader
from ctpatches.file import denormalise
from ctpatches.orientations import DIHEDRAL, draw_orientations
from ctpatches.reader import PatchReader, patient_names
from ctpatches.schema import COPY, REST, VERSION
from ctpatches.tensorflow import keras_sequence, tf_dataset
from tests.conftest import Tree
from tests.cutting import oriented
from tests.reading import provenance
from tests.running import REPO, called
from tests.scans import write_patient, write_slice

#: 24 pixels a side fit into every view of the tree.
OPTIONS = ("--patch-size", "p24", "--rot_augment", "--ds_augment", "--air_threshold")


def make(root: Path, path: Path, *options: str) -> Path:
    """Make an h5 file."""
    where = ("--input-folder", root, "--output-fname", path, "--no-report")
    ended = called(path.parent, *where, *options)
    assert ended.status == 0, ended.err
    return path


@pytest.fixture(scope="module")
def file(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of torch."""
    return make(tree.root, tmp_path_factory.mktemp("torch") / "torch.h5", *OPTIONS)


@pytest.fixture(scope="module")
def tf_file(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same patches in the layout of TensorFlow."""
    path = tmp_path_factory.mktemp("tf") / "tf.h5"
    return make(tree.root, path, *OPTIONS, "--tensor-format", "tf")


@pytest.fixture
def torch() -> Any:
    """Return torch, or skip."""
    return pytest.importorskip("torch")


def patch_dataset(file: Path, *args: Any, **options: Any) -> Any:
    """Return a data set for PyTorch."""
    from ctpatches.torch import PatchDataset

    return PatchDataset(file, *args, **options)


def contents(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return inputs and targets of a file, each of shape (n, p, p)."""
    with h5py.File(file) as opened:
        size = max(opened["input"].shape[1:])
        both = (opened[name][:].reshape(-1, size, size) for name in ("input", "target"))
        return next(both), next(both)


def patients_of(file: Path) -> NDArray[Any]:
    """Return the patient of every patch."""
    with h5py.File(file) as opened:
        return np.asarray(opened["pair/patient"][:].astype(str)[opened["patch/pair"][:]])


# --- without torch ---------------------------------------------------------------------------


def test_all_patches_are_read_exactly(file: Path, tf_file: Path) -> None:
    wanted = contents(file)
    order = np.random.default_rng(0).permutation(len(wanted[0]))
    for path in (file, tf_file):
        dataset = PatchReader(path)
        assert len(dataset) == len(order)
        for found, image in zip(dataset.read(order), wanted, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, image[order])


@pytest.mark.parametrize("chosen", ["C03", ["A01"], ["C03", "A01"], ("B02",), {"A01", "B02"}])
def test_a_choice_of_patients_gives_their_patches_in_the_order_of_the_file(
    chosen: Any, file: Path
) -> None:
    dataset = PatchReader(file, chosen)
    names = sorted([chosen] if isinstance(chosen, str) else chosen)
    rows = np.flatnonzero(np.isin(patients_of(file), names))
    assert dataset.patients == names
    assert len(dataset) == len(rows)
    np.testing.assert_array_equal(dataset.rows(range(len(rows))), rows)
    for found, image in zip(dataset.read(range(len(rows))), contents(file), strict=True):
        np.testing.assert_array_equal(found, image[rows])


def test_names_of_patients(file: Path) -> None:
    assert patient_names(file) == ["A01", "B02", "C03"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], "no patient is chosen; there are: 'A01', 'B02', 'C03'"),
        (["A01", "X"], "no patient 'X'; there are: 'A01', 'B02', 'C03'"),
        ("a01", "no patient 'a01'; there are: 'A01'"),
    ],
)
def test_patients_that_are_not_there_are_refused(chosen: Any, words: str, file: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PatchReader(file, chosen)


def test_a_patient_of_nothing_but_air_is_refused(tmp_path: Path) -> None:
    write_patient(tmp_path / "in", "A", 1)
    for side in ("quarter", "full"):
        write_slice(tmp_path / "in" / "B" / f"{side}_3mm" / "1.dcm", np.zeros((64, 80), np.uint16))
    off = ("--air_threshold", "--anatomy-check", "off")
    file = make(tmp_path / "in", tmp_path / "out.h5", "--patch-size", "p24", *off)
    assert PatchReader(file).patients == ["A", "B"]
    with pytest.raises(ValueError, match="has no patch of 'B'"):
        PatchReader(file, "B")


@pytest.mark.parametrize(
    ("scales", "orientations", "patients"),
    [
        (1, None, None),
        (np.float32(0.8), None, "B02"),
        ({0.6, 1}, (1, 2), None),
        (None, 0, ["C03", "A01"]),
        (None, [5, 0, 3], None),
    ],
)
def test_scales_and_orientations_are_chosen(
    scales: Any, orientations: Any, patients: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_ROWS", 100)
    dataset = PatchReader(file, patients, scales=scales, orientations=orientations)
    with h5py.File(file) as opened:
        scale, orientation = opened["patch/scale"][:], opened["patch/orientation"][:]
    chosen = np.ones(len(scale), bool)
    if scales is not None:
        each = [scales] if np.isscalar(scales) else list(scales)
        chosen &= np.any([np.isclose(scale, one) for one in each], axis=0)
    if orientations is not None:
        chosen &= np.isin(orientation, orientations)
    if patients is not None:
        chosen &= np.isin(patients_of(file), patients)
    rows = np.flatnonzero(chosen)
    assert 0 < len(rows) < len(scale)
    np.testing.assert_array_equal(dataset.rows(range(len(dataset))), rows)
    np.testing.assert_array_equal(dataset.read([0, -1])[1], contents(file)[1][rows[[0, -1]]])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"scales": 0.5}, "no scale 0.5; there are: 1.0, 0.8, 0.6"),
        ({"scales": []}, "no scale is chosen"),
        ({"orientations": [0, 6]}, "no orientation 6; there are: 0, 1, 2, 3, 4, 5"),
        ({"unit": "HU"}, "unit 'HU'; expected: 'file' or 'hu'"),
    ],
)
def test_a_choice_that_the_file_does_not_have_is_an_error(
    choice: Any, words: str, file: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        PatchReader(file, **choice)


def test_a_choice_without_a_patch_is_an_error(tree: Tree, tmp_path: Path) -> None:
    plain = make(tree.root, tmp_path / "plain.h5", "--patch-size", "p24")
    words = "has no patch of 'B02'; scales 1; orientations 1, 3"
    with pytest.raises(ValueError, match=words):
        PatchReader(plain, "B02", orientations=[3, 1])


def test_damaged_scales_are_noticed_where_they_decide(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(file, copy)
    with h5py.File(copy, "r+") as opened:
        opened["patch/scale"][7] = 0.7
    with pytest.raises(ValueError, match=r"is damaged: patch 7 has pair 0, scale 0\.69"):
        PatchReader(copy, scales=1)


def test_hu_are_those_of_each_image(tree: Tree, tmp_path: Path) -> None:
    own = ("--patch-size", "p24", "--normalization-type", "std_independent")
    path = make(tree.root, tmp_path / "own.h5", *own)
    plain, hu = PatchReader(path, augment=True), PatchReader(path, unit="hu", augment=True)
    rows = [40, 2, -1]
    for values, found, role in zip(
        plain.read(rows), hu.read(rows), ("input", "target"), strict=True
    ):
        np.testing.assert_array_equal(found, denormalise(values, path, rows, role))
        np.testing.assert_allclose(found, found.round(), atol=1e-2)


def test_its_repr_describes_what_is_read(file: Path) -> None:
    n = len(contents(file)[0])
    assert repr(PatchReader(file)) == (
        f"<PatchReader '{file}': {n} of {n} patches of 24 x 24 pixels; 'A01', 'B02', 'C03'; "
        "scales 1, 0.8, 0.6; orientations 0, 1, 2, 3, 4, 5; unit file, float32>"
    )
    part = PatchReader(file, "B02", scales=1, unit="hu", augment=True, seed=3, transform=halved)
    end = "'B02'; scales 1; orientations 0, 1, 2, 3, 4, 5; unit hu, float32; augmented with seed 3"
    assert repr(part).endswith(f"{end}; transform halved>")
    assert f"{len(part)} of {n} patches" in repr(part)


def halved(low: Any, full: Any) -> tuple[Any, Any]:
    """Return a pair of which everything is halved, and the target cropped."""
    return low / 2, full[:, 4:-4, 4:-4] / 2


def test_indices_beyond_the_end(file: Path) -> None:
    dataset = PatchReader(file, "B02")
    n = len(dataset)
    np.testing.assert_array_equal(dataset.read([-1])[0], dataset.read([n - 1])[0])
    assert dataset.read([])[0].shape == (0, 24, 24)
    for index in (n, -n - 1):
        with pytest.raises(IndexError, match=f"patch {index} of {n}"):
            dataset.read([0, index])


def test_a_compressed_copy_reads_the_same(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.h5"
    with h5py.File(file) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name not in ("input", "target"):
                old.copy(name, new)
        for name in ("input", "target"):
            new.create_dataset(name, data=old[name], chunks=(4, 1, 24, 24), compression="gzip")
    dataset = PatchReader(packed)
    for found, image in zip(dataset.read([5, 3, -1]), contents(file), strict=True):
        np.testing.assert_array_equal(found, image[[5, 3, -1]])


def test_neither_torch_nor_the_tool_is_needed(file: Path, tmp_path: Path) -> None:
    shutil.copytree(REPO / "ctpatches", tmp_path / "ctpatches")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['torch'] = sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from ctpatches.reader import PatchReader\n"
        "print(len(PatchReader(sys.argv[1]).read([0, 1])[0]))\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, str(script), str(file)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("2\n", "")


# --- files that are refused ------------------------------------------------------------------


def change(file: Path, copy: Path, name: str, value: Any) -> Path:
    """Copy a file and change one of its attributes."""
    shutil.copy(file, copy)
    with h5py.File(copy, "r+") as opened:
        opened.attrs.pop(name + COPY, None)  # which readers prefer
        if value is None:
            del opened.attrs[name]
        else:
            opened.attrs[name] = value
    return copy


def test_an_incomplete_file_is_refused(file: Path, tmp_path: Path) -> None:
    partial = change(file, tmp_path / "x.h5", "complete", np.uint8(0))
    with pytest.raises(ValueError, match=r"x\.h5' is not complete: its run was interrupted"):
        PatchReader(partial)


def test_a_foreign_file_is_refused(file: Path, tmp_path: Path) -> None:
    foreign = change(file, tmp_path / "x.h5", "format", None)
    with pytest.raises(ValueError, match=r"x\.h5' is not a file of ctpatches"):
        PatchReader(foreign)
    newer = change(file, tmp_path / "x.h5", "format_version", np.uint32(VERSION + 1))
    with pytest.raises(ValueError, match=f"format version {VERSION + 1}; known: up to {VERSION}"):
        PatchReader(newer)
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        PatchReader(tmp_path / "text.h5")
    with pytest.raises(FileNotFoundError):
        PatchReader(tmp_path / "none.h5")


def test_a_file_that_changes_under_the_reader_is_noticed(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(file, copy)
    dataset = PatchReader(copy)
    with h5py.File(copy, "r+") as opened:
        start = opened["target"].id.get_offset()
        opened[REST][0] ^= 1
    with pytest.raises(ValueError, match="another file than when it was first opened"):
        dataset.read([0])
    shutil.copy(file, copy)
    assert len(dataset.read([0])[0]) == 1
    os.truncate(copy, start)
    with pytest.raises(OSError, match=r"ends before byte \d+: it was truncated"):
        dataset.read([0])


# --- random orientations ---------------------------------------------------------------------


def split_mix(*words: int) -> int:
    """Return the orientation by SplitMix64, one number at a time."""
    state, mask = 0, 2**64 - 1
    for word in words:
        state = ((state ^ (word & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 61


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 7), (2**70, 3), (-1, 2)])
def test_draws_depend_on_seed_epoch_and_patch_alone(seed: int, epoch: int) -> None:
    patches = np.array([0, 1, 2, 1000, 2**40])
    wanted = [split_mix(seed, epoch, int(patch)) for patch in patches]
    assert draw_orientations(seed, epoch, patches).tolist() == wanted


def test_every_orientation_is_as_likely_and_epochs_are_independent() -> None:
    n = 80_000
    first, second = (draw_orientations(3, epoch, np.arange(n)).astype(int) for epoch in (0, 1))
    counts = np.bincount(8 * first + second, minlength=64)
    # Chi-squared of 63 degrees of freedom: 103 is exceeded once in a thousand times.
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 103


def test_orientations_are_the_eight_of_a_square() -> None:
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    assert len({one(image).tobytes() for one in DIHEDRAL}) == 8
    for code in range(6):
        np.testing.assert_array_equal(DIHEDRAL[code](image)[0], oriented(image[0], code))
    np.testing.assert_array_equal(DIHEDRAL[6](image)[0], image[0].T)
    np.testing.assert_array_equal(DIHEDRAL[7](image)[0], np.rot90(image[0], 2).T)


def test_input_and_target_are_turned_alike_and_anew_in_every_epoch(file: Path) -> None:
    plain = contents(file)
    dataset = PatchReader(file, "C03", augment=True, seed=5)
    rows = dataset.rows(range(len(dataset)))
    seen = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        codes = draw_orientations(5, epoch, rows)
        seen.append(codes.tobytes())
        assert set(codes) == set(range(8))
        for found, image in zip(dataset.read(range(len(rows))), plain, strict=True):
            for patch, row, code in zip(found, rows, codes, strict=True):
                np.testing.assert_array_equal(patch, DIHEDRAL[code](image[[row]])[0])
    assert len(set(seen)) == 3


def test_a_patch_is_turned_alike_in_any_batch_and_any_choice_of_patients(file: Path) -> None:
    all_of_them, some = (PatchReader(file, p, augment=True) for p in (None, "C03"))
    row = int(some.rows([9])[0])
    np.testing.assert_array_equal(some.read([4, 9])[0][1], all_of_them.read([row])[0][0])


# --- torch -----------------------------------------------------------------------------------


def test_samples_are_tensors(file: Path, tf_file: Path, torch: Any) -> None:
    inputs, targets = contents(file)
    for path in (file, tf_file):
        low, full = patch_dataset(path)[3]
        for tensor, image in ((low, inputs[3]), (full, targets[3])):
            assert tensor.dtype == torch.float32
            assert tensor.shape == (1, 24, 24)
            np.testing.assert_array_equal(tensor[0].numpy(), image)
        low += 1  # is its own, not the file's
        np.testing.assert_array_equal(patch_dataset(path)[3][0][0].numpy(), inputs[3])


def test_provenance_is_that_of_the_file(file: Path, torch: Any) -> None:
    dataset = patch_dataset(file, "C03", provenance=True, augment=True)
    for index in (0, 7, len(dataset) - 1):
        row = int(dataset.rows([index])[0])
        found = dataset[index][2]
        code = int(draw_orientations(0, 0, np.array([row]))[0])
        wanted = dataclasses.asdict(provenance(file, row))
        np.testing.assert_equal(found, {**wanted, "patch": row, "turned": code})


def loader(torch: Any, dataset: Any, workers: int, context: str | None, **options: Any) -> Any:
    """Return a DataLoader of whole batches of eight."""
    return torch.utils.data.DataLoader(
        dataset, 8, num_workers=workers, multiprocessing_context=context, **options
    )


WORKERS = [(0, None), (1, "fork"), (4, "fork"), (2, "spawn")]
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@few_cores
@pytest.mark.parametrize(("workers", "context"), WORKERS)
def test_a_loader_gives_every_patch_once(
    workers: int, context: str | None, file: Path, torch: Any
) -> None:
    wanted = contents(file)
    dataset = patch_dataset(file, provenance=True)
    assert len(dataset.read([0])) == 2  # open already when workers are forked
    generator = torch.Generator().manual_seed(1)
    batches = list(loader(torch, dataset, workers, context, shuffle=True, generator=generator))
    rows = torch.cat([where["patch"] for _, _, where in batches]).numpy()
    assert sorted(rows) == list(range(len(wanted[0])))
    assert (rows != np.sort(rows)).any()
    for side in (0, 1):
        found = torch.cat([batch[side] for batch in batches])
        np.testing.assert_array_equal(found[:, 0].numpy(), wanted[side][rows])
    patients = [name for _, _, where in batches for name in where["patient"]]
    np.testing.assert_array_equal(patients, patients_of(file)[rows])


@few_cores
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_workers_that_are_kept_follow_the_epoch(
    workers: int, context: str | None, file: Path, torch: Any
) -> None:
    dataset = patch_dataset(file, "A01", augment=True, seed=2)
    batches = loader(torch, dataset, workers, context, persistent_workers=workers > 0)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        found = torch.cat([low for low, _ in batches])[:, 0].numpy()
        fresh = patch_dataset(file, "A01", augment=True, seed=2)
        fresh.set_epoch(epoch)
        np.testing.assert_array_equal(found, fresh.read(range(len(fresh)))[0])


@pytest.mark.parametrize("context", [None, "spawn"])
def test_a_transform_is_called_with_the_pair(context: str | None, file: Path, torch: Any) -> None:
    choice = {"scales": [1, 0.6], "orientations": 0, "provenance": True}
    dataset = patch_dataset(file, transform=halved, **choice)
    assert isinstance(dataset, torch.utils.data.Dataset)
    rows = dataset.rows(range(len(dataset)))
    batches = list(loader(torch, dataset, context is not None, context))
    for side, cropped in ((0, slice(None)), (1, slice(4, -4))):
        found = torch.cat([batch[side] for batch in batches])[:, 0].numpy()
        np.testing.assert_array_equal(found, contents(file)[side][rows][:, cropped, cropped] / 2)
    assert torch.cat([batch[2]["patch"] for batch in batches]).tolist() == rows.tolist()
    assert [one.shape for one in dataset[0][:2]] == [(1, 24, 24), (1, 16, 16)]


def test_subsets_and_chains_of_torch_take_it(file: Path, torch: Any) -> None:
    data = torch.utils.data
    dataset = patch_dataset(file)
    part, _ = data.random_split(dataset, [10, len(dataset) - 10])
    assert sum(len(low) for low, _ in data.DataLoader(part, 4)) == 10
    chain = data.ConcatDataset([patch_dataset(file, "A01"), patch_dataset(file, "B02")])
    np.testing.assert_array_equal(
        torch.cat([low for low, _ in data.DataLoader(chain, 16)])[:, 0].numpy(),
        patch_dataset(file, ["A01", "B02"]).read(range(len(chain)))[0],
    )


def test_it_is_pickled_without_what_is_open(file: Path) -> None:
    dataset = PatchReader(file, "C03", augment=True, seed=4)
    dataset.set_epoch(6)
    before = dataset.read([1, 2])
    raw = pickle.dumps(dataset)
    assert len(raw) < 3000 + 8 * len(dataset)
    again = pickle.loads(raw)
    for found, image in zip(again.read([1, 2]), before, strict=True):
        np.testing.assert_array_equal(found, image)
    again.set_epoch(7)  # its own epoch from now on
    np.testing.assert_array_equal(dataset.read([1, 2])[0], before[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_opens_the_file_for_itself(file: Path) -> None:
    dataset = PatchReader(file)
    dataset.read([0])
    parent = dataset._source
    read, write = os.pipe()
    if not (child := os.fork()):
        dataset.read([0])
        os.write(write, b"own" if dataset._source is not parent else b"his")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 3) == b"own"
    dataset.read([0])
    assert dataset._source is parent


# --- TensorFlow and Keras --------------------------------------------------------------------

Images = list[NDArray[Any]]


def in_file_order(found: NDArray[Any], wanted: NDArray[Any]) -> list[int]:
    """Return which patch of the file each found one is."""
    where = {patch.tobytes(): row for row, patch in enumerate(wanted)}
    return [where[patch.tobytes()] for patch in found]


def passes(name: str, file: Path, **options: Any) -> tuple[Images, Callable[[], Images]]:
    """Return the batch shapes of one pass, and a function that makes another pass."""
    if name == "tensorflow":
        tf_data = tf_dataset(file, 32, **options)

        def once() -> Images:
            return [np.concatenate(side) for side in zip(*tf_data.as_numpy_iterator(), strict=True)]

        return [np.array(one.shape) for one in next(tf_data.as_numpy_iterator())], once
    sequence = keras_sequence(file, 32, **options)

    def once_more() -> Images:
        batches = [sequence[i] for i in range(len(sequence))]
        sequence.on_epoch_end()
        return [np.concatenate(side) for side in zip(*batches, strict=True)]

    return [np.array(one.shape) for one in sequence[0]], once_more


@pytest.fixture(params=["tensorflow", "keras"])
def library(request: pytest.FixtureRequest) -> str:
    """Return the name of a library that is there."""
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.mark.filterwarnings("default")
def test_batches_for_tensorflow_and_keras(library: str, file: Path, tf_file: Path) -> None:
    rows = np.flatnonzero(patients_of(file) == "C03")
    wanted = [one[rows] for one in contents(file)]
    for path in (file, tf_file):
        shapes, once = passes(library, path, patients="C03", shuffle=False)
        np.testing.assert_array_equal(shapes, [[32, 24, 24, 1]] * 2)
        for found, image in zip(once(), wanted, strict=True):
            np.testing.assert_array_equal(found[..., 0], image)
    orders = []
    _, once = passes(library, file, patients="C03", seed=1)
    _, again = passes(library, file, patients="C03", seed=1)
    for _ in range(2):
        inputs, targets = once()
        np.testing.assert_array_equal(inputs, again()[0])
        order = in_file_order(inputs, wanted[0])
        assert order == in_file_order(targets, wanted[1])
        assert sorted(order) == list(range(len(rows)))
        orders.append(order)
    assert orders[0] != orders[1] != list(range(len(rows)))


@pytest.mark.filterwarnings("default")
def test_all_loaders_select_and_convert_alike(library: str, file: Path) -> None:
    choice: Any = {"patients": "C03", "scales": 0.8, "unit": "hu", "augment": True, "seed": 4}
    wanted = PatchReader(file, **choice)
    transform = {"transform": halved, "shuffle": False}
    shapes, once = passes(library, file, **choice, **transform)
    np.testing.assert_array_equal(shapes, [[32, 24, 24, 1], [32, 16, 16, 1]])
    first = 1 if library == "tensorflow" else 0  # the pass for the shapes was one
    for epoch in (first, first + 1):
        wanted.set_epoch(epoch)
        low, full = wanted.read(range(len(wanted)))
        inputs, targets = once()
        np.testing.assert_array_equal(inputs[..., 0], low / 2)
        np.testing.assert_array_equal(targets[..., 0], full[:, 4:-4, 4:-4] / 2)


@pytest.mark.filterwarnings("default")
def test_keras_trains_on_them(library: str, file: Path) -> None:
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Conv2D(1, 3, padding="same")])
    model.compile("adam", "mse")
    if library == "tensorflow":
        data = tf_dataset(file)
    else:
        data = keras_sequence(file, augment=True, workers=2)
        assert repr(data).startswith(f"<{len(data)} batches of up to 64 patches of <PatchReader '")
    history = model.fit(data, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
