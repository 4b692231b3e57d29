#!/usr/bin/env python3
"""Turn folders of paired CT scans into one h5 file of training patches."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from ctpatches import streams
from pipeline import Config, errors
from pipeline.command_line import FilesToVerify, Request, field, parse, verify
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from utils import ToolError

#: How long ranks that cannot talk to each other give the first one to print their error, seconds.
FIRST_RANK_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed run, 2 for a bad call."""
    # Else numpy, once imported, starts threads for its matrix products that spin while they wait:
    # they took the cores that other ranks worked on.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else argv
    asked = _request(words)
    try:
        mpi_run = any(field(word) == "mpi_run" for word in words)
        ranks = launch.connect(mpi_run, os.environ)
    except ToolError as error:
        return _unconnected(error)
    _prepare_signals(ranks)
    try:
        request: Request = launch.agree(ranks, _loaded(asked))
        status = _fulfil(request, ranks)
        ranks.close()
    except BaseException as error:
        if isinstance(asked, Config) and asked.verbose:
            print(streams.escaped(traceback.format_exc()), end="", file=sys.stderr)
        return ranks.fail(error)
    return status


def _request(words: Sequence[str]) -> Request | ToolError:
    """Return what the command line of this rank asks for, or why it is invalid."""
    try:
        request = parse(words)
        if isinstance(request, Config):
            launch.check_mpi_run(request.mpi_run, os.environ)
        return request
    except Exception as error:  # whatever it is, the other ranks have to know
        return errors.failure_of(error)


def _loaded(asked: Request | ToolError) -> Request | ToolError:
    """Load what a run needs, so that a rank that lacks a library tells the others."""
    if isinstance(asked, Config):
        try:
            importlib.import_module("pipeline.run")
        except Exception as error:  # with too little memory, of any kind
            return errors.not_loaded(error)
    return asked


def _unconnected(error: ToolError) -> int:
    """Print an error that all ranks have but none can tell another; return the exit status."""
    rank, _ = launch.launcher_ranks(os.environ)
    if rank == 0:
        streams.print_error(error)
    else:  # some launchers end all others as soon as one has failed
        time.sleep(FIRST_RANK_S)
    return error.status


def _fulfil(request: Request, ranks: Ranks) -> int:
    """Do what the command line asks for; return the exit status."""
    if isinstance(request, str):
        ranks.on_root(lambda: print(request, end=""))
        return 0
    if isinstance(request, FilesToVerify):
        return ranks.share(ranks.on_root(lambda: verify(*request)))
    from pipeline import make_patches

    make_patches(request, ranks, verbose=True)
    return 0


def _prepare_signals(ranks: Ranks) -> None:
    """Make a serial run end in one line when it is told to end, and leave MPI's ranks to mpiexec.

    With a handler of Python's own, MPICH was seen to hang on SIGTERM.
    """
    if ranks.parallel:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


if __name__ == "__main__":
    sys.exit(streams.run(main))
