"""Failures that every rank knows of, and one line for unforeseen errors."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterator

from ctpatches.messages import RunError, ToolError, printable


class SharedFailure(ToolError):
    """A failure that every rank knows of: rank 0 prints it, and all leave with its status.

    `trace` is the traceback of what caused it, for `--verbose`: '' where the user can act on it.
    """

    def __init__(self, message: str, status: int = 1, trace: str = "") -> None:
        super().__init__(message)
        self.status, self.trace = status, trace  # pickled too


def reason_of(error: BaseException) -> str:
    """Return the first cause of an error on one line: NumPy adds a page of advice to it."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def failure_of(error: BaseException) -> ToolError:
    """Turn an unforeseen error into one line."""
    if isinstance(error, ToolError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return RunError("interrupted")
    if isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError)
        hint = "install requirements.txt" if missing else "is there enough memory (ulimit -v)?"
        return RunError(f"cannot load a library: {reason_of(error)}; {hint}")
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM or no_thread:
        return RunError(f"out of memory: {reason_of(error)}")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return RunError(f"{type(error).__name__}{place}: {error} (this is a bug)")


@contextlib.contextmanager
def naming(file: str) -> Iterator[None]:
    """Name a file in every unforeseen error inside."""
    try:
        yield
    except ToolError:
        raise
    except Exception as error:
        raise RunError(f"{printable(file)}: {failure_of(error)}") from error


def shared(error: BaseException, where: str = "") -> SharedFailure:
    """Turn an error of a rank into the failure that all ranks are sent."""
    if isinstance(error, SharedFailure):
        return error
    failure = failure_of(error)
    return SharedFailure(f"{where}{failure}", failure.status, _trace_of(error))


def _trace_of(error: BaseException) -> str:
    """Return the traceback of the first cause of an error; '' if that is for the user to act on."""
    while not isinstance(error, SharedFailure) and (
        cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ):
        error = cause
    if isinstance(error, SharedFailure):
        return error.trace
    return "" if isinstance(error, ToolError) else "".join(traceback.format_exception(error))
