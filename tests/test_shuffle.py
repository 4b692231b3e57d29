"""`--shuffle_patches`: the patches of the file that is not shuffled, in random order."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ctpatches import PatchFile, stitch
from ctpatches.__main__ import main
from ctpatches.checksums import verify
from ctpatches.permutation import Permutation
from ctpatches.reader import PatchReader
from ctpatches.schema import REST, ROLES, SCHEMA, STORES, bulk_names, in_store
from tests.conftest import Tree
from tests.editing import flip
from tests.faults import Fault, command, finished_blocks, run
from tests.running import called, ranks_of

OPTIONS = ("--patch-size", "p24", "--rot_augment", "--ds_augment", "--air_threshold", "--seed", "3")
SHUFFLED = "--shuffle_patches"


@pytest.mark.parametrize("n", [*range(70), 127, 128, 129, 1000, 1024, 4093, 65536, 100003])
def test_every_number_comes_exactly_once_and_the_inverse_leads_back(n: int) -> None:
    permutation = Permutation(n, 0, b"A/1.dcm")
    rows = permutation.forward(np.arange(n))
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    np.testing.assert_array_equal(permutation.inverse(rows), np.arange(n))


@pytest.mark.parametrize("n", [1000, 100003])
def test_the_order_is_as_random_as_that_of_a_generator(n: int) -> None:
    drawn = [Permutation(n, seed, b"") for seed in range(20)]
    orders = np.array([one.forward(np.arange(n)) for one in drawn])
    distances = np.abs(np.diff(orders, axis=1))
    assert abs(distances.mean() / n - 1 / 3) < 0.01  # mean distance of two random places
    assert (distances < n / 100).mean() < 0.025  # expected: 0.02
    # Correlations with the place, of neighbours, and between seeds: each of the order 1 / sqrt(n).
    for first, second in ((orders, np.arange(n)), (orders[:, 1:], orders[:, :-1])):
        pairs = zip(orders, np.broadcast_to(second, first.shape), strict=True)
        found = [np.corrcoef(a[-len(b) :], b)[0, 1] for a, b in pairs]
        assert np.abs(found).max() < 4 / np.sqrt(n)
    between = np.corrcoef(orders)[np.triu_indices(len(orders), 1)]
    assert np.abs(between).max() < 5 / np.sqrt(n)


def test_small_orders_are_about_equally_frequent() -> None:
    orders = [tuple(Permutation(3, s, b"").forward(np.arange(3))) for s in range(600)]
    counts = [orders.count(one) for one in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 50


def test_seed_and_first_slice_decide_the_order() -> None:
    drawn = [(0, b"a"), (1, b"a"), (0, b"b"), (10**17, b"")]
    orders = {Permutation(50, *key).forward(np.arange(50)).tobytes() for key in drawn}
    assert len(orders) == len(drawn)
    # Files that exist depend on it: it must never change.
    assert Permutation(10, 0, b"a").forward(np.arange(10)).tolist() == EXPECTED


EXPECTED = [3, 2, 5, 9, 6, 8, 1, 7, 4, 0]


# --- files -----------------------------------------------------------------------------------


def job(tree: Tree, file: str | Path, *options: str) -> list[str]:
    where = ("--input-folder", tree.root, "--output-fname", file, "--no-report")
    return [str(word) for word in (*where, *OPTIONS, *options)]


@dataclasses.dataclass(frozen=True)
class Both:
    """A file that is not shuffled, the same one shuffled, and the rows of its patches in that."""

    plain: Path
    shuffled: Path
    rows: NDArray[np.int64]


@pytest.fixture(scope="module", params=STORES)
def both(request: Any, tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp(request.param)
    for name, options in {"plain.h5": (), "shuffled.h5": (SHUFFLED,)}.items():
        ended = called(folder, *job(tree, name, "--store", request.param, *options))
        assert (ended.status, ended.err) == (0, "")
    with h5py.File(folder / "plain.h5") as file:
        n, first = len(file["patch/pair"]), file["pair/input_file"][0]
    rows = Permutation(n, 3, first).forward(np.arange(n))
    return Both(folder / "plain.h5", folder / "shuffled.h5", rows)


def test_the_file_has_exactly_the_patches_of_the_one_that_is_not_shuffled(both: Both) -> None:
    with h5py.File(both.plain) as plain, h5py.File(both.shuffled) as shuffled:
        store = json.loads(plain.attrs["configuration"])["store"]
        for name in SCHEMA:
            # Checksums of blocks too: they are over the patches in the order of `plain`.
            if in_store(name, store) and name != REST:
                found = shuffled[name][...]
                found = found[both.rows] if SCHEMA[name].row_of == "patch" else found
                assert found.tobytes() == plain[name][...].tobytes(), name
        # A program that reads the file from its beginning finds all patients in the first 30.
        assert len(set(shuffled["patch/pair"][:30])) >= 6 > len(set(plain["patch/pair"][:30]))


@pytest.fixture(scope="module")
def of_ranks(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function for the folder in which so many ranks have created the files of a store.

    Ranks are started once for all stores.
    """

    @functools.cache
    def created(n: int) -> Path:
        folder = tmp_path_factory.mktemp("ranks")
        hand_overs = ("auto", "messages") if n > 1 else ("auto",)
        jobs = [
            job(
                tree,
                f"{store}/{how}.h5",
                "--store",
                store,
                SHUFFLED,
                "--mpi_run",
                f"--hand-over={how}",
            )
            for store in STORES
            for how in hand_overs
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        ended = ranks_of(n, "jobs.py", folder, "jobs.json")
        assert (ended.status, ended.err) == (0, "")
        return folder

    return created


@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(both, of_ranks, n):
    with PatchFile(both.plain) as file:
        found = sorted((of_ranks(n) / file.store).glob("*.h5"))
    assert [path.stem for path in found] == ["auto", "messages"][: min(n, 2)]
    for path in found:
        assert path.read_bytes() == both.shuffled.read_bytes(), path


def test_a_killed_run_is_resumed_to_the_same_bytes(tree, both, tmp_path):
    with PatchFile(both.plain) as file:
        words = job(tree, tmp_path / "x.h5", "--store", file.store, SHUFFLED)
    checkpoint = tmp_path / "x.h5.checkpoint"
    assert run(command(0, words, Fault("kill", "writing", call=5)), tmp_path).status == -9
    finished = finished_blocks(checkpoint)
    assert finished >= 3
    ended = called(tmp_path, *words, "--resume")
    assert (ended.status, ended.err) == (0, "")
    assert f"{finished} of {len(tree.pairs)} pairs were already complete" in ended.out
    assert (tmp_path / "x.h5").read_bytes() == both.shuffled.read_bytes()


def test_resuming_needs_the_same_order(tree, tmp_path):
    words = job(tree, tmp_path / "x.h5", "--resume")
    assert called(tmp_path, *words).status == 0
    ended = called(tmp_path, *words, SHUFFLED)
    assert ended.status == 1
    assert "shuffle_patches was False, is True" in ended.err


def test_one_bit_is_found_in_its_pair(both, tmp_path):
    assert verify(both.shuffled) == []
    copy = tmp_path / "copy.h5"
    copy.write_bytes(both.shuffled.read_bytes())
    rng = np.random.default_rng(0)
    with PatchFile(both.shuffled) as file:
        names = [name for name in bulk_names(file.store) if SCHEMA[name].row_of == "patch"]
        places = {name: file[name].id.get_offset() for name in names}
        widths = {name: file[name].nbytes // len(file) for name in names}
        pairs, files = file["patch/pair"][...], file.texts("pair/input_file")
    for name in names:
        for row in rng.integers(len(pairs), size=3).tolist():
            offset = places[name] + row * widths[name] + widths[name] - 1
            flip(copy, offset, 2)
            (damage,) = verify(copy)
            flip(copy, offset, 2)
            assert f"the block of pair {pairs[row]} ({files[pairs[row]]})" in damage


# --- reading ---------------------------------------------------------------------------------


def test_a_row_is_its_patch_in_hu_and_with_its_provenance(both: Both) -> None:
    chosen = np.random.default_rng(1).permutation(len(both.rows))[:200]
    with PatchFile(both.plain) as plain, PatchFile(both.shuffled) as shuffled:
        for one, other in zip(
            plain.read(chosen, unit="hu"), shuffled.read(both.rows[chosen], unit="hu"), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        for patch in chosen[:20].tolist():
            assert plain.provenance(patch) == shuffled.provenance(int(both.rows[patch]))


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"patients": ["A01", "C03"]},
        {"scales": 0.6, "orientations": [0, 4]},
        {"patients": "C03", "scales": [1, 0.8]},
    ],
)
def test_a_selection_has_its_patches_in_the_order_of_the_file(both, selection, monkeypatch):
    monkeypatch.setattr("ctpatches.reader.MAX_ROWS", 100)
    plain, shuffled = (PatchReader(path, **selection) for path in (both.plain, both.shuffled))
    expected = np.sort(both.rows[plain.rows(range(len(plain)))])
    np.testing.assert_array_equal(shuffled.rows(range(len(shuffled))), expected)


@pytest.mark.parametrize("scale", [1, 0.8, 0.6])
@pytest.mark.parametrize("role", ROLES)
def test_slices_are_assembled_from_the_file_and_from_outputs(both, role, scale):
    with PatchFile(both.plain) as plain, PatchFile(both.shuffled) as shuffled:
        output = np.asarray(plain.images(role, slice(None)) * np.float32(1.1))
        of_file = np.empty_like(output)
        of_file[both.rows] = output  # what a network makes of the shuffled file
        for pair in (0, 4):
            rows = np.sort(np.r_[shuffled.rows_of(pair)])
            of_scale = rows[shuffled["patch/scale"][...][rows] == np.float32(scale)]
            expected = stitch(output, plain, pair, role, scale)
            assert not np.isnan(expected).all()
            for values in (of_file, of_file[rows], of_file[of_scale]):
                found = stitch(values, shuffled, pair, role, scale)
                assert found.tobytes() == expected.tobytes()
            found = stitch(None, shuffled, pair, role, scale)
            assert found.tobytes() == stitch(None, plain, pair, role, scale).tobytes()


@pytest.mark.parametrize("form", ["npy", "h5"])
def test_the_command_stitches_outputs_of_the_file_and_of_a_patient(both, tmp_path, capsys, form):
    with PatchFile(both.plain) as plain, PatchFile(both.shuffled) as shuffled:
        output = plain.images("input", slice(None)) + np.float32(7)
        patient = plain.patients[1]
        of_file = np.empty_like(output)
        of_file[both.rows] = output
        mine = np.flatnonzero(np.equal(plain.texts("pair/patient"), patient)).tolist()
        rows = np.sort(np.r_[tuple(map(shuffled.rows_of, mine))])
        expected = np.stack([stitch(output, plain, pair) for pair in mine])
    for name, values in {"all": of_file, "patient": of_file[rows]}.items():
        path = str(tmp_path / f"{name}.{form}")
        if form == "npy":
            np.save(path, values)
        else:
            with h5py.File(path, "w") as file:
                file["output"] = values
            path += ":output"
        out = tmp_path / "volume.npy"
        words = ["--patient", patient, "--values", path, "--output", str(out), "--overwrite"]
        assert main(["stitch", str(both.shuffled), *words]) == 0, capsys.readouterr().err
        np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.parametrize("both", ["patches"], indirect=True)
def test_the_report_is_about_the_same_patches(tree, both, tmp_path):
    words = [*job(tree, "x.h5"), "--sheets", "1"]
    words.remove("--no-report")
    reports, images = [], []
    for name, options in {"plain": (), "shuffled": (SHUFFLED,)}.items():
        assert called(tmp_path / name, *words, *options).status == 0
        folder = tmp_path / name / "sanity_check" / "x"
        reports.append(json.loads((folder / "report.json").read_text()))
        images.append({path.name: path.read_bytes() for path in folder.glob("coverage_*.png")})
    plain, shuffled = reports
    assert len(images[0]) == 1
    assert images[0] == images[1]
    assert plain["histograms"] == shuffled["histograms"]
    index = np.sort(both.rows[plain["sample"]["index"]]).tolist()
    assert shuffled["sample"] == plain["sample"] | {"index": index}
    with PatchFile(tmp_path / "shuffled" / "x.h5") as file:
        for sheet in shuffled["sheets"]:
            for facts in sheet["patches"]:
                patch = facts.pop("patch")
                assert facts == vars(file.provenance(patch))
