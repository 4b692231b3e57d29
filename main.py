#!/usr/bin/env python3
"""Turn folders of paired CT scans into one h5 file of training patches."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Sequence

import pipeline
from ctpatches import streams
from ctpatches.messages import ToolError
from pipeline import Config, errors
from pipeline.command_line import FilesToVerify, Request, parse
from pipeline.mpi import launch
from pipeline.mpi.terminal import FIRST_RANK_S, Interruption


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed run, 2 for a bad call."""
    # Otherwise numpy starts threads for its matrix products that spin while they wait, on cores
    # that other ranks need.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else argv
    first = launch.launcher_ranks(os.environ)[0] == 0
    interruption = Interruption(first)
    try:
        if argv is None:  # callers from Python have their own
            interruption.start()
        mpi_run = any(word.replace("_", "-") == "--mpi-run" for word in words)
        ranks = launch.connect(mpi_run, os.environ)
    except (ToolError, RuntimeError) as error:  # of all ranks, which cannot send it to each other
        failure = errors.failure_of(error)
        if first:
            streams.print_error(failure)
        else:  # some launchers end all others as soon as one has failed
            time.sleep(FIRST_RANK_S)
        return failure.status
    ranks.interruption = interruption
    request: Request | None = None
    try:
        request = ranks.on_all(lambda: _request(words))[0]
        status = 0
        if isinstance(request, Config):
            pipeline.make_patches(request, ranks, verbose=True)
        elif isinstance(request, FilesToVerify):
            status = ranks.share(functools.partial(pipeline.verify, *request))
        else:
            ranks.on_root(lambda: print(request, end=""))
        ranks.close()
    except BaseException as error:
        return ranks.fail(error, isinstance(request, Config) and request.verbose)
    return status


def _request(words: Sequence[str]) -> Request:
    """Return what the command line of this rank asks for.

    All that a run needs is loaded here, so that a rank without a library can tell the others.
    """
    request = parse(words)
    if isinstance(request, Config):
        launch.check_mpi_run(request.mpi_run, os.environ)
        try:
            importlib.import_module("pipeline.run")
        except ImportError:
            raise
        except Exception as error:  # with too little memory, of any kind
            raise ImportError from error
    return request


if __name__ == "__main__":
    sys.exit(streams.run(main))
