"""Where each patch came from: the file alone, and the scans that it names, give back the pixels.

The scans are read through pydicom and brought to HU, normalised, downscaled and cut by the plain
arithmetic of `tests.naive`; nothing of the tool but `ctpatches.file` and, for noise,
`augment.degrade`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

import augment
from ctpatches.file import PatchFile, Provenance, denormalise
from pipeline.config import NORMALIZATIONS
from tests import naive
from tests.reading import provenance, read_patches
from tests.running import called
from tests.scans import PATIENTS, write_patient
from utils import generator

#: Patches drawn from a file, and from each of many files that differ in their figures alone.
DRAWN, FEWER = 1000, 300
SEED = 11
AUGMENTED = ("--rot_augment", "--ds_augment", "--air_threshold", "--blurr_n_noise")
WINDOW = (-900.0, 600.0)

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A file, patches drawn from it, and where `provenance` says that each came from."""

    path: Path
    root: Path
    kind: str
    intensity: str
    chosen: NDArray[np.int64]
    input: Image
    target: Image
    origins: list[Provenance]

    @property
    def in_hu(self) -> bool:
        """Whether the patches are in HU but for the normalisation."""
        return self.intensity == "hu" or self.kind not in list(NORMALIZATIONS)[:5]

    def patches(self, side: str) -> Image:
        """Return the patches of one side as they are in the file."""
        return self.input if side == "input" else self.target

    def denormalised(self, side: str, unit: str) -> Image:
        """Return the patches of one side as `denormalise` gives them back."""
        return denormalise(self.patches(side), self.path, self.chosen, side, unit)


def make(
    folder: Path, root: Path, kind: str, intensity: str, *more: str, drawn: int = DRAWN
) -> Sample:
    """Make a file with every augmentation, and draw patches from it."""
    options = ["--input-folder", root, "--output-fname", "out.h5", "--seed", SEED, *AUGMENTED]
    options.append("--no-report")
    options += ["--normalization-type", kind, "--intensity", intensity, *more]
    if kind == "hu_window":
        options += ["--hu-window", *WINDOW]
    ended = called(folder, *map(str, options))
    assert ended.status == 0, ended.err
    path = folder / "out.h5"
    with PatchFile(path) as file:
        rng = np.random.default_rng(SEED)
        chosen = np.sort(rng.choice(file.patches, drawn, replace=False))
        patches = file.read(chosen)
        origins = [file.provenance(int(i)) for i in chosen]
    return Sample(path, root, kind, intensity, chosen, *patches, origins)


#: Every normalisation, those that may be of either in both units between them.
CASES = [
    ("None", "stored"),
    ("None", "hu"),
    ("unity_independent", "stored"),
    ("unity_wrt_ld", "hu"),
    ("std_independent", "hu"),
    ("std_wrt_ld", "stored"),
    ("hu_window", "stored"),
    ("dataset_unity", "hu"),
    ("dataset_std", "stored"),
]


def test_every_normalisation_is_among_the_cases():
    assert {kind for kind, _ in CASES} == set(NORMALIZATIONS)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def made_up(request: Any, tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Draw from the made-up scans, whose windows reach past the image."""
    form = ("--patch-size", "p12", "--edge", "pad")
    folder = tmp_path_factory.mktemp("made_up")
    return make(folder, tree.root, *request.param, *form, drawn=FEWER)


@pytest.fixture(scope="module", params=["stored", "hu"])
def unnormalised(request: Any, tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Draw from the made-up scans, all augmented and none normalised."""
    folder = tmp_path_factory.mktemp("unnormalised")
    return make(folder, tree.root, "None", request.param, "--patch-size", "p12")


@pytest.fixture(scope="module")
def real(ldct: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Draw from the real scans."""
    folder = tmp_path_factory.mktemp("real")
    return make(folder, ldct, "std_independent", "hu", "--patch-size", "p64")


@pytest.fixture(scope="module")
def real_unnormalised(ldct: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Draw from the real scans, all augmented and none normalised."""
    folder = tmp_path_factory.mktemp("real_unnormalised")
    return make(folder, ldct, "None", "stored", "--patch-size", "p64")


@lru_cache(maxsize=64)
def hu_of(path: Path) -> Image:
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array.astype(np.float64)
    hu = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return np.asarray(hu, np.float32)


def padded(image: Image, size: int, fill: float) -> Image:
    rows, columns = image.shape
    out = np.full((rows + size, columns + size), fill, np.float32)
    out[:rows, :columns] = image
    return out


def cut(view: Image, origin: Provenance, size: int) -> Image:
    """Return the window of a (padded) view, turned as the file says."""
    window = view[origin.row : origin.row + size, origin.col : origin.col + size]
    return np.asarray(naive.TURNED[origin.orientation](window))


def pristine(sample: Sample, side: str) -> Iterator[tuple[int, Image]]:
    """Yield patches of full size that nothing but turning was done to, as the scans have them."""
    size = sample.target.shape[-1]
    for i, origin in enumerate(sample.origins):
        if origin.scale == 1 and (side == "target" or origin.degradation == "none"):
            file = origin.input_file if side == "input" else origin.target_file
            image = hu_of(sample.root / file)
            if sample.kind == "hu_window":
                image = image.clip(*WINDOW)
            air = max(-1024.0, WINDOW[0]) if sample.kind == "hu_window" else -1024.0
            yield i, cut(padded(image, size, air), origin, size)


class Views:
    """Every view of a file made again: normalised, downscaled, blurred or made noisy."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        with h5py.File(sample.path) as file:
            self.table = {name: file[f"pair/{name}"][...] for name in file["pair"]}
        self.made: dict[tuple[str, int, float], Image] = {}

    def view(self, side: str, origin: Provenance) -> Image:
        """Return the padded view that a patch was cut from."""
        key = (side, origin.pair, origin.scale)
        if key not in self.made:
            self.made[key] = self.remade(side, origin)
        return self.made[key]

    def remade(self, side: str, origin: Provenance) -> Image:
        sample, table = self.sample, self.table
        image = hu_of(sample.root / (origin.input_file if side == "input" else origin.target_file))
        air = np.array([-1024.0])
        if not sample.in_hu:
            slope, intercept = (table[f"{side}_{n}"][origin.pair] for n in ("slope", "intercept"))
            image, air = ((values - intercept) / slope for values in (image, air))
        if sample.kind == "hu_window":
            image, air = image.clip(*WINDOW), air.clip(*WINDOW)
        if sample.kind != "None":
            by = [np.float32(table[f"{side}_{n}"][origin.pair]) for n in ("offset", "divisor")]
            image, air = (naive.normalise(values, (by[0], by[1])) for values in (image, air))
        view = naive.downscale(image.astype(np.float32), origin.scale)
        if side == "input" and origin.degradation != "none":
            rng = generator(SEED, f"noise {origin.scale:g}", origin.input_file)
            unit = table["input_divisor"][origin.pair]
            if not sample.in_hu:
                unit *= table["input_slope"][origin.pair]
            view = augment.degrade(view, origin.degradation, rng, 8 / unit)
            if sample.kind == "hu_window":
                view = view.clip(0, 1)
        return padded(view, sample.target.shape[-1], float(air.astype(np.float32)[0]))


def check_every_patch(sample: Sample, side: str) -> None:
    """Compare every drawn patch, bit for bit, with the window of its view made again."""
    views = Views(sample)
    for patch, origin in zip(sample.patches(side), sample.origins, strict=True):
        expected = cut(views.view(side, origin), origin, patch.shape[-1])
        np.testing.assert_array_equal(patch, expected, err_msg=str(origin))


def check_pristine(sample: Sample, side: str, unit: str, tolerance: float) -> None:
    """Compare what `denormalise` gives back, where no downscaling is involved, with the scans."""
    found = sample.denormalised(side, unit)
    checked = 0
    for i, hu in pristine(sample, side):
        expected = hu if unit == "hu" else hu + 1024  # slope 1, intercept -1024 throughout
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=tolerance)
        checked += 1
    assert checked >= len(found) // (4 if side == "target" else 20)


def check_exact(sample: Sample, side: str) -> None:
    """Compare patches without normalisation with the scans, bit for bit."""
    patches = sample.patches(side)
    for i, hu in pristine(sample, side):
        np.testing.assert_array_equal(patches[i], hu if sample.in_hu else hu + 1024)


SIDES = pytest.mark.parametrize("side", ["input", "target"])


@SIDES
def test_every_patch_is_made_again_from_the_scans(made_up, side):
    check_every_patch(made_up, side)


@SIDES
@pytest.mark.parametrize("unit", ["hu", "stored"])
def test_denormalise_gives_back_the_scans(made_up, side, unit):
    check_pristine(made_up, side, unit, 1e-3)


@SIDES
def test_every_patch_of_real_scans_is_made_again(real, side):
    check_every_patch(real, side)


@SIDES
def test_denormalise_gives_back_real_scans(real, side):
    check_pristine(real, side, "hu", 1e-3)


@SIDES
def test_where_nothing_but_orientation_is_patches_are_the_scans_bit_for_bit(unnormalised, side):
    check_exact(unnormalised, side)


@SIDES
@pytest.mark.parametrize("unit", ["hu", "stored"])
def test_without_normalisation_denormalise_is_exact(unnormalised, side, unit):
    check_pristine(unnormalised, side, unit, 0)


@SIDES
def test_real_patches_are_the_real_scans_bit_for_bit(real_unnormalised, side):
    check_exact(real_unnormalised, side)


def test_the_draw_sees_every_scale_orientation_and_degradation(real):
    assert {o.scale for o in real.origins} == {1.0, 0.8, 0.6}
    assert {o.orientation for o in real.origins} == set(range(6))
    assert {o.degradation for o in real.origins} == {"none", "blur", "noise"}
    assert len({o.target_file for o in real.origins}) == 8


def test_an_image_as_small_as_a_patch_gives_itself(tmp_path):
    (made,) = write_patient(tmp_path / "scans", "A", 1, shape=(24, 24))
    options = ("--patch-size", "p24", "--output-fname", "out.h5")
    assert called(tmp_path, "--input-folder", tmp_path / "scans", *options).status == 0
    found = read_patches(tmp_path / "out.h5", 0)
    np.testing.assert_array_equal(found, [made.input[None], made.target[None]])


# --- what else the file says of a patch ------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the made-up scans, without augmentation."""
    folder = tmp_path_factory.mktemp("plain")
    options = ("--patch-size", "p24", "--tensor-format", "tf", "--output-fname", "out.h5")
    assert called(folder, "--input-folder", tree.root, *options).status == 0
    return folder / "out.h5"


def test_a_patch_has_patient_files_and_position_of_its_slice(plain, tree):
    with h5py.File(plain) as file:
        pairs = file["patch/pair"][...].tolist()
    assert sorted(set(pairs)) == list(range(sum(PATIENTS.values())))
    for i in range(0, len(pairs), 5):
        origin, made = provenance(plain, i), tree.pairs[pairs[i]]
        assert (origin.patient, origin.input_file) == (made.patient, made.input_file)
        assert (origin.target_file, origin.position_mm) == (made.target_file, made.z)


@pytest.mark.parametrize("side", [-1, 0])
def test_a_patch_that_the_file_does_not_have_is_an_index_error(plain, side):
    with h5py.File(plain) as file:
        patches = len(file["input"])
    with pytest.raises(IndexError, match=str(patches)):
        provenance(plain, patches if side == 0 else -1)


def test_patches_are_read_alike_by_number_slice_and_list(plain):
    with h5py.File(plain) as file:
        expected = file["input"][[5, 6, 7]][..., 0]
        for chosen in (slice(5, 8), [5, 6, 7], np.array([5, 6, 7])):
            np.testing.assert_array_equal(read_patches(plain, chosen)[0], expected)
    np.testing.assert_array_equal(read_patches(plain, 5)[0], expected[:1])


def test_patches_are_read_in_the_order_that_is_asked_for(plain):
    found = read_patches(plain, [7, 5, 7])[1]
    for patch, i in zip(found, (7, 5, 7), strict=True):
        np.testing.assert_array_equal(patch, read_patches(plain, i)[1][0])
