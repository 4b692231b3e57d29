"""The run: find, plan, allocate, fill, finish, report; the same for one rank and many."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import dry_run, filling, plan, prefetch, profile, survey
from pipeline.cohort import patients, selection
from pipeline.cohort.selection import Findings
from pipeline.config import Config
from pipeline.errors import SharedFailure
from pipeline.model import Plan
from pipeline.mpi import launch
from pipeline.mpi.ranks import Ranks
from pipeline.output import paths
from pipeline.output.commit import Output
from pipeline.progress import Progress
from pipeline.tally import Tally, print_tally
from utils import CallError, RunError, printable

if TYPE_CHECKING:
    from mpi4py import MPI


#: glibc takes the largest block that was ever freed, up to 32 MB, as the size below which freed
#: memory is kept for reuse (mallopt(3), M_MMAP_THRESHOLD). Otherwise every image is created in new
#: pages of the system, each of which costs a fault: 15 % of the processor time of 160 pairs.
KEPT_BYTES = 30 << 20


@dataclass(frozen=True)
class Summary:
    """What a run created, or after a dry run what it would create.

    Attributes
    ----------
    patients, pairs, windows, patches : int
        Numbers in all files; windows include those of air.
    files : tuple of str
        The h5 files: one, or with a split one per subset. None after a dry run.
    left_out : tuple of str
        Files that give no patches, and why.
    warnings : tuple of str
    """

    patients: int
    pairs: int
    windows: int
    patches: int
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


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
        ranks = Ranks(ranks)
    if not verbose:
        config = dataclasses.replace(config, quiet=True, verbose=False, profile=False)
    try:
        summary = _run(config, ranks, verbose)
    except SharedFailure as error:  # of which all ranks know
        ranks.close()
        kind = CallError if error.status == CallError.status else RunError
        notes = (f" ({note})" for note in getattr(error, "__notes__", ()))
        raise kind("".join([str(error), *notes])) from error
    ranks.close()
    return summary


def _run(config: Config, ranks: Ranks, verbose: bool) -> Summary:
    begin = time.perf_counter()
    np.empty(KEPT_BYTES, np.uint8)
    tally = Tally()
    if not config.dry_run:
        ranks.on_root(lambda: paths.check(config))
    identify = ranks.share(ranks.rank == 0 and not config.dry_run and paths.may_resume(config))
    findings = find(config, ranks, tally)
    plans = make_plans(findings, config, ranks, tally, identify)
    if config.dry_run:
        if verbose:
            ranks.on_root(lambda: dry_run.show(plans, findings, config, ranks.size, tally))
        return ranks.share(ranks.on_root(lambda: summarise(tally, ())))
    output = ranks.on_root(lambda: allocate(plans, config))
    try:
        filling.fill(output, config, ranks)
        ranks.on_root(lambda: finish(output))
    except BaseException as error:
        if output and (note := output.release()):
            error.add_note(note)
        raise
    pages = ranks.on_root(lambda: write_reports(plans, config, tally)) or {}
    if verbose:
        ranks.on_root(lambda: show(plans, findings, config, tally, pages))
    if config.profile:
        spent = ranks.gather(profile.spent)
        wall = time.perf_counter() - begin
        table = profile.table(spent, profile.spent_ahead, wall)
        ranks.on_root(lambda: print("\n".join(table)))
    files = paths.files_of(config)
    return ranks.share(ranks.on_root(lambda: summarise(tally, [files[side] for side in plans])))


# --- find ------------------------------------------------------------------------------------


def find(config: Config, ranks: Ranks, tally: Tally) -> Findings:
    """Read the headers of all patients and pair their slices."""
    folders = ranks.on_root(lambda: patients.find_patients(config))
    list_series = functools.partial(patients.list_series, config.input_folder)
    listings = {
        one.folders.patient: one for one in ranks.imap_unordered(list_series, folders or [])
    }
    parts = [part for one in listings.values() for part in one.parts]
    headers: dict[str, dict[patients.SeriesPart, patients.Headers]] = {p: {} for p in listings}
    # A patient without a file has no part.
    found = {p: patients.pair_up(one, []) for p, one in listings.items() if not one.parts}
    read_headers = functools.partial(patients.read_headers, config.input_folder)
    for part, read in ranks.imap_unordered(read_headers, parts):
        one, here = listings[part.patient], headers[part.patient]
        here[part] = read
        if len(here) == len(one.parts):  # pair them, and drop what no pair needs
            found[part.patient] = patients.pair_up(one, [here.pop(p) for p in one.parts])
    return ranks.on_root(lambda: selection.choose_pairs(found, config, tally)) or Findings()


# --- plan ------------------------------------------------------------------------------------


def make_plans(
    findings: Findings, config: Config, ranks: Ranks, tally: Tally, identify: bool = False
) -> dict[str, Plan]:
    """Look at the pixels as far as needed, and give every pair its place; by side, on rank 0.

    With `identify`, the plans have the digests of all slices.
    """
    collector = survey.Collector(findings, config)
    with Progress("planning", len(findings.tasks), config.quiet) as progress:
        threads = prefetch.threads_for(task.pair for task in findings.tasks)
        look = survey.Surveyor(config, identify)
        tasks = survey.in_twos(findings.tasks)
        surveys = ranks.imap_unordered(lambda surveyed: surveyed, tasks, look, threads)
        for one in itertools.chain.from_iterable(surveys):
            collector.add(one)
            progress.advance()
    return ranks.on_root(lambda: plan.make_plans(findings, collector, config, tally)) or {}


# --- allocate, finish, report ----------------------------------------------------------------


def allocate(plans: dict[str, Plan], config: Config) -> Output:
    """Create the partial files in their full size, or continue those that are there."""
    output = Output(plans, config)
    if output.pairs_done and not config.quiet:
        print(f"{output.pairs_done} of {output.pairs} pairs were already complete", flush=True)
    return output


def finish(output: Output | None) -> None:
    """Complete the files, and give them their final names."""
    if output:
        output.finish()


def show(
    plans: dict[str, Plan],
    findings: Findings,
    config: Config,
    tally: Tally,
    pages: dict[str, Path],
) -> None:
    """Print the summary."""
    files = paths.files_of(config)
    print_tally(tally, config)
    if config.verbose:
        dry_run.show_plan(plans, findings, config)
    if config.quiet:
        return
    for side, part in plans.items():
        if side:
            patients = sorted({names.patient for names in part.names})
            print(f"{side:28} {part.patches} patches of {', '.join(map(printable, patients))}")
        print(f"{'output':28} {printable(files[side])}")
        if side in pages:
            print(f"{'report':28} {printable(pages[side])}")


def write_reports(plans: dict[str, Plan], config: Config, tally: Tally) -> dict[str, Path]:
    """Write the report on every finished file; return the pages by subset."""
    if config.no_report:
        return {}
    # Where the home folder is not writable, matplotlib warns and caches its fonts elsewhere.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from pipeline.report import write_report  # here: matplotlib and jinja2 take half a second

    return {
        subset: write_report(file, plans[subset], subset, config, tally.warnings)
        for subset, file in paths.files_of(config).items()
    }


def summarise(tally: Tally, files: Sequence[str]) -> Summary:
    """Return the summary of a run that created these files."""
    numbers = {name: tally.counts[name] for name in ("patients", "pairs", "windows", "patches")}
    left_out, warnings = tuple(tally.left_out), tuple(tally.warnings)
    return Summary(**numbers, files=tuple(files), left_out=left_out, warnings=warnings)
