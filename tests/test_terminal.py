"""What a user sees on a terminal: progress, and the end of a run by Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.progress import Progress
from tests.faults import (
    HANG,
    Fault,
    argv,
    command,
    finished_blocks,
    kept,
    left,
    no_process_left,
    one_error,
    run,
)
from tests.running import called, environment

#: Seconds in which an interrupted run has to end, however busy the machine is; rank 0 would wait
#: for ranks that do not answer longer than that.
END_S = 4
#: Makes the terminal that a process is connected to the one from which Ctrl-C comes.
CONTROLLED = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
RANKS = pytest.mark.parametrize("n", [0, 2], ids=["serial", "2 ranks"])


class Terminal:
    """A run in a terminal of 100 columns, that is ended when its block is left."""

    def __init__(self, words: Sequence[str], cwd: Path) -> None:
        self.descriptor, there = os.openpty()
        termios.tcsetwinsize(there, (24, 100))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, *words],
            cwd=cwd,
            env=environment(),
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
        )
        os.close(there)
        self.screen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.descriptor)

    def press_ctrl_c(self) -> None:
        os.write(self.descriptor, b"\x03")

    def read_until(self, condition: Callable[[], object], seconds: float = HANG) -> None:
        """Read what is written to the terminal until a condition holds."""
        latest = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < latest, f"not within {seconds} s:\n{self.screen}"
            if select.select([self.descriptor], [], [], 0.005)[0]:
                with contextlib.suppress(OSError):  # no process has it open any more
                    self.screen += os.read(self.descriptor, 4096).decode(errors="replace")

    def status(self, seconds: float = HANG) -> int:
        """Wait for the end, and read all that was written before."""
        self.read_until(lambda: self.process.poll() is not None, seconds)
        while select.select([self.descriptor], [], [], 0)[0]:
            try:
                self.screen += os.read(self.descriptor, 4096).decode(errors="replace")
            except OSError:
                break
        return self.process.returncode

    @property
    def errors(self) -> list[str]:
        return [line for line in self.screen.splitlines() if line.startswith("main.py: error:")]


# --- progress --------------------------------------------------------------------------------


@RANKS
def test_a_terminal_displays_bars_for_three_stages(tmp_path, tree, n):
    with Terminal(command(n, argv(tree.root, tmp_path / "x.h5")), tmp_path) as terminal:
        assert terminal.status() == 0, terminal.screen
    bars = re.findall(
        r"^([\w ]+): 100%.* (\d+)/\2 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+k? (\w+)/s(.*)\]",
        terminal.screen.replace("\r", "\n"),
        re.MULTILINE,
    )
    assert [bar[:3] for bar in bars] == [
        ("reading headers", "20", "files"),
        ("planning", "10", "pairs"),
        ("filling", "10", "pairs"),
    ]
    assert bars[2][3].endswith("MB/s")


@pytest.mark.parametrize("to", ["2>error.log", "2>&1 | cat >error.log"], ids=["file", "pipe"])
def test_there_is_no_bar_where_stderr_of_mpiexec_is_no_terminal(tmp_path, tree, to):
    words = command(2, argv(tree.root, tmp_path / "x.h5"))
    with Terminal(["bash", "-c", f'"$@" {to}', "bash", *words], tmp_path) as terminal:
        assert terminal.status() == 0
    text = terminal.screen + (tmp_path / "error.log").read_text()
    assert (tmp_path / "x.h5").exists()
    assert "patches" in text
    assert "%" not in text


def test_elsewhere_lines_state_rate_and_remaining_time(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: clock[0])
    filling = Progress("filling", 4000, quiet=False)
    silent = Progress("filling", 4000, quiet=True)
    for now in (100.1, 100.2, 100.3, 110.1, 110.2, 110.3):
        clock[0] = now
        filling.advance(size=2_000_000)
        silent.advance()
    assert capsys.readouterr().err.splitlines() == [
        "filling: 2 of 4000 pairs, 10.0 pairs/s, 20 MB/s, 06:39 left",
        "filling: 5 of 4000 pairs, 0.5 pairs/s, 1 MB/s, 2:15:49 left",
    ]
    short = Progress("planning", 20, quiet=False)
    for _ in range(20):  # two seconds in all
        clock[0] += 0.1
        short.advance()
    assert capsys.readouterr().err == ""


# --- interrupted -----------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_ends_with_one_line_and_is_resumed(
    tmp_path, tree, output, whole, n, how
):
    mark, checkpoint = tmp_path / "mark", Path(f"{output}.checkpoint")
    fault = Fault("hold", "patching", 1, mark=str(mark))
    if not n:  # where pairs are in order: threads may prepare the second one before the first
        fault = Fault("hold", "writing", call=3, mark=str(mark), after=str(checkpoint))
    arguments = argv(tree.root, output, "--overwrite")
    with Terminal(command(n, arguments, fault), tmp_path) as terminal:
        terminal.read_until(lambda: mark.exists() and finished_blocks(checkpoint))
        if how == "Ctrl-C":
            terminal.press_ctrl_c()
        else:
            terminal.process.terminate()
        status = terminal.status(END_S)
    assert status == {"Ctrl-C": 130, "SIGTERM": 143}[how] if n == 0 else status
    assert "Traceback" not in terminal.screen
    done = finished_blocks(checkpoint)
    complete = f"{done} of 10 pairs are complete in '{output}.partial'; --resume continues"
    assert terminal.errors == [f"main.py: error: interrupted ({complete})"]
    no_process_left(output)
    ended = run(command(n, [*arguments, "--resume"]), tmp_path)
    assert (ended.status, ended.errors) == (0, [])
    assert f"{done} of 10 pairs were already complete" in ended.out
    assert output.read_bytes() == whole
    assert kept(output.parent) == {output.name}


@RANKS
@pytest.mark.parametrize("step", ["planning", "writing"])
def test_a_run_that_is_interrupted_before_the_first_pair_leaves_nothing(
    tmp_path, tree, output, n, step
):
    mark = tmp_path / "mark"
    # On rank 0, so that the other one waits too.
    fault = Fault("hold", step, mark=str(mark))
    arguments = argv(tree.root, output, "--overwrite")
    with Terminal(command(n, arguments, fault), tmp_path) as terminal:
        terminal.read_until(mark.exists)
        terminal.press_ctrl_c()
        assert terminal.status(END_S) != 0
    message = "no pair was completed; run the same command again"
    assert terminal.errors == [f"main.py: error: interrupted ({message})"]
    assert left(output.parent) == {output.name}
    no_process_left(output)


def test_a_decoder_in_a_process_of_its_own_can_be_interrupted(tmp_path):
    script = (
        "import os, signal, time; from pipeline.mpi.terminal import Interruption\n"
        "Interruption().start()\n"
        "if not (child := os.fork()):\n    time.sleep(60)\n    os._exit(0)\n"
        "os.kill(child, signal.SIGINT)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ended = run([sys.executable, "-c", script], tmp_path)
    assert (ended.out, ended.err) == (f"{-signal.SIGINT}\n", "")


# --- --verbose -------------------------------------------------------------------------------


def test_verbose_prints_no_traceback_where_the_user_can_act(tmp_path, tree, output):
    ended = called(tmp_path, *argv(tree.root, output, "--verbose"))
    assert ended.err.splitlines() == ended.errors
    one_error(ended, "exists; add --overwrite", status=2)


@RANKS
def test_verbose_prints_one_traceback_of_an_unforeseen_error(tmp_path, tree, output, n):
    fault = Fault("raise", "patching", 1 if n else 0, mark=str(tmp_path / "mark"))
    arguments = argv(tree.root, output, "--overwrite", "--verbose")
    ended = run(command(n, arguments, fault), tmp_path)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert ended.err.count("Traceback") == 1
    assert ended.err.count("\nZeroDivisionError: made to fail") == 1
