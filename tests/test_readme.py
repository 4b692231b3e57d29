"""README.md and docs/: their examples run, their options and links exist, nothing is missing."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from ctpatches import __main__, __version__
from pipeline.command_line import build_parser
from pipeline.config import OPTIONS
from tests.running import REPO, run
from tests.scans import write_tree

README = REPO / "README.md"
FOLDERS = (REPO, REPO / "docs", REPO / "raw_data")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))
IDS = [str(page.relative_to(REPO)) for page in PAGES]
MAX_README_LINES = 250
MAIN_COMMAND = "mpiexec -n 8 python main.py"
#: Options of other programs that the pages name: srun, pip, and a script of the tests.
FOREIGN = {"--mpi", "--kill-on-bad-exit", "--force-reinstall", "--no-binary", "--headers"}
#: Where there are also options of earlier versions, of another program, and of a script.
OTHER_OPTIONS = ("CHANGELOG.md", "raw_data/README.md", "docs/coming_from_mpi4py_patches.md")


def blocks(*languages: str) -> list[str]:
    """Return the code blocks of all pages in those languages."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)
    return [code for language, code in found if language in languages]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def commands_in(code: str) -> list[str]:
    """Return the commands of a code block, continued lines joined, without prompts."""
    lines = (
        line.strip().removeprefix("$ ").split(" #")[0].strip()
        for line in code.replace("\\\n", " ").splitlines()
    )
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def commands() -> list[str]:
    """Return the shell commands of all pages, executed or not."""
    return commands_in("\n".join(blocks("", "bash", "sh", "shell", "console", "text")))


def scripts() -> list[str]:
    """Return the blocks of shell commands on the sample data, except that of the main command."""
    found = (commands_in(block) for block in blocks("bash") if "python " in block)
    lines = ([c for c in block if not c.startswith("source .venv")] for block in found)
    return ["\n".join(block) for block in lines if MAIN_COMMAND not in "\n".join(block)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tool in which the main command was run on small scans."""
    folder = tmp_path_factory.mktemp("readme")
    for path in REPO.glob("*.py"):
        shutil.copy2(path, folder)
    for package in ("ctpatches", "pipeline"):
        shutil.copytree(REPO / package, folder / package)
    write_tree(folder / "raw_data", {"P1": 2, "P2": 1, "P3": 1}, shape=(100, 120))
    (command,) = {c for c in commands() if c.startswith(MAIN_COMMAND) and "./raw_data" in c}
    ended = run(["bash", "-c", command], folder, path_of_this_python())
    assert ended.status == 0, ended.err
    return folder


def path_of_this_python() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


# --- README ----------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_the_readme_has_the_main_command_as_specified():
    expected = (
        "mpiexec -n 8 python main.py --input-folder './raw_data' --output-fname "
        "'./results/training_patches.h5' --patch-size 'p55' --mpi_run --rot_augment --ds_augment "
        "--air_threshold"
    )
    assert expected in README.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("command", ["./gen_patches.sh", "tests/run.sh"])
def test_the_readme_has_the_commands_of_the_set_up(command):
    assert command in README.read_text(encoding="utf-8").splitlines()
    assert (REPO / command).is_file()


# --- examples --------------------------------------------------------------------------------


def test_the_main_command_creates_its_file(sample):
    assert (sample / "results" / "training_patches.h5").is_file()
    names = {path.name for path in (sample / "sanity_check" / "training_patches").iterdir()}
    assert names >= {"report.html", "report.json"}


@pytest.mark.parametrize("script", scripts())
def test_the_other_commands_succeed_after_the_main_command(sample, script):
    ended = run(["bash", "-e", "-c", script], sample, path_of_this_python())
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_code_runs_on_the_file_of_the_main_command(sample, number):
    code = blocks("python")[number]
    for package in ("torch", "tensorflow"):
        if re.search(rf"\b(import|from) {package}\b", code) and not has(package):
            pytest.skip(f"{package} is not installed")
    ended = run([sys.executable, "-c", code], sample)
    assert ended.status == 0, ended.err


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def test_there_is_code_for_pytorch_and_tensorflow():
    code = "\n".join(blocks("python"))
    assert "import torch" in code
    assert "import tensorflow" in code


# --- options ---------------------------------------------------------------------------------


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options of a command line by their long name."""
    names = ((action.option_strings[-1:], action) for action in parser._actions)
    return {name: action for found, action in names for name in found}


def tables(page: str) -> dict[str, list[str]]:
    """Return the cells of all rows of a page that begin with an option, by its name."""
    out = {}
    for line in (REPO / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.match(r"\| `(--[\w-]+)", line):
            assert match[1] not in out, f"{match[1]} is documented twice"
            out[match[1]] = cells
    return out


def options_of_command(name: str) -> dict[str, argparse.Action]:
    """Return the options of a command of `ctpatches` except `--help`."""
    actions = __main__.build_parser()._actions
    (commands,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    options = options_of(commands.choices[name])
    del options["--help"]
    return options


MAIN_OPTIONS = options_of(build_parser())
#: The options of the commands of `ctpatches`, by the page that documents them.
COMMANDS = {
    "loading.md": options_of_command("stitch"),
    "file_format.md": options_of_command("convert"),
}
ALL_OPTIONS = {*MAIN_OPTIONS, *(name for options in COMMANDS.values() for name in options)}


def shown_default(action: argparse.Action) -> str:
    """Return an option's default as the documentation has it; '' where that is in words."""
    if isinstance(action, argparse._StoreTrueAction):
        return "off"
    if isinstance(action.default, float):
        return f"`{action.default:g}`"
    is_value = action.default not in (None, argparse.SUPPRESS)
    return f"`{action.default}`" if is_value else ""


@pytest.mark.parametrize("option", MAIN_OPTIONS)
def test_every_option_is_documented_with_its_choices_and_default(option):
    _, choices, default, effect = tables("options.md")[option]
    assert effect
    assert bool(default) == (option not in ("--help", "--version"))
    if known := OPTIONS.get(MAIN_OPTIONS[option].dest):
        assert known.kind.unit in choices
        if known.default not in (None, dataclasses.MISSING):
            assert default.replace("`", "") == known.text(known.default)
        if known.kind.choices:
            assert re.findall(r"`(\S+)`", choices) == list(known.kind.choices)


@pytest.mark.parametrize(
    ("page", "option"), [(page, option) for page, options in COMMANDS.items() for option in options]
)
def test_every_option_of_a_command_is_documented_with_its_choices_and_default(page, option):
    _, default, effect = tables(page)[option]
    action = COMMANDS[page][option]
    assert default
    assert default.startswith(shown_default(action))
    assert {f"`{choice}`" for choice in action.choices or ()} <= set(re.findall(r"`\S+`", effect))


def test_every_documented_option_exists():
    assert set(tables("options.md")) == set(MAIN_OPTIONS)
    for page, options in COMMANDS.items():
        assert set(tables(page)) == set(options)


def test_every_option_in_a_command_exists():
    known = {name.replace("_", "-") for name in ALL_OPTIONS}
    program = r"main\.py|gen_patches|ctpatches (stitch|convert)"
    calls = [c for c in commands() if re.search(program, c)]
    found = {word for c in calls for word in re.findall(r"(?<!\S)--[\w-]+", c)}
    assert found
    assert {option for option in found if option.replace("_", "-") not in known} == set()


@pytest.mark.parametrize("page", sorted(set(IDS) - set(OTHER_OPTIONS)))
def test_every_option_in_the_text_exists(page):
    spans = " ".join(re.findall(r"`([^`]+)`", prose(REPO / page)))
    found = set(re.findall(r"(?<!\S)--[a-zA-Z][\w-]*", spans))
    assert found - ALL_OPTIONS - FOREIGN == set()


# --- links and versions ----------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_exist(page):
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_index():
    index = (REPO / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (REPO / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_every_module_is_in_the_table_of_modules():
    page = (REPO / "docs" / "development.md").read_text(encoding="utf-8")
    paths = [*REPO.glob("*.py"), *REPO.glob("pipeline/**/*.py"), *REPO.glob("ctpatches/**/*.py")]
    modules = [path for path in paths if path.name != "__init__.py"]
    named = set(re.findall(r"(?<=\[)\w+(?=\.py\])|(?<=`)\w+(?=`)", page))
    assert {path.name for path in modules if path.stem not in named} == set()


def test_the_citation_has_the_version_of_the_tool():
    citation = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
