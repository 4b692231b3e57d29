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

import pipeline
from ctpatches import streams
from ctpatches.messages import ToolError
from pipeline import Config, errors
from pipeline.command_line import FilesToVerify, Request, parse, verify
from pipeline.mpi import launch

#: How long ranks without a connection give the first one to print the error, seconds.
FIRST_RANK_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed run, 2 for a bad call."""
    # Otherwise numpy starts threads for its matrix products that spin while they wait, on cores
    # that other ranks need.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else argv
    try:
        mpi_run = any(word.replace("_", "-") == "--mpi-run" for word in words)
        ranks = launch.connect(mpi_run, os.environ)
    except ToolError as error:  # of all ranks, which cannot send it to each other
        if launch.launcher_ranks(os.environ)[0] == 0:
            streams.print_error(error)
        else:  # some launchers end all others as soon as one has failed
            time.sleep(FIRST_RANK_S)
        return error.status
    if ranks.parallel:  # with a handler of Python's own, MPICH was seen to hang on SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    mine: Request | ToolError | None = None
    try:
        mine = _request(words)
        request: Request = launch.agree(ranks, mine)
        status = 0
        if isinstance(request, Config):
            pipeline.make_patches(request, ranks, verbose=True)
        elif isinstance(request, FilesToVerify):
            status = ranks.share(ranks.on_root(lambda: verify(*request)))
        else:
            ranks.on_root(lambda: print(request, end=""))
        ranks.close()
    except BaseException as error:
        if isinstance(mine, Config) and mine.verbose:
            print(streams.escaped(traceback.format_exc()), end="", file=sys.stderr)
        return ranks.fail(error)
    return status


def _request(words: Sequence[str]) -> Request | ToolError:
    """Return what the command line of this rank asks for, or why it cannot be done.

    All that a run needs is loaded here, so that a rank without a library can tell the others.
    """
    try:
        request = parse(words)
        if isinstance(request, Config):
            launch.check_mpi_run(request.mpi_run, os.environ)
            try:
                importlib.import_module("pipeline.run")
            except Exception as error:  # with too little memory, of any kind
                return errors.not_loaded(error)
        return request
    except Exception as error:  # whatever it is, the other ranks have to know
        return errors.failure_of(error)


if __name__ == "__main__":
    sys.exit(streams.run(main))
