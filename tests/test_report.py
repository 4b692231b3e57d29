"""The report on a file: its figures are true, its page is whole, harmless and legible."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from ctpatches.file import denormalise
from patching import Grid
from pipeline import command_line
from pipeline.config import FILE_OPTIONS, NORMALIZATIONS, OPTIONS, Config
from pipeline.difference import measure
from pipeline.model import Difference, Names, PairPlan, Plan
from pipeline.report import figures, page, sanity, spectrum, statistics
from pipeline.report.contents import command
from tests.editing import edit
from tests.faults import mounted, one_error
from tests.provenance import squeezed
from tests.running import called, ranks, serial
from tests.scans import phantom, write_patient, write_slice

HOSTILE = ("<script>alert(1)<", "two\nlines\t'q\" & $x$", "\u0645\u0631\u064a\u0636 \u60a3\u8005")
EVERYTHING = (
    *("--rot_augment", "--ds_augment", "--air_threshold", "--blurr_n_noise"),
    *("--patch-size", "p24", "--sheets", "1"),
)
UNDRAWN = ("--patch-size", "p24", "--sheets", "0")
SMALL = ("--patch-size", "p24", "--no-report")


@dataclass(frozen=True)
class Run:
    """A finished run, in a working folder of its own."""

    cwd: Path
    file: Path
    argv: list[str]

    def folder(self, name: str = "") -> Path:
        """Return the folder of the report; of another file of the run by its name."""
        return self.cwd / "sanity_check" / (name or self.file.name.removesuffix(".h5"))

    @property
    def page(self) -> Path:
        return self.folder() / "report.html"

    @property
    def text(self) -> str:
        return self.page.read_text(encoding="utf-8")

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder() / "report.json").read_text())
        return facts

    def again(self, *more: str) -> None:
        """Complete the report of the same job."""
        ended = called(self.cwd, *self.argv, "--resume", *more)
        assert (ended.status, ended.err) == (0, "")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(root: Path, file: Path, *options: str) -> Run:
    argv = ["--input-folder", str(root), "--output-fname", str(file), *options]
    ended = called(file.parent, *argv)
    assert (ended.status, ended.err) == (0, "")
    return Run(file.parent, file, argv)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory) -> Run:
    """Return a job with every augmentation, normalised."""
    file = tmp_path_factory.mktemp("whole") / "out.h5"
    return run(tree.root, file, *EVERYTHING, "--normalization-type", "unity_independent")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Run:
    """Return a job whose patients and file have names that are markup or worse."""
    root = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        write_patient(root / "scans", name, 2)
    write_slice(root / "scans" / HOSTILE[0] / "quarter_3mm" / "alone.dcm", phantom((64, 80), 9)[0])
    options = ["--unpaired", "skip", "--random_N", "3", "--patch-size", "p24", "--air_threshold"]
    return run(root / "scans", root / 'a "b" & <i>.h5', *options, "--sheets", "2")


# --- the figures are true --------------------------------------------------------------------


def by_patient(file: Path) -> dict[str, int]:
    """Count the patches of each patient, one by one."""
    counts: dict[str, int] = {}
    with h5py.File(file) as opened:
        patients = opened["pair/patient"].asstr()[...]
        for pair in opened["patch/pair"][...]:
            counts[patients[pair]] = counts.get(patients[pair], 0) + 1
    return counts


def test_counts_are_those_of_the_file(whole, tree, tmp_path):
    facts = whole.facts
    every = run(tree.root, tmp_path / "all.h5", "--ds_augment", *SMALL)
    patches, windows = by_patient(whole.file), by_patient(every.file)
    pairs = [made.patient for made in tree.pairs]
    for one in facts["patients"]:
        name = one["patient"]
        assert one["patches"] == patches[name] == 3 * one["kept"]
        assert one["windows"] == windows[name] == one["kept"] + one["air"]
        assert one["pairs"] == pairs.count(name)
    totals = facts["totals"]
    assert [one["patient"] for one in facts["patients"]] == sorted(patches)
    assert (totals["patients"], totals["pairs"]) == (len(patches), len(pairs))
    assert (totals["patches"], totals["windows"]) == (sum(patches.values()), sum(windows.values()))
    assert facts["bytes"] == os.path.getsize(whole.file)


def test_counts_per_scale_are_those_of_the_file(whole, tree, tmp_path):
    every = run(tree.root, tmp_path / "all.h5", "--ds_augment", *SMALL)
    found = {}
    for name, one in (("patches", whole), ("windows", every)):
        with h5py.File(one.file) as file:
            scales = file["patch/scale"][...].round(6).tolist()
        found[name] = {scale: scales.count(np.float32(scale)) for scale in (1, 0.8, 0.6)}
    for one in whole.facts["scales"]:
        assert one["patches"] == found["patches"][one["scale"]] == 3 * one["kept"]
        assert one["windows"] == found["windows"][one["scale"]] == one["kept"] + one["air"]
    assert [one["scale"] for one in whole.facts["scales"]] == [1, 0.8, 0.6]


def test_the_sample_is_of_all_patients_and_not_rotated(whole):
    index = whole.facts["sample"]["index"]
    assert index == sorted(set(index))
    with h5py.File(whole.file) as file:
        assert not file["patch/orientation"][...][index].any()
        patients = set(file["pair/patient"].asstr()[...][file["patch/pair"][...][index]])
    assert patients == {"A01", "B02", "C03"}


def sampled_hu(made: Run, role: str) -> Any:
    """Return the sampled pixels of a role, HU, as the file has them."""
    index = made.facts["sample"]["index"]
    with h5py.File(made.file) as file:
        return denormalise(squeezed(file[role])[index], made.file, index, role).ravel()


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_histograms_count_the_sampled_pixels_by_integer_hu(tree, tmp_path, kind):
    made = run(tree.root, tmp_path / "o.h5", *UNDRAWN, "--normalization-type", kind)
    whole, soft = made.facts["histograms"]
    for panel in (whole, soft):
        edges = np.array(panel["edges"])
        width = int(edges[1] - edges[0])
        # Each bin has as many integers as the others, and none of them at an edge.
        assert (edges == edges[0] + width * np.arange(len(edges))).all()
        assert edges[0] % 1 == 0.5
        for role in ("input", "target"):
            hu = np.rint(sampled_hu(made, role))
            expected, _ = np.histogram(hu, edges)
            assert panel["counts"][role] == expected.tolist()
            assert panel["outside"][role] == hu.size - expected.sum()
    assert (soft["edges"][0], soft["edges"][-1]) == (-160.5, 239.5)


def test_clipped_pixels_are_counted_and_in_no_bin(tree, tmp_path):
    window = ("--normalization-type", "hu_window", "--hu-window", "-100", "50")
    made = run(tree.root, tmp_path / "o.h5", *UNDRAWN, *window)
    (panel,) = made.facts["histograms"]
    assert (panel["edges"][0], panel["edges"][-1]) == (-99.5, 49.5)
    other = run(tree.root, tmp_path / "hu.h5", *SMALL, "--intensity", "hu")
    clipped = made.facts["clipped"]
    with h5py.File(other.file) as file:
        assert clipped["pixels"] == file["input"].size
        for role in ("input", "target"):
            below, above = (file[role][...] < -100).sum(), (file[role][...] > 50).sum()
            assert clipped[role] == {"below": below, "above": above}
            inside = sampled_hu(made, role)
            inside = inside[(inside > -99.5) & (inside < 49.5)]
            assert sum(panel["counts"][role]) == len(inside) > 0
    assert f'<td class="n">{100 * below / clipped["pixels"]:.1f}' in made.text


@pytest.mark.parametrize("slope", [2, 0.5])
def test_no_bin_has_more_of_the_values_that_can_occur(tmp_path, slope):
    write_patient(tmp_path / "scans", "A", 2, slope=slope)
    for panel in run(tmp_path / "scans", tmp_path / "o.h5", *UNDRAWN).facts["histograms"]:
        width = panel["edges"][1] - panel["edges"][0]
        assert width % slope == 0
        assert (panel["edges"][0] + 1024) % slope == slope / 2


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Run:
    """Return a job with enough pixels for the noise of one patient, and too few for the other's."""
    root = tmp_path_factory.mktemp("large")
    doses = {"quarter_3mm": 30, "full_3mm": 120}
    for name, slices in (("A", 4), ("B", 1)):  # one input of five is not degraded
        write_patient(root / "scans", name, slices, shape=(256, 240))
        for folder, exposure in doses.items():
            for path in (root / "scans" / name / folder).iterdir():
                edit(path, Exposure=exposure if name == "A" else 100)
    window = ("--normalization-type", "hu_window", "--hu-window", "-100", "50")
    form = ("--patch-size", "p64", "--sheets", "1")
    return run(root / "scans", root / "out.h5", *EVERYTHING[:4], *form, *window)


def test_noise_is_that_of_all_patches_at_scale_1_before_clipping_and_degradation(large, tmp_path):
    facts = large.facts
    options = ("--air_threshold", "--intensity", "hu", "--no-report", "--patch-size", "p64")
    other = run(Path(large.argv[1]), tmp_path / "hu.h5", *options)
    with h5py.File(other.file) as file:
        difference = (file["input"][...] - file["target"][...]).astype(np.float64)
        of_a = file["pair/patient"][...][file["patch/pair"][...]] == b"A"
    one, few = (patient["noise"] for patient in facts["patients"])
    assert few is None
    independent = difference[of_a].size * (1 - 4 / 64) ** 2 / 25
    sd = difference[of_a].std()
    assert one == {
        "pixels": difference[of_a].size,
        "sd_hu": pytest.approx(sd, rel=1e-12),
        "sd_error_hu": pytest.approx(sd / np.sqrt(2 * independent), rel=1e-12),
        "mean_hu": pytest.approx(difference[of_a].mean(), rel=1e-9),
        "mean_error_hu": pytest.approx(sd / np.sqrt(independent), rel=1e-12),
    }
    assert one["sd_error_hu"] < 0.01 * one["sd_hu"]
    assert facts["doses"] == [
        {"dose": "25 %", "patients": 1, "noise": one},
        {"dose": "not recorded", "patients": 1, "noise": None},
    ]
    assert f"{sd:.2f} &plusmn;" in large.text
    assert '<bdi>B</bdi></th><td class="n">&ndash;</td>' in large.text


def test_with_clipping_degraded_pairs_are_in_no_histogram(large):
    with h5py.File(large.file) as file:
        pairs = file["patch/pair"][...][large.facts["sample"]["index"]]
        plain = file["pair/degradation"][...][pairs] == b"none"
    assert 0 < plain.sum() < len(plain)
    for panel in large.facts["histograms"]:
        for role in ("input", "target"):
            assert sum(panel["counts"][role]) + panel["outside"][role] == 64**2 * plain.sum()


def test_the_sums_of_a_pair_are_those_of_its_windows():
    rng = np.random.default_rng(0)
    for edge, shape, overlap in (
        ("shift", (60, 70), 4),
        ("pad", (50, 99), 4),
        ("pad", (30, 24), 23),
    ):
        low, full = (rng.integers(-999, 2000, shape).astype(np.float32) for _ in range(2))
        config = Config("", patch_size=24, overlap=overlap, edge=edge)
        clipped = dataclasses.replace(
            config, normalization_type="hu_window", hu_window=(-160.0, 240.0)
        )
        grid = Grid(shape, config)
        kept = rng.random(len(grid)) < 0.6
        corners = [corner for *corner, keep in zip(*grid.windows, kept, strict=True) if keep]
        windows = [
            np.concatenate([image[r : r + 24, c : c + 24].ravel() for r, c in corners])
            for image in (low, full)
        ]
        a, b = (window.astype(np.int64) for window in windows)
        outside = [test.sum() for one in (a, b) for test in (one < -160, one > 240)]
        expected = (len(a), (a - b).sum(), ((a - b) ** 2).sum(), *outside)
        assert measure(low, full, kept, clipped) == expected
        assert measure(low, full, kept, config)[:3] == expected[:3]
        assert measure(low, full, np.zeros(len(grid), bool), config) == Difference()


def test_the_integral_of_the_noise_power_is_the_variance_without_the_trend():
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    trend = 5 + 30 * x - 9 * y + 80 * x * x + 3 * x * y - 50 * y * y
    noise = np.random.default_rng(0).normal(0, 20, (64, 64))
    spacing = (0.5, 0.8)
    basis = np.stack([x**0, x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    rest = noise.ravel() - basis @ np.linalg.lstsq(basis, noise.ravel())[0]
    power = spectrum.power((noise + trend).astype(np.float32), spacing)
    step = 1 / (64 * spacing[0] * 64 * spacing[1])
    assert power.sum() * step == pytest.approx(rest.var(), rel=1e-5)


def test_the_spectrum_of_white_noise_is_flat(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        full = rng.integers(900, 1100, (256, 256))
        low = full + rng.normal(0, 50, full.shape).round().astype(int)
        for folder, image in (("quarter_3mm", low), ("full_3mm", full)):
            path = tmp_path / "scans" / "A" / folder / f"{number}.dcm"
            write_slice(path, image.astype(np.uint16), z=3.0 * number, PixelSpacing=[0.5, 0.5])
    options = ("--patch-size", "p64", "--anatomy-check", "off", "--sheets", "0")
    facts = run(tmp_path / "scans", tmp_path / "o.h5", *options).facts["noise_power"]
    assert (facts["regions"], facts["slices"]) == (4 * 7 * 7, 4)
    assert facts["per_mm"] == [round(i / 32, 6) for i in range(1, 33)]
    # The fit takes a part of the lowest frequencies.
    np.testing.assert_allclose(facts["hu2_mm2"][3:], 50**2 * 0.5**2, rtol=0.15)
    assert np.mean(facts["hu2_mm2"][3:]) == pytest.approx(50**2 * 0.5**2, rel=0.02)


def test_without_spacing_there_is_no_spectrum(tmp_path):
    write_patient(tmp_path / "scans", "A", 1, shape=(256, 240), PixelSpacing=None)
    made = run(tmp_path / "scans", tmp_path / "o.h5", "--patch-size", "p64", "--sheets", "0")
    assert made.facts["noise_power"] is None
    assert "Not measured: the scans have no Pixel Spacing (0028,0030)" in made.text


@pytest.mark.parametrize(
    ("options", "unit"),
    [
        ((), "stored values"),
        (("--intensity", "hu"), "HU"),
        (("--normalization-type", "hu_window"), "normalised (hu_window)"),
    ],
)
def test_the_unit_of_the_file_is_named(tree, tmp_path, options, unit):
    made = run(tree.root, tmp_path / "out.h5", *UNDRAWN, *options)
    assert made.facts["unit"] == unit
    assert unit in made.text


def test_the_fingerprint_is_the_checksum_of_the_file(whole):
    with h5py.File(whole.file) as file:
        assert whole.facts["fingerprint"] == bytes(file["checksum"][...]).hex()


def test_each_file_of_a_split_has_its_report(tree, tmp_path):
    made = run(tree.root, tmp_path / "out.h5", "--sheets", "0", "--split", "0.34", "0.33", "0.33")
    patients = []
    for subset in ("train", "val", "test"):
        facts = json.loads((made.folder(f"out_{subset}") / "report.json").read_text())
        assert (facts["subset"], facts["file"]) == (subset, f"out_{subset}.h5")
        patients += [one["patient"] for one in facts["patients"]]
    assert sorted(patients) == ["A01", "B02", "C03"]


def embedded(made: Run) -> list[bytes]:
    """Return the images of a page in their order."""
    urls = re.findall(r'src="data:image/png;base64,([^"]*)"', made.text)
    return [base64.b64decode(url) for url in urls]


def test_the_page_shows_the_first_sheet(whole):
    assert embedded(whole)[0] == (whole.folder() / "patches_1.png").read_bytes()


def test_the_page_shows_the_charts_of_its_own_numbers(large):
    facts = large.facts
    with figures.style():
        expected = [figures.noise(facts["patients"])]
        if facts["noise_power"]:
            expected.append(figures.spectrum(facts["noise_power"]))
        for one in facts["histograms"]:
            expected.append(figures.histogram(one, facts["unit"], facts["unit_map"]))
        for figure in expected:
            assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
        found = embedded(large)[1 : 1 + len(expected)]
        assert found == [figures.png(one) for one in expected]


def test_the_page_shows_the_coverage_images_of_the_folder(whole):
    images = [path.read_bytes() for path in whole.folder().glob("coverage_*.png")]
    assert embedded(whole)[-1:] == images


# --- the page is whole and harmless ----------------------------------------------------------


VOID = {"meta", "link", "img", "br", "line"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects attributes and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(params=["whole", "hostile"])
def parsed(request) -> Page:
    one: Run = request.getfixturevalue(request.param)
    return Page(one.text)


def test_all_that_is_opened_is_closed(parsed):
    assert {"header", "main", "footer", "nav", "h1", "table"} <= {tag for tag, _ in parsed.tags}


def test_nothing_is_fetched_and_nothing_runs(parsed):
    text = "".join(parsed.words)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert re.match(r"data:|#", value or ""), (tag, value)


def test_images_and_tables_can_be_read_aloud(parsed):
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    for tag, attributes in parsed.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
    tables = [tag for tag, _ in parsed.tags].count("table")
    assert tables == [tag for tag, _ in parsed.tags].count("caption")
    assert dict(parsed.tags)["html"] == {"lang": "en"}


def test_no_escape_code_of_ours_is_shown(whole):
    # A narrow space in a name is a control character to `printable`; in our words it must
    # stay a space.
    assert re.search(r"\\[xu]", whole.text) is None


def test_names_are_no_markup_and_break_no_line(hostile):
    text = hostile.text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert "<bdi>two\\nlines\\t&#39;q&#34; &amp; $x$</bdi>" in text
    assert f"<bdi>{HOSTILE[2]}</bdi>" in text
    assert "<h1><bdi>a &#34;b&#34; &amp; &lt;i&gt;.h5</bdi></h1>" in text
    assert {one["patient"] for one in hostile.facts["patients"]} == set(HOSTILE)


def test_what_was_left_out_and_warned_of_is_listed(hostile):
    facts = hostile.facts
    assert facts["left_out"] == [
        {
            "patient": HOSTILE[0],
            "files": [f"{HOSTILE[0]}/quarter_3mm/alone.dcm"],
            "reason": facts["left_out"][0]["reason"],
            "kind": "unpaired",
        }
    ]
    assert len(facts["warnings"]) == 3
    assert "/quarter_3mm/alone.dcm" in hostile.text
    assert hostile.text.count("fewer than --random_N 3") == 3
    assert f"{facts['totals']['air']} windows of air" in hostile.text


def test_the_same_job_gives_the_same_bytes(whole, tree, tmp_path):
    expected = contents(whole.folder())
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsavefig.dpi: 20\naxes.grid: True\n")
    home = {"HOME": "/proc/none", "XDG_CONFIG_HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    for extra in ({"MPLCONFIGDIR": str(tmp_path)}, {"MPLBACKEND": "svg", **home}):
        shutil.rmtree(whole.folder())
        ended = serial(whole.cwd, *whole.argv, "--resume", extra=extra)
        assert (ended.status, ended.err) == (0, "")
        assert contents(whole.folder()) == expected


def test_ranks_write_the_report_of_the_serial_run(whole, tmp_path):
    options = [*whole.argv, "--output-fname", str(tmp_path / "out.h5"), "--mpi_run"]
    ended = ranks(3, tmp_path, *options, "--hand-over=messages", "--quiet")
    assert (ended.status, ended.err) == (0, "")
    assert contents(tmp_path / "sanity_check" / "out") == contents(whole.folder())


def test_without_a_report_the_file_is_the_same_and_alone(whole, tmp_path):
    options = [*whole.argv, "--output-fname", "out.h5", "--no-report"]
    ended = called(tmp_path, *options)
    assert (ended.status, ended.err) == (0, "")
    assert "report" not in ended.out
    assert {path.name for path in tmp_path.iterdir()} == {"out.h5"}
    assert (tmp_path / "out.h5").read_bytes() == whole.file.read_bytes()


def test_a_run_without_a_report_needs_neither_matplotlib_nor_jinja2(tree, tmp_path):
    for name in ("matplotlib", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    extra = {"PYTHONPATH": str(tmp_path)}
    argv = ["--input-folder", tree.root, "--output-fname", "o.h5", "--patch-size", "p24"]
    assert serial(tmp_path, *argv, "--no-report", extra=extra).status == 0


def test_no_folder_is_named(whole):
    for text in (whole.text, (whole.folder() / "report.json").read_text()):
        assert str(whole.cwd) not in text
        assert str(Path(whole.argv[1]).parent) not in text
    assert whole.facts["command"][:3] == [
        *("python main.py", "--input-folder scans", "--output-fname out.h5")
    ]


def test_pseudonyms_hide_every_name(tmp_path):
    root = tmp_path / "Erika Mustermann" / "Max"
    write_patient(root, "Mustermann", 2)
    write_patient(root, "Doe", 4)
    alone = root / "Doe" / "quarter_3mm" / "secret.dcm"
    write_slice(alone, phantom((64, 80), 9)[0])
    patterns = ("--input-gen-folder", "quarter_3m*", "--target-gen-folder", "full_3m*")
    options = (
        "--anonymize",
        "--unpaired",
        "skip",
        "--random_N",
        "3",
        "--patch-size",
        "p24",
        "--sheets",
        "2",
    )
    made = run(root, tmp_path / "Erika Mustermann" / "out.h5", *options, *patterns)
    page_without_images = re.sub(r'src="data:image/png[^"]*"', "", made.text)
    names = " ".join(path.name for path in made.folder().iterdir())
    for text in (page_without_images, (made.folder() / "report.json").read_text(), names):
        for secret in ("Erika", "Mustermann", "Max", "Doe", "secret", "quarter_", "full_3m"):
            assert secret not in text
    coverage = sorted(path.name for path in made.folder().glob("coverage_*.png"))
    assert {name[:14] for name in coverage} == {"coverage_P0001", "coverage_P0002"}
    assert "P0001" in made.text
    assert "fewer than --random_N: 1" in made.text
    facts = made.facts
    assert facts["command"][1:3] == ["--input-folder \u2026", "--output-fname \u2026"]
    assert [(one["patient"], one["reason"]) for one in facts["left_out"]] == [("P0001", "unpaired")]


# --- the job ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--patch-size p24 --seed 3 --rot_augment --ds_augment --edge pad --anonymize",
        "--patch-size p64 --overlap 9 --hu-window -5 7.5 --normalization-type hu_window",
        "--patch-size p33 --overlap 0 --random_N 7 --tensor-format tf --intensity hu",
        "--split 0.5 0.25 0.25 --unpaired skip --bad-files skip --anatomy-check warn",
        "--input-gen-folder 'low dose' --target-gen-folder=-full --blurr_n_noise --air_threshold",
        "--air_threshold --air-threshold-hu=-700 --air-fraction 0.25",
        "--air_threshold --air-rule body --min-body 0",
        "--split-file a/b.csv --mpi_run --overwrite --quiet --hand-over messages",
    ],
)
def test_the_command_of_the_report_makes_the_same_file(options):
    argv = ["--input_folder=/x/scans/", "--output-fname", "y/o.h5", *shlex.split(options)]
    config = command_line.parse(argv)
    assert isinstance(config, Config)
    words = shlex.split(" ".join(command(config)))
    assert words[:2] == ["python", "main.py"]
    again = command_line.parse(words[2:])
    assert isinstance(again, Config)
    assert again.as_json() == config.as_json()
    if not config.anonymize:
        assert (again.input_folder, again.output_fname) == ("scans", "o.h5")
        assert again.split_file == ("b.csv" if config.split_file else None)


def test_every_option_that_affects_the_file_is_explained(whole):
    assert set(FILE_OPTIONS) == set(whole.facts["configuration"])
    for option in FILE_OPTIONS.values():
        assert option.meaning
        assert f"<code>{option.flag}</code>" in whole.text


def test_every_option_with_a_path_is_hidden_with_pseudonyms():
    config = Config("/x/in", "/x/out.h5", split_file="/x/split", anonymize=True)
    assert "x" not in "".join(command(config)).replace("python main.py", "")
    assert {o.name for o in OPTIONS.values() if o.is_path} == {
        *("input_folder", "output_fname", "split_file")
    }


@pytest.mark.parametrize(
    ("layout", "store"), [("torch", "patches"), ("tf", "patches"), ("torch", "views")]
)
def test_the_way_to_load_it_works(tree, tmp_path, layout, store):
    if layout == "torch":
        pytest.importorskip("torch")
    made = run(
        tree.root, tmp_path / 'o \'"1".h5', "--tensor-format", layout, "--store", store, *UNDRAWN
    )
    code = next(word for word in Page(made.text).words if "as file:" in word)
    found: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        # TensorFlow is no package of the tests.
        exec(code if layout == "torch" else code.split("from ctpatches.tensorflow")[0], found)
    shape = (1, 24, 24) if layout == "torch" else (24, 24, 1)
    assert found["low"].shape == found["full"].shape == shape
    if layout == "torch":
        assert len(found["patches"]) == made.facts["totals"]["patches"]


# --- where it lies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [("x.h5", "x"), ("x.y.h5", "x.y"), ("x.html", "x.html"), (".h5", ".h5"), ("...h5", "...h5")],
)
def test_the_report_lies_in_the_folder_named_after_the_output(tree, tmp_path, name, folder):
    run(tree.root, tmp_path / name, *UNDRAWN)
    assert {path.name for path in tmp_path.iterdir()} == {name, "sanity_check"}
    assert [path.name for path in (tmp_path / "sanity_check").iterdir()] == [folder]
    names = {path.name for path in (tmp_path / "sanity_check" / folder).iterdir()}
    assert {"report.html", "report.json"} <= names


def test_a_report_that_cannot_be_written_is_one_line_and_completed_later(tree, tmp_path):
    argv = ["--input-folder", str(tree.root), "--output-fname", "out.h5", *UNDRAWN]
    (tmp_path / "sanity_check" / "out" / "report.json").mkdir(parents=True)
    message = one_error(called(tmp_path, *argv), status=1)
    assert message.strip() == (
        "main.py: error: 'out.h5' is complete, but its report cannot be written to "
        "'sanity_check/out': Is a directory; --resume completes the report"
    )
    (tmp_path / "sanity_check" / "out" / "report.json").rmdir()
    Run(tmp_path, tmp_path / "out.h5", argv).again()
    assert not list((tmp_path / "sanity_check" / "out").glob("*.partial"))
    assert "report.html" in contents(tmp_path / "sanity_check" / "out")


def test_a_report_on_a_read_only_disk_is_one_line(tree, tmp_path):
    argv = ["--input-folder", str(tree.root), "--output-fname", "out.h5", *UNDRAWN]
    with mounted(tmp_path / "sanity_check", "ro"):
        one_error(called(tmp_path, *argv), "'out.h5' is complete", "Read-only", status=1)


# --- the cost is bounded ---------------------------------------------------------------------


def large_plan(patients: int, pairs: int, windows: int) -> Plan:
    """Return the plan of a large file, every window kept."""
    unused: Any = None
    planned = []
    for i in range(patients * pairs):
        names, place = Names(f"p{i // pairs:05d}", "", ""), (i * windows, (i + 1) * windows)
        planned.append(PairPlan(unused, names, unused, "", None, (), i, place))
    return Plan(planned, [])


@pytest.mark.parametrize("size", [12, 55, 96, 512])
@pytest.mark.parametrize(("patients", "pairs"), [(1, 3), (40, 30), (5000, 2)])
def test_the_sample_is_bounded(size, patients, pairs):
    config = Config("scans", patch_size=size, overlap=0)
    index = statistics.draw_sample(large_plan(patients, pairs, 500), config)
    assert 0 < len(index) <= statistics.MAX_WINDOWS
    assert len(index) * size**2 <= max(4 * size**2, statistics.MAX_PIXELS)
    found, counts = np.unique(index // (500 * pairs), return_counts=True)
    assert len(set(counts)) == 1
    if patients <= 40 and size <= 96:
        assert found.tolist() == list(range(patients))
    assert counts[0] <= statistics.MAX_PATIENT_WINDOWS


def test_images_are_of_groups_alike():
    groups = [(str(i // 100), i % 2) for i in range(300)]
    chosen = sanity.spread(groups, 6)
    assert sorted(groups[i] for i in chosen) == [(name, i) for name in "012" for i in (0, 1)]
    assert chosen[:4] == sanity.spread(groups, 4)
    assert sanity.spread(groups[:2], 6) == [0, 1]


def test_long_tables_end_and_say_so(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_TABLE_ROWS", 2)
    text = run(tree.root, tmp_path / "out.h5", *UNDRAWN).text
    assert "1 more row in <code>report.json</code>" in text
    Page(text)


# --- in a browser ----------------------------------------------------------------------------

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


class Browser:
    """Chromium, driven by the WebDriver protocol."""

    def __init__(self, port: int, chromium: str, profile: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.session = ""
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": options,
        }
        made = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + self.session + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        # No proxy of the environment's stands between this machine and itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def tell(self, command: str, **parameters: Any) -> Any:
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def value(self, expression: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": f"return {expression}", "args": []})

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)
        self.ask("POST", "/url", {"url": page.as_uri()})

    def screenshot(self) -> Any:
        data = base64.b64decode(self.ask("GET", "/screenshot"))
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser; one for all tests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process,
    ):
        assert process.stdout
        try:
            started = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
            port = next(int(found[1]) for found in started if found)
            one = Browser(port, chromium, profile)
            yield one
            with contextlib.suppress(urllib.error.URLError):
                one.ask("DELETE", "")
        finally:
            process.terminate()


@pytest.mark.parametrize("kind", ["whole", "hostile"])
@pytest.mark.parametrize("width", [1400, 390, 320])
def test_a_browser_shows_all_of_it(browser, request, kind, width):
    browser.open(request.getfixturevalue(kind).page, width)
    assert browser.ask("POST", "/se/log", {"type": "browser"}) == []
    pictures = "[...document.images].map(i => i.complete && i.naturalWidth)"
    widths = browser.value(pictures)
    assert len(widths) == {"whole": 1 + 2 + 1, "hostile": 1 + 2 + 2}[kind]
    assert min(widths) >= 20
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Only the boxes of tables and of code are allowed to scroll.
    beyond = f"!e.closest('.scroll, pre') && e.getBoundingClientRect().right > {width} + 0.5"
    assert (
        browser.value(f"[...document.querySelectorAll('body *')].filter(e => {beyond}).length") == 0
    )
    assert browser.value("performance.getEntriesByType('resource').length") == 0


def test_a_browser_shows_it_light_and_dark(browser, whole):
    means = []
    for scheme in ("light", "dark"):
        browser.open(whole.page, 1280, scheme)
        picture = browser.screenshot()
        assert picture.shape[:2] == (800, 1280)
        assert len(np.unique(picture)) > 100
        means.append(picture[:300].mean())  # above the first image, which has a white ground
    light, dark = means
    assert light > 200
    assert dark < 60


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(...)`, as WCAG 2.2 defines it."""
    parts = np.array([int(c) for c in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_paper(browser, whole, scheme):
    browser.open(whole.page, 1280, scheme)
    paper = luminance(browser.value("getComputedStyle(document.body).backgroundColor"))
    for which in ("body", ".lead", "figcaption", "nav a", "thead th", "footer"):
        ink = luminance(browser.value(f"getComputedStyle(document.querySelector('{which}')).color"))
        low, high = sorted((ink, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, which


def test_it_prints(browser, whole):
    browser.open(whole.page, 1280, "dark")
    printed = browser.tell("Page.printToPDF", preferCSSPageSize=True)["data"]
    data = io.BytesIO(base64.b64decode(printed)).getvalue()
    assert data.startswith(b"%PDF")
    assert 2 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") <= 12
