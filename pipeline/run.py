"""The run: find, plan, allocate, fill, finish, show; each step the same for one rank and many."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from pipeline import dry_run, filling, planning, prefetch, profile
from pipeline.cohort import patients
from pipeline.cohort.pairing import PatientPairs
from pipeline.mpi.parallel import World
from pipeline.output import commit
from pipeline.output.commit import Output
from pipeline.planning import Findings
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Config, Plan, Tally, say, shown

#: glibc takes the largest block that was ever freed, up to 32 MB, as the size below which freed
#: memory is kept for reuse (mallopt(3), M_MMAP_THRESHOLD). Else every image would be made in new
#: pages of the system, each of which costs a fault.
KEPT_BYTES = 30 << 20


def run(config: Config, world: World) -> None:
    """Do the whole job that `config` describes, with the ranks of `world`."""
    begin = time.perf_counter()
    np.empty(KEPT_BYTES, np.uint8)
    tally = Tally()
    if not config.dry_run:
        world.on_root(lambda: commit.check(config))
    identify = world.share(world.rank == 0 and not config.dry_run and commit.may_resume(config))
    findings = find(config, world, tally)
    plans = make_plans(findings, config, world, tally, identify)
    if config.dry_run:
        world.on_root(lambda: dry_run.show(plans, findings, config, world.size, tally))
        return
    output = world.on_root(lambda: allocate(plans, config))
    try:
        filling.fill(output, config, world)
        world.on_root(lambda: finish(output))
    except BaseException as error:
        if output and (note := output.release()):
            error.add_note(note)
        raise
    world.on_root(lambda: show(plans, findings, config, tally))
    if config.profile:
        ranks = world.gather(profile.spent)
        wall = time.perf_counter() - begin
        table = profile.table(ranks, profile.spent_ahead, wall)
        world.on_root(lambda: print("\n".join(table)))


# --- find ------------------------------------------------------------------------------------


def find(config: Config, world: World, tally: Tally) -> Findings:
    """Read the headers of all patients and pair their slices."""
    folders = world.on_root(lambda: patients.find_patients(config))
    listings: dict[str, patients.Listing] = {}
    headers: dict[str, dict[patients.SeriesPart, patients.Headers]] = {}
    found: dict[str, PatientPairs] = {}

    def look(one: patients.PatientFolders) -> patients.Listing:
        with step("headers"):
            return patients.list_series(config.input_folder, one)

    def read(part: patients.SeriesPart) -> tuple[patients.SeriesPart, patients.Headers]:
        with step("headers"):
            return part, patients.read_headers(config.input_folder, part)

    def listed(one: patients.Listing) -> None:
        patient = one.folders.patient
        listings[patient], headers[patient] = one, {}
        pair_if_whole(patient)

    def taken(result: tuple[patients.SeriesPart, patients.Headers]) -> None:
        part, told = result
        headers[part.patient][part] = told
        pair_if_whole(part.patient)

    def pair_if_whole(patient: str) -> None:
        """Pair the slices once all headers are there, and let go of what no pair needs."""
        one, told = listings[patient], headers[patient]
        if len(told) == len(one.parts):
            found[patient] = patients.pair_up(one, [told.pop(part) for part in one.parts])

    world.run(folders, look, listed)
    parts = [part for one in listings.values() for part in one.parts]
    world.run(parts, read, taken)
    return world.on_root(lambda: planning.choose_pairs(found, config, tally)) or Findings()


# --- plan ------------------------------------------------------------------------------------


def make_plans(
    findings: Findings, config: Config, world: World, tally: Tally, identify: bool = False
) -> dict[str, Plan]:
    """Look at the pixels as far as needed, and give every pair its place; by side, on rank 0.

    With `identify`, the plans have the digests of all slices.
    """
    collector = planning.Collector(findings, config)
    with Progress("planning", len(findings.tasks), config.quiet) as progress:

        def take(surveys: list[planning.Survey]) -> None:
            for survey in surveys:
                collector.take(survey)
                progress.advance()

        threads = prefetch.threads_for(task.pair for task in findings.tasks)
        survey = planning.surveyor(config, identify)
        tasks = planning.in_twos(findings.tasks)
        world.run(tasks, lambda made: made, take, prepare=survey, threads=threads)
    return world.on_root(lambda: planning.assemble(findings, collector, config, tally)) or {}


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
    files = commit.files_of(config)
    pages = write_reports(plans, config, tally)
    say(tally, config)
    if config.verbose:
        dry_run.show_plan(plans, findings, config)
    if config.quiet:
        return
    for side, plan in plans.items():
        if side:
            patients = sorted({names.patient for names in plan.names})
            print(f"{side:28} {plan.patches} patches of {', '.join(map(shown, patients))}")
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
        for subset, file in commit.files_of(config).items()
    }
