"""The README: what it shows works, and what there is it tells."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from main import build_parser
from tests.running import REPO, run
from tests.scans import write_tree

README = REPO / "README.md"
MAIN_COMMAND = "mpiexec -n 8 python main.py"


def blocks(*languages: str) -> list[str]:
    """Return the code blocks of the README in those languages."""
    text = README.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)
    return [code for language, code in found if language in languages]


def commands() -> list[str]:
    """Return the shell commands of the README, continued lines joined, without prompts."""
    code = "\n".join(blocks("", "bash", "sh", "shell", "console")).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ").split(" #")[0].strip() for line in code.splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tool in which the README's main command was run on small scans."""
    folder = tmp_path_factory.mktemp("readme")
    for path in REPO.glob("*.py"):
        shutil.copy2(path, folder)
    shutil.copytree(REPO / "report", folder / "report")
    write_tree(folder / "raw_data", {"P1": 2, "P2": 1, "P3": 1}, shape=(100, 120))
    (command,) = {c for c in commands() if c.startswith(MAIN_COMMAND)}
    ended = run(["bash", "-c", command], folder, path_of_this_python())
    assert ended.status == 0, ended.err
    return folder


def path_of_this_python() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_the_main_command_stands_there_as_specified():
    wanted = (
        "mpiexec -n 8 python main.py --input-folder './raw_data' --output-fname "
        "'./results/training_patches.h5' --patch-size 'p55' --mpi_run --rot_augment --ds_augment "
        "--air_threshold"
    )
    assert wanted in commands()


@pytest.mark.parametrize("command", ["./gen_patches.sh", "tests/run.sh"])
def test_the_commands_of_the_set_up_stand_there(command):
    assert {command, f"./{command}"} & set(commands())
    assert (REPO / command).is_file()


def test_the_main_command_makes_its_file(made):
    assert (made / "results" / "training_patches.h5").is_file()
    names = {path.name for path in (made / "sanity_check" / "training_patches").iterdir()}
    assert names >= {"report.html", "report.json"}


@pytest.mark.parametrize("number", range(len(blocks("python")) if README.exists() else 0))
def test_python_code_runs_on_the_file_of_the_main_command(made, number):
    code = blocks("python")[number]
    for package in ("torch", "tensorflow"):
        if re.search(rf"\b(import|from) {package}\b", code) and not has(package):
            pytest.skip(f"{package} is not installed")
    ended = run([sys.executable, "-c", code], made)
    assert ended.status == 0, ended.err


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def test_code_for_pytorch_and_tensorflow_is_there():
    code = "\n".join(blocks("python"))
    assert "torch" in code
    assert "tensorflow" in code


OPTIONS = sorted(
    name
    for action in build_parser()._actions
    for name in action.option_strings
    if name.startswith("--") and name not in ("--help", "--version")
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_stands_in_the_readme(option):
    assert re.search(rf"{re.escape(option)}\b", README.read_text(encoding="utf-8"))


def test_every_option_shown_in_a_command_exists():
    shown = {word for c in commands() if "main.py" in c for word in re.findall(r"--[\w-]+", c)}
    known = {name.replace("_", "-") for name in [*OPTIONS, "--help", "--version"]}
    assert {option for option in shown if option.replace("_", "-") not in known} == set()


def test_files_that_the_readme_links_exist():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", README.read_text(encoding="utf-8"))
    assert [link for link in links if not (REPO / link.split("#")[0]).exists()] == []
