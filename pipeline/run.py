"""The run: find, plan, allocate, fill, finish, report; the same for one rank and many."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import dry_run, profile
from pipeline.cohort.selection import find
from pipeline.config import Config
from pipeline.errors import SharedFailure
from pipeline.filling import fill
from pipeline.model import Plan
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from pipeline.output import paths
from pipeline.output.commit import Output
from pipeline.plan import divide, make_plans
from pipeline.summary import Summary, print_counts, print_files, print_plan, summarise
from utils import CallError, RunError

if TYPE_CHECKING:
    from mpi4py import MPI

#: How a run ends that is interrupted before it has anything to resume.
NOTHING_DONE = "no pair was completed; run the same command again"
#: glibc uses the largest block that was ever freed, up to 32 MB, as the size below which freed
#: memory is kept for reuse (mallopt(3), M_MMAP_THRESHOLD). Otherwise every image is created in new
#: pages of the system, each of which costs a fault: 15 % of the processor time of 160 pairs.
KEPT_BYTES = 30 << 20
#: Files that a rank has open next to those that it writes.
OTHER_FILES = 256


def make_patches(
    config: Config, ranks: Ranks | MPI.Intracomm | None = None, verbose: bool = False
) -> Summary:
    """Create a data set.

    Parameters
    ----------
    config : Config
    ranks : Ranks or mpi4py.MPI.Intracomm, optional
        The ranks that share the work, each of which calls this function. By default all that the
        launcher started, if the configuration has `mpi_run`, else this process alone.
    verbose : bool
        Print progress, counts and warnings as the command line does, where `config.quiet`,
        `config.verbose` and `config.profile` say how much. By default nothing is printed.

    Returns
    -------
    Summary
        On every rank.

    Raises
    ------
    CallError
        The configuration does not fit the folders: nothing has been written.
    RunError
        The run failed. Both are raised on every rank, with the message of the command line.

    Examples
    --------
    >>> config = Config("raw_data", "results/patches.h5", rot_augment=True)
    >>> make_patches(config).patches  # doctest: +SKIP
    """
    if ranks is None:
        launch.check_mpi_run(config.mpi_run, os.environ)
        ranks = launch.connect(config.mpi_run, os.environ)
    elif not isinstance(ranks, Ranks):
        ranks = Ranks(launch.load_farm(ranks))
    if not verbose:
        config = dataclasses.replace(config, quiet=True, verbose=False, profile=False)
    try:
        summary = _run(config, ranks, verbose)
    except SharedFailure as error:  # of which all ranks know
        kind = CallError if error.status == CallError.status else RunError
        notes = (f" ({note})" for note in getattr(error, "__notes__", ()))
        raise kind("".join([str(error), *notes])) from error
    ranks.close()
    return summary


def _run(config: Config, ranks: Ranks, verbose: bool) -> Summary:
    begin = time.perf_counter()
    np.empty(KEPT_BYTES, np.uint8)
    if not config.dry_run:
        ranks.interruption.note = lambda: NOTHING_DONE
        ranks.on_root(lambda: paths.check(config))
    cohort = find(config, ranks)
    plans = make_plans(cohort, config, ranks)
    files: list[str] = []
    pages: dict[str, Path] = {}
    if not config.dry_run:
        parts = {subset: divide(plan, config) for subset, plan in plans.items()}
        _create(parts, config, ranks)
        files = paths.all_files(config)
        pages = ranks.on_root(lambda: _write_reports(parts, config, cohort.warnings)) or {}

    def show() -> None:
        print_counts(cohort, plans, config)
        if config.verbose or config.dry_run:
            print_plan(cohort, plans, config)
        if config.dry_run:
            dry_run.print_needs(plans, config, ranks.size)
        elif not config.quiet:
            print_files(plans, config, pages)

    if verbose:
        ranks.on_root(show)
    if config.profile and not config.dry_run:
        spent = ranks.on_all(lambda: profile.spent)
        table = profile.table(spent, profile.spent_ahead, time.perf_counter() - begin)
        ranks.on_root(lambda: print("\n".join(table)))
    return ranks.share(lambda: summarise(cohort, plans, files))


def _create(plans: Mapping[str, Sequence[Plan]], config: Config, ranks: Ranks) -> None:
    """Create the files: allocate them or continue partial ones, fill them, finish them."""

    def allocate() -> Output:
        continues = paths.may_resume(config)
        output = Output(plans, config)
        ranks.interruption.note = lambda: output.release() or NOTHING_DONE
        if continues and not config.quiet:
            print(f"{output.pairs_done} were already complete", flush=True)
        return output

    needed = len(paths.all_files(config)) + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, needed)), hard))
    ranks.interruption.note = lambda: f"{NOTHING_DONE} with --resume"
    output = ranks.on_root(allocate)
    try:
        fill(output, config, ranks)
        ranks.on_root(lambda: output.finish() if output else None)
    except BaseException as error:
        if output and (note := output.release()):
            error.add_note(note)
        raise
    ranks.interruption.note = lambda: "the data set is complete; --resume completes the report"


def _write_reports(
    plans: Mapping[str, Sequence[Plan]], config: Config, warnings: Sequence[str]
) -> dict[str, Path]:
    """Write the report on every finished file; return the pages by file."""
    if config.no_report:
        return {}
    # Where the home folder is not writable, matplotlib warns and caches its fonts elsewhere.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from pipeline.report import contents  # here: matplotlib and jinja2 need half a second

    return {
        file: contents.write_report(file, plan, subset, config, warnings)
        for subset, files in paths.files_of(config).items()
        for file, plan in zip(files, plans[subset], strict=True)
    }
