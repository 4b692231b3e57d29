"""`PatchFile`: patches of a file in its own values and in HU, their provenance, any process."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from ctpatches import PatchFile
from ctpatches.__main__ import main
from ctpatches.checksums import verify
from ctpatches.file import denormalise
from ctpatches.stitching import stitch
from tests.conftest import Tree
from tests.editing import to_version
from tests.running import called


@pytest.fixture(scope="module", params=["torch", "tf"])
def path(
    request: pytest.FixtureRequest, tree: Tree, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a file whose input and target have constants of their own."""
    path = tmp_path_factory.mktemp("files") / "out.h5"
    where = ("--input-folder", tree.root, "--output-fname", path, "--no-report")
    form = ("--patch-size", "p24", "--normalization-type", "std_independent")
    ended = called(path.parent, *where, *form, "--tensor-format", request.param)
    assert ended.status == 0, ended.err
    return path


@pytest.mark.parametrize("indices", [[7, 3, 3, -1], slice(2, 9), range(4), 5, []])
def test_patches_are_those_of_the_file(path, indices):
    with h5py.File(path) as raw, PatchFile(path) as file:
        assert len(file) == len(raw["input"])
        rows = np.atleast_1d(np.arange(len(file))[indices])
        for found, name in zip(file.read(indices), ("input", "target"), strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, raw[name][:].reshape(-1, 24, 24)[rows])


def test_hu_invert_the_normalisation_of_each_image(path):
    with PatchFile(path) as file:
        stored, hu = file.read([40, 2]), file.read([40, 2], unit="hu")
    for values, found, role in zip(stored, hu, ("input", "target"), strict=True):
        assert found.shape == (2, 24, 24)
        np.testing.assert_array_equal(found, denormalise(values, path, [40, 2], role))
        np.testing.assert_allclose(found, found.round(), atol=1e-2)
        assert np.ptp(found) > 10


def test_provenance_patients_and_configuration(path, tree):
    with h5py.File(path) as raw, PatchFile(path) as file:
        assert file.patients == ["A01", "B02", "C03"]
        assert file.config == json.loads(raw.attrs["configuration"])
        assert file.patch_size == 24
        assert file.provenance(9).input_file == raw["pair/input_file"][0].decode()
        with pytest.raises(IndexError, match=f"patch {len(file)} of {len(file)}"):
            file.provenance(len(file))


def test_its_repr_describes_the_file_also_when_closed(path):
    with PatchFile(path) as file:
        expected = (
            f"<PatchFile '{path}': {len(file)} patches of 24 x 24 pixels; "
            "10 pairs of 3 patients: A01, B02, C03; scales 1; "
            "normalization_type std_independent, stored values>"
        )
        assert repr(file) == expected
    assert repr(file) == expected


@pytest.mark.parametrize("indices", [[1.5], ["a"], 10**6, [-(10**6)]])
def test_a_patch_that_there_cannot_be_is_an_error(path, indices):
    with PatchFile(path) as file, pytest.raises(IndexError):
        file.read(indices)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_versions_are_read(path, version, tmp_path):
    old = to_version(Path(shutil.copy(path, tmp_path / "old.h5")), version)
    with PatchFile(path) as new, PatchFile(old) as file:
        assert (file.version, file.config, file.patients) == (version, new.config, new.patients)
        assert file.provenance(9) == new.provenance(9)
        for found, expected in zip(file.read([9], "hu"), new.read([9], "hu"), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(stitch(None, old, 1), stitch(None, path, 1))
    assert verify(old) == []


def first_patch(file: PatchFile) -> bytes:
    return file.read(0)[1].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it(path, method, monkeypatch):
    monkeypatch.chdir(path.parent)
    with PatchFile(path.name) as file:
        monkeypatch.chdir("/")
        expected = first_patch(file)
        assert first_patch(pickle.loads(pickle.dumps(file))) == expected
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(first_patch, file).result() == expected


def test_a_wrong_unit_or_file_is_an_error(path, tmp_path):
    with PatchFile(path) as file, pytest.raises(ValueError, match="unit 'HU'; expected: 'file' or"):
        file.read(0, unit="HU")
    with pytest.raises(FileNotFoundError):
        PatchFile(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        PatchFile(tmp_path / "text.h5")


# --- the commands verify and info ------------------------------------------------------------


def test_info_prints_ten_lines_and_verify_one(path, capsys):
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    found = {line.split()[0]: line for line in out.splitlines()}
    assert len(found) == len(out.splitlines()) == 10
    with h5py.File(path) as raw:
        assert found["patches"].split()[1] == str(len(raw["input"]))
        assert found["pairs"].split()[1] == f"{len(raw['pair/patient'])},"
    assert found["patients"].endswith(" 3: A01, B02, C03")
    assert "normalization_type std_independent" in found["options"]
    assert main(["verify", str(path), str(path)]) == 0
    assert capsys.readouterr().out == 2 * f"{path}: undamaged\n"


def test_verify_names_the_damaged_block(path, tmp_path, capsys):
    copy = tmp_path / "copy.h5"
    data = bytearray(path.read_bytes())
    with h5py.File(path) as raw:
        data[raw["target"].id.get_offset()] ^= 1
    copy.write_bytes(data)
    assert main(["verify", str(copy), str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == f"{path}: undamaged\n"
    assert said.err.startswith(f"ctpatches: error: '{copy}': the block of pair 0 (A01/")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "info"])
def test_what_is_not_a_file_of_ctpatches_is_one_error(command, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("text")
    for name, words in (("text.h5", "is not an HDF5 file"), ("none.h5", "No such file")):
        assert main([command, str(tmp_path / name)]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert words in said.err
    assert main([command]) == main([]) == main(["unknown"]) == 2
