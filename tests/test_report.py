"""The page beside the h5 file and its figures: true, whole, harmless, and fit to be looked at."""

from __future__ import annotations

import base64
import contextlib
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

import main
import report
import report_figures
import report_page
import report_pictures
from ctpatches import patchfile
from pipeline import run
from pipeline.output import commit
from tests.provenance import squeezed
from tests.running import called
from tests.scans import phantom, write_patient, write_slice
from utils import Config, Names, Pair, PairPlan, Plan, RunError, Slice, Tally

HOSTILE = ("<script>alert(1)<", "two\nlines\t'q\" & x", "\u0645\u0631\u064a\u0636 \u60a3\u8005")
EVERYTHING = (
    *("--rot_augment", "--ds_augment", "--air_threshold", "--blurr_n_noise"),
    *("--patch-size", "p24"),
)


@dataclass(frozen=True)
class Job:
    """A finished run, and what it hands to `report.write`."""

    plans: dict[str, Plan]
    files: dict[str, str]
    config: Config
    tally: Tally
    command: str
    slices: dict[str, list[report_pictures.Coverage]]

    def write(self, side: str = "", command: str | None = None) -> tuple[Path, Path]:
        told = self.command if command is None else command
        page, figures = report.write(
            self.plans[side],
            self.files[side],
            side,
            self.config,
            self.tally,
            told,
            self.slices[side],
        )
        return Path(page), Path(figures)


def job(root: Path, file: Path, *options: str) -> Job:
    """Run the tool up to the h5 file."""
    got: dict[str, Any] = {}

    def show(plans: dict[str, Plan], *rest: Any) -> None:
        got.update(plans=plans, rest=rest)

    argv = ["--input-folder", str(root), "--output-fname", str(file), *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "show", show)
        ended = called(file.parent, *argv)
    assert ended.status == 0, ended.err
    config = next(one for one in got["rest"] if isinstance(one, Config))
    tally = next(one for one in got["rest"] if isinstance(one, Tally))
    command = shlex.join(["python", "main.py", *argv])
    drawings = next(one for one in got["rest"] if isinstance(one, list))
    slices = {
        side: [drawn.page[i] for i in sorted(drawn.page)]
        for side, drawn in zip(got["plans"], drawings, strict=True)
    }
    return Job(got["plans"], commit.files_of(config), config, tally, command, slices)


def figures_of(one: Job, side: str = "") -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(one.write(side)[1].read_text())
    return facts


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory) -> Job:
    """Return a job with every augmentation, normalised."""
    file = tmp_path_factory.mktemp("whole") / "out.h5"
    kind = ("--normalization-type", "unity_independent")
    return job(tree.root, file, *EVERYTHING, *kind)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Job:
    """Return a job whose patients and file have names that are markup or worse."""
    root = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        write_patient(root / "scans", name, 2)
    write_slice(root / "scans" / HOSTILE[0] / "quarter_3mm" / "alone.dcm", phantom((64, 80), 9)[0])
    options = ("--unpaired", "skip", "--random_N", "3", "--patch-size", "p24", "--air_threshold")
    return job(root / "scans", root / 'a "b" & <i>.h5', *options)


# --- the figures are true --------------------------------------------------------------------


def by_patient(file: str) -> dict[str, int]:
    """Count the patches of each patient, one by one."""
    counts: dict[str, int] = {}
    with h5py.File(file) as opened:
        patients = opened["pair/patient"].asstr()[...]
        for pair in opened["patch/pair"][...]:
            counts[patients[pair]] = counts.get(patients[pair], 0) + 1
    return counts


@pytest.mark.parametrize("size", [1, 2, 7, 10, (3, 5), (4, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_median_is_that_of_numpy(size, dtype):
    values = np.random.default_rng(0).normal(0, 100, size).astype(dtype)
    assert report_figures.median(values) == np.median(values)
    assert report_figures.median(values.ravel().tolist()) == np.median(values.ravel().tolist())


def test_counts_are_those_of_the_file(whole, tree, tmp_path):
    facts = figures_of(whole)
    every = job(tree.root, tmp_path / "all.h5", "--ds_augment", "--patch-size", "p24")
    patches, windows = by_patient(whole.files[""]), by_patient(every.files[""])
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
    assert facts["bytes"] == os.path.getsize(whole.files[""])


def test_counts_by_scale_are_those_of_the_file(whole):
    with h5py.File(whole.files[""]) as file:
        scales = file["patch/scale"][...].round(6).tolist()
    found = {round(one["scale"], 6): one["patches"] for one in figures_of(whole)["scales"]}
    assert found == {scale: scales.count(np.float32(scale)) for scale in (1, 0.8, 0.6)}


def sampled(facts: dict[str, Any]) -> list[int]:
    step = facts["sample"]["step"]
    return [i for start, stop in facts["sample"]["runs"] for i in range(start, stop, step)]


def test_histograms_count_the_sampled_pixels(whole):
    facts = figures_of(whole)
    chosen = sampled(facts)[: facts["sample"]["patches"]]
    with h5py.File(whole.files[""]) as file:
        values = {side: squeezed(file[side])[chosen] for side in ("input", "target")}
    for panel in facts["histograms"]:
        edges = panel["low"] + panel["width"] * np.arange(len(panel["input"]) + 1)
        for side, pixels in values.items():
            assert sum(panel[side]) + panel["outside"][side] == pixels.size
            expected = np.histogram(pixels, edges)[0]
            # A value at an edge may be rounded to either side of it.
            assert np.abs(expected - panel[side]).sum() <= 0.002 * pixels.size


def test_histograms_of_whole_values_are_exact_and_no_comb(tree, tmp_path):
    facts = figures_of(job(tree.root, tmp_path / "out.h5", "--patch-size", "p24"))
    with h5py.File(tmp_path / "out.h5") as file:
        pixels = squeezed(file["input"])[sampled(facts)]
    assert [panel["name"] for panel in facts["histograms"]] == ["all values", "soft tissue"]
    for panel in facts["histograms"]:
        assert panel["width"] == int(panel["width"])
        edges = panel["low"] + panel["width"] * np.arange(len(panel["input"]) + 1) - 0.5
        assert np.histogram(pixels, edges)[0].tolist() == panel["input"]
    soft = facts["histograms"][1]
    assert soft["low"] <= -160 + 1024 < soft["low"] + soft["width"]
    assert soft["low"] + soft["width"] * len(soft["input"]) >= 240 + 1024


def test_noise_is_that_of_untouched_patches_in_hu(whole):
    facts = figures_of(whole)
    apart: dict[str, list[Any]] = {}
    with h5py.File(whole.files[""]) as file:
        for index in sampled(facts):
            there = patchfile.provenance(file, index)
            assert there.orientation == 0
            if there.scale != 1 or there.degradation != "none":
                continue
            low, full = patchfile.read_patches(file, index)
            low_hu = patchfile.denormalise(low, file, index, "input")
            full_hu = patchfile.denormalise(full, file, index, "target")
            apart.setdefault(there.patient, []).append((low_hu - full_hu, low - full))
    assert apart
    for one in facts["patients"]:
        if one["patient"] not in apart:
            assert one["noise"] is None
            continue
        in_hu, in_file = (np.stack(v) for v in zip(*apart[one["patient"]], strict=True))
        assert one["noise"]["patches"] == len(in_hu)
        assert one["noise"]["sd_hu"] == pytest.approx(in_hu.std(), rel=1e-3)
        assert one["noise"]["mean_hu"] == pytest.approx(in_hu.mean(), abs=0.01)
        assert one["noise"]["sd_file"] == pytest.approx(in_file.std(), rel=1e-3)


def test_noise_is_told_by_what_was_done_to_the_input(whole):
    kinds = figures_of(whole)["noise_by_degradation"]
    assert set(kinds) == {"none", "blur", "noise"}
    assert kinds["blur"]["sd_hu"] > kinds["noise"]["sd_hu"] > kinds["none"]["sd_hu"]


@pytest.mark.parametrize(
    ("options", "unit"),
    [
        ((), "stored values"),
        (("--intensity", "hu"), "HU"),
        (("--normalization-type", "hu_window"), "normalised (hu_window)"),
    ],
)
def test_the_unit_of_the_file_is_told(tree, tmp_path, options, unit):
    made = job(tree.root, tmp_path / "out.h5", "--patch-size", "p24", *options)
    page, figures = made.write()
    assert json.loads(figures.read_text())["unit"] == unit
    assert unit in page.read_text()


def test_the_fingerprint_is_the_checksum_of_the_file(whole):
    told = figures_of(whole)["fingerprint"]
    with h5py.File(whole.files[""]) as file:
        assert told == bytes(file["checksum"][...]).hex()


def test_each_file_of_a_split_has_its_page(tree, tmp_path):
    made = job(tree.root, tmp_path / "out.h5", "--split", "0.34", "0.33", "0.33")
    patients = []
    for side in ("train", "val", "test"):
        page, figures = made.write(side)
        assert (page.name, figures.name) == (f"out_{side}.html", f"out_{side}.json")
        patients += [one["patient"] for one in json.loads(figures.read_text())["patients"]]
    assert sorted(patients) == ["A01", "B02", "C03"]


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
def page(request) -> Page:
    one: Job = request.getfixturevalue(request.param)
    return Page(one.write()[0].read_text(encoding="utf-8"))


def test_all_that_is_opened_is_closed(page):
    assert {"header", "main", "footer", "nav", "h1", "table"} <= {tag for tag, _ in page.tags}


def test_nothing_is_fetched_and_nothing_runs(page):
    text = "".join(page.words)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert re.match(r"data:|#", value or ""), (tag, value)


def test_pictures_and_tables_can_be_read_aloud(page):
    ids = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
    tables = [tag for tag, _ in page.tags].count("table")
    assert tables == [tag for tag, _ in page.tags].count("caption")
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_no_escape_code_of_ours_is_shown(whole):
    # A narrow space in a name is a control character to `shown`; in our words it must stay a space.
    assert re.search(r"\\[xu]", whole.write()[0].read_text(encoding="utf-8")) is None


def test_names_are_no_markup_and_break_no_line(hostile):
    text = hostile.write()[0].read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert "<bdi>two\\nlines\\t&#x27;q&quot; &amp; x</bdi>" in text
    assert f"<bdi>{HOSTILE[2]}</bdi>" in text
    assert "<h1><bdi>a &quot;b&quot; &amp; &lt;i&gt;.h5</bdi></h1>" in text
    names = {one["patient"] for one in figures_of(hostile)["patients"]}
    assert names == set(HOSTILE)


def test_what_was_left_out_and_warned_of_is_told(hostile):
    facts = figures_of(hostile)
    assert [one["files"] for one in facts["left_out"]] == [[f"{HOSTILE[0]}/quarter_3mm/alone.dcm"]]
    assert len(facts["warnings"]) == 3
    text = hostile.write()[0].read_text(encoding="utf-8")
    assert "/quarter_3mm/alone.dcm" in text
    assert text.count("fewer than --random_N 3") == 3
    assert f"{facts['totals']['air']} windows of air" in text


def test_the_same_job_gives_the_same_bytes(whole):
    first = [path.read_bytes() for path in whole.write()]
    assert [path.read_bytes() for path in whole.write()] == first
    how = " --mpi_run --resume --hand-over=messages --quiet"
    assert [path.read_bytes() for path in whole.write(command=whole.command + how)] == first


def test_no_folder_is_told(whole):
    for path in whole.write():
        text = path.read_text()
        assert str(Path(whole.files[""]).parent) not in text
        assert str(Path(whole.config.input_folder).parent) not in text
        assert "--input-folder scans --output-fname out.h5" in re.sub(r"\s*\\*\n\s*", " ", text)


def test_pseudonyms_hide_every_name(tmp_path):
    root = tmp_path / "Erika Mustermann" / "Max"
    write_patient(root, "Mustermann", 2)
    write_patient(root, "Doe", 4)
    alone = root / "Doe" / "quarter_3mm" / "secret.dcm"
    write_slice(alone, phantom((64, 80), 9)[0])
    folders = ("--input-gen-folder", "quarter_3m*", "--target-gen-folder", "full_3m*")
    options = ("--anonymize", "--unpaired", "skip", "--random_N", "3", "--patch-size", "p24")
    made = job(root, tmp_path / "Erika Mustermann" / "out.h5", *options, *folders)
    assert any("Mustermann" in patients for _, patients in made.tally.remarks)
    for path in made.write():
        text = path.read_text()
        for secret in ("Erika", "Mustermann", "Max", "Doe", "secret", "quarter_", "full_3m"):
            assert secret not in text, secret
        assert "P0001" in text
        assert "fewer than --random_N: 1" in text
    facts = figures_of(made)
    assert shlex.split(facts["command"])[:6] == [
        *("python", "main.py", "--input-folder", "\u2026", "--output-fname", "\u2026")
    ]
    assert [(one["patient"], one["reason"]) for one in facts["left_out"]] == [("P0001", "unpaired")]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/venv/bin/python /opt/main.py --seed 3", "python main.py --seed 3"),
        ("main.py --input_folder=/a/b/ --hu-window -5 7", "--input_folder b --hu-window -5 7"),
        ("main.py --output-fname 'my results/x.h5'", "--output-fname 'my results/x.h5'"),
        ("main.py --mpi-run --overwrite --seed=1", "python main.py --seed 1"),
        ("main.py 'unbalanced", "python main.py"),
        ("", "python main.py"),
    ],
)
def test_the_command_is_told_without_folders(command, told):
    assert report_figures.public_command(command, Config("scans")).endswith(told)


def test_every_option_that_decides_is_explained():
    decide = {field.name for field in fields(Config)} - set(Config.HOW)
    assert set(report_figures.OPTIONS) == decide
    known = main.build_parser()._option_string_actions
    assert {option for option, _, _ in report_figures.OPTIONS.values()} <= set(known)


def test_every_option_with_a_path_is_hidden_with_pseudonyms():
    actions = main.build_parser()._actions
    paths = {a.option_strings[0] for a in actions if a.metavar in ("FILE", "DIR")}
    assert paths - {"--verify"} <= set(report_figures.PATHS)


@pytest.mark.parametrize("layout", ["torch", "tf"])
def test_the_way_to_load_it_works(tree, tmp_path, layout):
    made = job(tree.root, tmp_path / 'o "1".h5', "--tensor-format", layout, "--patch-size", "p24")
    code = report_page.snippet(figures_of(made))
    found: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        # TensorFlow is no package of the tests.
        exec(code if layout == "torch" else code.split("from ctpatches.torch")[0], found)
    shape = (1, 24, 24) if layout == "torch" else (24, 24, 1)
    assert found["low"].shape == found["full"].shape == shape
    if layout == "torch":
        assert len(found["patches"]) == made.plans[""].patches


def test_the_page_never_takes_the_place_of_the_data(tree, tmp_path):
    made = job(tree.root, tmp_path / "out.html", "--patch-size", "p24")
    data = (tmp_path / "out.html").read_bytes()
    page, figures = made.write()
    assert (page.name, figures.name) == ("out.html.html", "out.html.json")
    assert (tmp_path / "out.html").read_bytes() == data


def test_a_page_that_cannot_be_written_is_one_line(tree, tmp_path):
    made = job(tree.root, tmp_path / "out.h5", "--patch-size", "p24")
    (tmp_path / "out.html").mkdir()
    with pytest.raises(RunError, match=r"out\.h5' is complete, but its page '.*out\.html'"):
        made.write()
    assert {p.name for p in tmp_path.iterdir()} == {"out.h5", "out.html"}


# --- the cost is bounded ---------------------------------------------------------------------


def large_plan(patients: int, pairs: int, windows: int, kinds: Sequence[str] = ("",)) -> Plan:
    """Return a plan without files, every window kept."""
    one = Slice("f", 9, 9, 0.0, (), (), (), None, None, 1, 0, None, "<u2", 12)
    bits = np.packbits(np.ones(windows, bool)).tobytes()
    total = patients * pairs
    return Plan(
        pairs=[Pair("p", one, one)] * total,
        parts=[PairPlan((windows,), (bits,), windows)] * total,
        starts=list(range(0, total * windows + 1, windows)),
        degradations=[kinds[i % len(kinds)] for i in range(total)],
        names=[Names(f"p{i // pairs:05d}", "in", "target") for i in range(total)],
    )


@pytest.mark.parametrize("size", [12, 55, 96, 512])
@pytest.mark.parametrize(("patients", "pairs"), [(1, 3), (40, 30), (5000, 2)])
def test_the_sample_is_bounded(size, patients, pairs):
    config = Config("scans", patch_size=size)
    runs, further = report_figures.choose_runs(large_plan(patients, pairs, 500), config)
    windows = sum(run.stop - run.start for run in runs)
    assert further == []
    assert 0 < windows <= report_figures.SAMPLE_WINDOWS
    assert windows * size**2 <= max(4 * size**2, report_figures.SAMPLE_PIXELS)
    if patients <= 40 and size <= 96:
        assert len({run.pair // pairs for run in runs}) == patients
    for pair, start, stop in runs:
        assert 500 * pair <= start < stop <= 500 * (pair + 1)


def test_further_patches_are_of_untouched_pairs():
    config = Config("scans", blurr_n_noise=True)
    _, further = report_figures.choose_runs(
        large_plan(5, 10, 50, ("blur", "noise", "", "")), config
    )
    assert {run.pair // 10 for run in further} == set(range(5))
    assert {run.pair % 4 for run in further} <= {2, 3}


def test_long_tables_end_and_say_so(whole, monkeypatch):
    monkeypatch.setattr(report_page, "TABLE_ROWS", 2)
    text = whole.write()[0].read_text()
    assert "1 more row in the JSON" in text
    Page(text)


def test_many_windows_are_thinned_out(tree, tmp_path):
    made = job(tree.root, tmp_path / "out.h5", "--patch-size", "p12", "--overlap", "11")
    (one, *_) = made.slices[""]
    assert one.kept == (64 - 11) * (80 - 11)
    assert one.every == 2
    assert one.kept_lines.count("M") <= report_figures.DRAWN_WINDOWS


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
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_a_browser_shows_all_of_it(browser, request, kind, width):
    page, _ = request.getfixturevalue(kind).write()
    browser.open(page, width)
    assert browser.ask("POST", "/se/log", {"type": "browser"}) == []
    pictures = "[...document.images].map(i => i.complete && i.naturalWidth)"
    widths = browser.value(pictures)
    assert len(widths) == 8 * 3 + 4
    assert min(widths) >= 20
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Only the boxes of tables and of code are allowed to scroll.
    beyond = f"!e.closest('.scroll, pre') && e.getBoundingClientRect().right > {width} + 0.5"
    assert (
        browser.value(f"[...document.querySelectorAll('body *')].filter(e => {beyond}).length") == 0
    )
    assert browser.value("performance.getEntriesByType('resource').length") == 0


def test_a_browser_shows_it_light_and_dark(browser, whole):
    page, _ = whole.write()
    means = []
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        picture = browser.screenshot()
        assert picture.shape[:2] == (800, 1280)
        assert len(np.unique(picture)) > 100
        means.append(picture.mean())
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
    browser.open(whole.write()[0], 1280, scheme)
    paper = luminance(browser.value("getComputedStyle(document.body).backgroundColor"))
    for which in ("body", ".lead", "figcaption", "nav a", "thead th", "footer"):
        ink = luminance(browser.value(f"getComputedStyle(document.querySelector('{which}')).color"))
        low, high = sorted((ink, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, which


def test_it_prints(browser, whole):
    browser.open(whole.write()[0], 1280, "dark")
    printed = browser.tell("Page.printToPDF", preferCSSPageSize=True)["data"]
    data = io.BytesIO(base64.b64decode(printed)).getvalue()
    assert data.startswith(b"%PDF")
    assert 2 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") <= 12
