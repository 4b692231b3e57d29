"""The terminal of a run, also of one under mpiexec, and ending on Ctrl-C with one message.

mpiexec connects stderr of its ranks to pipes. Some of them forward whole lines only, and none after
Ctrl-C; what is meant for the user is therefore written to the terminal of mpiexec itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ctpatches import streams

#: What the names of the processes between a rank and its terminal begin with.
LAUNCHERS = ("mpiexec", "mpirun", "hydra_", "prte", "orte")
#: How long a launcher gets to forward what was printed before all ranks are ended.
LAST_WORDS_S = 0.3
#: How long other ranks leave the end of all to rank 0, which prints the message.
FIRST_RANK_S = 1.0


def open_terminal() -> TextIO | None:
    """Return the terminal on which stderr of this process is displayed; None without one."""
    if sys.stderr and sys.stderr.isatty():
        return sys.stderr
    with contextlib.suppress(OSError):  # not Linux, or the launcher of another user
        # A rank whose stderr was redirected to a file has no pipe to a launcher.
        path = _launcher_stderr() if stat.S_ISFIFO(os.fstat(2).st_mode) else ""
        if path and stat.S_ISCHR(os.stat(path).st_mode):
            terminal = streams.opened(path)
            if terminal.isatty():
                return terminal
            terminal.close()
    return None


def _launcher_stderr() -> str:
    """Return the path of stderr of the mpiexec that started this process; '' without one."""
    found, pid = "", os.getppid()
    while pid:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        name, _, rest = status.partition("(")[2].rpartition(")")
        if name.startswith(LAUNCHERS):  # the last one: others have pipes themselves
            found = f"/proc/{pid}/fd/2"
        pid = int(rest.split()[1])
    return found


class Interruption:
    """Ends this process on Ctrl-C (SIGINT) and SIGTERM, whatever it is doing; one rank says so.

    A thread waits for the signals, which are blocked: a handler in Python would not run before the
    main thread returns from a library, and MPICH was seen to hang with one.
    """

    def __init__(self, first: bool = True) -> None:
        self.first = first
        #: Returns what can be resumed, for the message; called once.
        self.note: Callable[[], str] = str
        #: Acquired, and never released, by what prints the last message of this process.
        self.last_message = threading.Lock()

    def start(self) -> None:
        """Block the signals and wait for them; to be called before there are other threads."""
        both = signal.SIGINT, signal.SIGTERM
        # A shell without job control ignores them for a process in the background.
        signals = {number for number in both if signal.getsignal(number) != signal.SIG_IGN}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)

        def restore() -> None:
            for number in signals:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

        os.register_at_fork(after_in_child=restore)
        threading.Thread(target=self._wait, args=[signals], name="signals", daemon=True).start()

    def _wait(self, signals: set[signal.Signals]) -> None:
        number = signal.sigwait(signals)
        if not self.first:
            time.sleep(FIRST_RANK_S)
        elif self.last_message.acquire(timeout=FIRST_RANK_S):
            note = self.note()
            terminal = open_terminal()
            if terminal:
                print(file=terminal)  # below the bar
            streams.print_error(f"interrupted{note and f' ({note})'}", file=terminal)
            time.sleep(0 if terminal else LAST_WORDS_S)
        os._exit(128 + number)
