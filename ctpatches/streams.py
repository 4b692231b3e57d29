"""Standard output and standard error: no run fails because one of them is missing, closed or full.

A reader that ends early (`main.py --help | head -1`) is not an error. Other write errors on
standard output are reported at the end, when the data set is complete.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from ctpatches.messages import printable


class _Stream(io.FileIO):
    """A file descriptor that keeps its first write error and drops what is written after it."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def run(main: Callable[[], int], program: str = "main.py") -> int:
    """Return the exit status of a command line, whatever its output streams are connected to."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened gets this number, and all messages
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    output, errors = _Stream(1, "w", closefd=False), _Stream(2, "w", closefd=False)
    sys.stdout, sys.stderr = _text(output, sys.stdout), _text(errors, sys.stderr)
    status = main()
    sys.stdout.flush()
    if status == 0 and output.error and not isinstance(output.error, BrokenPipeError):
        print_error(f"cannot write to standard output: {output.error.strerror}", program)
        status = 1
    sys.stderr.flush()
    return status


def opened(path: str) -> io.TextIOWrapper:
    """Open a terminal for writing, which is not to become that of this process."""
    terminal = _Stream(path, "w", opener=lambda name, flags: os.open(name, flags | os.O_NOCTTY))
    return _text(terminal, sys.stderr)


def _text(raw: _Stream, replaced: Any) -> io.TextIOWrapper:
    # Whatever the encoding of the terminal, a file name that it lacks is not an error.
    encoding = replaced.encoding if replaced else "utf-8"
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)


def escaped(text: str) -> str:
    """Return text of several lines with all other control characters escaped."""
    return "\n".join(map(printable, text.split("\n")))


def print_error(message: object, program: str = "main.py", file: TextIO | None = None) -> None:
    """Print an error message; a name in it from a file may hold sequences for the terminal."""
    print(f"{program}: error: {escaped(str(message))}", file=file or sys.stderr, flush=True)
