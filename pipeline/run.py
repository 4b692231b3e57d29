"""The run: find, plan, allocate, fill, finish, show; each step the same for one rank and many."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from pathlib import Path

from pipeline import dry_run, filling, plan, prefetch, profile, survey
from pipeline.cohort import patients, selection
from pipeline.cohort.selection import Findings
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.mpi.ranks import Ranks
from pipeline.output import paths
from pipeline.output.commit import Output
from pipeline.progress import Progress
from utils import Tally, say, shown


def run(config: Config, ranks: Ranks) -> None:
    """Do the whole job that `config` describes, with the ranks of `ranks`."""
    begin = time.perf_counter()
    tally = Tally()
    if not config.dry_run:
        ranks.on_root(lambda: paths.check(config))
    identify = ranks.share(ranks.rank == 0 and not config.dry_run and paths.may_resume(config))
    findings = find(config, ranks, tally)
    plans = make_plans(findings, config, ranks, tally, identify)
    if config.dry_run:
        ranks.on_root(lambda: dry_run.show(plans, findings, config, ranks.size, tally))
        return
    output = ranks.on_root(lambda: allocate(plans, config))
    try:
        filling.fill(output, config, ranks)
        ranks.on_root(lambda: finish(output))
    except BaseException as error:
        if output and (note := output.release()):
            error.add_note(note)
        raise
    ranks.on_root(lambda: show(plans, findings, config, tally))
    if config.profile:
        spent = ranks.gather(profile.spent)
        wall = time.perf_counter() - begin
        table = profile.table(spent, profile.spent_ahead, wall)
        ranks.on_root(lambda: print("\n".join(table)))


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


# --- allocate, finish, show ------------------------------------------------------------------


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
) -> None:
    """Write the reports, and print the summary."""
    files = paths.files_of(config)
    pages = write_reports(plans, config, tally)
    say(tally, config)
    if config.verbose:
        dry_run.show_plan(plans, findings, config)
    if config.quiet:
        return
    for side, part in plans.items():
        if side:
            patients = sorted({names.patient for names in part.names})
            print(f"{side:28} {part.patches} patches of {', '.join(map(shown, patients))}")
        print(f"{'output':28} {shown(files[side])}")
        if side in pages:
            print(f"{'report':28} {shown(pages[side])}")


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
