"""Patches that are cut from stored views: the same, bit for bit, as those of a file of patches."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctpatches import PatchFile
from ctpatches.reader import PatchReader
from ctpatches.tensorflow import keras_sequence, tf_dataset
from pipeline.config import NORMALIZATIONS
from tests.conftest import Tree
from tests.running import called
from tests.scans import write_patient

#: 24 pixels a side fit into every view of the tree.
FORM = ("--patch-size", "p24", "--rot_augment", "--ds_augment", "--air_threshold")
Both = tuple[Path, Path]


def make(scans: Path, folder: Path, *options: str) -> Both:
    """Return a file of patches and one of views."""
    out = []
    for store in ("patches", "views"):
        path = folder / f"{store}.h5"
        where = ("--input-folder", scans, "--output-fname", path, "--no-report", "--quiet")
        ended = called(folder, *where, "--store", store, *options)
        assert ended.status == 0, ended.err
        out.append(path)
    return out[0], out[1]


@pytest.fixture(scope="module")
def both(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Files of patches and of views; read only."""
    return make(tree.root, tmp_path_factory.mktemp("both"), *FORM, "--edge", "pad")


def assert_alike(both: Both, **options: Any) -> None:
    """Compare all patches of two files, in an order that is not that of the file."""
    patches, views = (PatchReader(path, **options) for path in both)
    order = np.random.default_rng(0).permutation(len(patches))
    assert len(views) == len(patches) > 0
    for one, other in zip(patches.read(order), views.read(order), strict=True):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        *(
            ("--normalization-type", name, "--blurr_n_noise", "--seed", "3")
            for name in NORMALIZATIONS
        ),
        ("--edge", "pad", "--tensor-format", "tf"),
        ("--edge", "pad", "--overlap", "5", "--dtype", "float16"),
        ("--normalization-type", "None", "--dtype", "int16"),
    ],
    ids=" ".join,
)
def test_every_patch_is_that_of_a_file_of_patches(
    options: tuple[str, ...], tree: Tree, tmp_path: Path
) -> None:
    assert_alike(make(tree.root, tmp_path, *FORM, *options))


def test_every_patch_of_real_scans(ldct: Path, tmp_path: Path) -> None:
    form = ("--patch-size", "p55", "--rot_augment", "--ds_augment", "--air_threshold")
    assert_alike(make(ldct, tmp_path, *form, "--blurr_n_noise"))


@pytest.mark.parametrize(
    "choice",
    [
        {"patients": ["A01", "C03"], "augment": True, "unit": "hu"},
        {"scales": [1, 0.6], "orientations": [0, 2, 5]},
        {"patients": "B02", "scales": 0.8},
    ],
    ids=str,
)
def test_a_selection_is_that_of_a_file_of_patches(choice: dict[str, Any], both: Both) -> None:
    assert_alike(both, **choice)


@pytest.mark.parametrize("indices", [[7, 3, 3, -1], slice(150, 2, -9), 5, []], ids=str)
def test_a_patch_file_reads_any_of_them(indices: Any, both: Both) -> None:
    with PatchFile(both[0]) as patches, PatchFile(both[1]) as views:
        for unit in ("file", "hu"):
            for one, other in zip(
                patches.read(indices, unit), views.read(indices, unit), strict=True
            ):
                np.testing.assert_array_equal(one, other)
        assert views.provenance(9) == patches.provenance(9)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_loader_of_torch_gives_the_same(workers: int, context: str | None, both: Both) -> None:
    torch = pytest.importorskip("torch")
    from ctpatches.torch import PatchDataset

    dataset = pickle.loads(pickle.dumps(PatchDataset(both[1], augment=True)))
    order = np.random.default_rng(1).permutation(len(dataset))
    rest: Any = {"num_workers": workers, "multiprocessing_context": context}
    batches = torch.utils.data.DataLoader(dataset, 32, sampler=order.tolist(), **rest)
    found = [torch.cat(side)[:, 0].numpy() for side in zip(*batches, strict=True)]
    for one, other in zip(PatchReader(both[0], augment=True).read(order), found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("default")
def test_tensorflow_and_keras_give_the_same(both: Both) -> None:
    pytest.importorskip("tensorflow")
    for of_patches, of_views in (
        (tf_dataset(path, 32, seed=2).as_numpy_iterator() for path in both),
        (keras_sequence(path, 32, seed=2, augment=True) for path in both),
    ):
        for one, other in zip(of_patches, of_views, strict=True):
            np.testing.assert_array_equal(one, other)


def test_views_are_stored_in_strips_of_128_columns(tmp_path: Path) -> None:
    write_patient(tmp_path / "scans", "A", 1, shape=(40, 150))
    patches, views = make(tmp_path / "scans", tmp_path, "--patch-size", "p24", "--overlap", "7")
    with h5py.File(patches) as of_patches, h5py.File(views) as file:
        pixels = file["views/target"][:]
        left = pixels[: 40 * 128].reshape(40, 128)
        view = np.concatenate([left, pixels[40 * 128 :].reshape(40, 22)], axis=1)
        places = zip(file["patch/row"][:], file["patch/col"][:], strict=True)
        found = [view[row : row + 24, col : col + 24] for row, col in places]
        assert 119 in file["patch/col"][:]  # in both strips
        np.testing.assert_array_equal(of_patches["target"][:, 0], found)


def test_a_compressed_copy_is_read_alike(both: Both, tmp_path: Path) -> None:
    packed = tmp_path / "packed.h5"
    with h5py.File(shutil.copy(both[1], packed), "r+") as file:
        for role in ("input", "target"):
            values = file[f"views/{role}"][...]
            del file[f"views/{role}"]
            file.create_dataset(f"views/{role}", data=values, chunks=True, compression="gzip")
    assert_alike((both[0], packed))


def test_a_truncated_file_is_an_error_that_names_it(both: Both, tmp_path: Path) -> None:
    path = Path(shutil.copy(both[1], tmp_path / "short.h5"))
    dataset = PatchReader(path)
    dataset.read([0])
    with h5py.File(path) as file:
        end = file["views/target"].id.get_offset()
    with open(path, "r+b") as raw:
        raw.truncate(end)
    with pytest.raises(OSError, match=r"short\.h5' ends before byte \d+: it was truncated"):
        dataset.read([0])


def set_value(name: str, at: int, value: Any) -> Callable[[h5py.File], None]:
    """Return a change of one value of a dataset."""

    def change(file: h5py.File) -> None:
        file[name][at] = value

    return change


TABLES = "the tables of views/ do not match"
FORGED = {
    "a pair that there is not": (set_value("views/pair", -1, 1 << 31), TABLES),
    "pairs in another order": (set_value("views/pair", 0, 5), TABLES),
    "an unknown scale": (set_value("views/scale", 1, 0.7), TABLES),
    "no number as scale": (set_value("views/scale", 1, np.nan), TABLES),
    "a view twice": (set_value("views/scale", 1, 1), TABLES),
    "an offset beyond the end": (set_value("views/offset", -1, (1 << 64) - 1), TABLES),
    "more rows than pixels": (set_value("views/rows", -1, 8192), TABLES),
    "rows beyond all limits": (set_value("views/rows", 2, (1 << 32) - 1), TABLES),
    "fewer columns than the slice": (set_value("views/columns", 0, 1), TABLES),
    "a window beyond the view": (
        set_value("patch/col", 4, 1 << 30),
        "patch 4 has .*col 1073741824",
    ),
    "a window before the view": (set_value("patch/row", 4, -1), "patch 4 has .*row -1"),
    "an unknown orientation": (set_value("patch/orientation", 4, 6), "patch 4 has .*tion 6"),
    "a patch of another pair": (set_value("patch/pair", 4, 2), "patch 4 has pair 2"),
}


@pytest.mark.parametrize(("change", "words"), FORGED.values(), ids=FORGED)
def test_views_that_cannot_be_are_refused(
    change: Callable[[h5py.File], None], words: str, both: Both, tmp_path: Path
) -> None:
    path = Path(shutil.copy(both[1], tmp_path / "forged.h5"))
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"forged\.h5' is damaged: {words}"):
        PatchReader(path)
    with (
        pytest.raises(ValueError, match=rf"forged\.h5' is damaged: {words}"),
        PatchFile(path) as one,
    ):
        one.read([4])
