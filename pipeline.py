"""The run: find, plan, allocate, fill, finish, show; each step the same for one rank and many."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

import ahead
import dicom_io
import h5_store
import outputs
import patching
import planning
import preview
import stopwatch
from journal import Written
from pairing import PatientPairs
from parallel import World
from planning import Findings
from progress import Progress
from stopwatch import step
from utils import Affine, Config, Pair, PairPlan, Plan, Tally, quoted, say, shown

if TYPE_CHECKING:
    from report_pictures import Coverage


#: glibc takes the largest block that was ever freed, up to 32 MB, as the size below which freed
#: memory is kept for reuse (mallopt(3), M_MMAP_THRESHOLD). Else every image would be made in new
#: pages of the system, each of which costs a fault.
KEPT_BYTES = 30 << 20


@dataclass(frozen=True)
class PairTask:
    """All that a rank needs to make and place the block of one pair."""

    file: int
    index: int
    pair: Pair
    part: PairPlan
    degradation: str
    start: int
    fixed: Affine | None


@dataclass(frozen=True)
class DrawTask:
    """All that a rank needs to draw a slice with its windows: as a picture, or for the page."""

    file: int
    for_page: bool
    index: int
    pair: Pair
    part: PairPlan
    target_file: str


@dataclass(frozen=True)
class Filled:
    """What rank 0 is told of a block that is in the file."""

    file: int
    index: int
    record: Written


@dataclass(frozen=True)
class Drawn:
    """A slice with its windows: PNG, or for the page."""

    file: int
    index: int
    picture: bytes | Coverage


@dataclass
class Drawings:
    """The slices of a file with their windows, by number of their pair: PNG, and for the page."""

    pictures: dict[int, bytes] = field(default_factory=dict)
    page: dict[int, Coverage] = field(default_factory=dict)

    def put(self, index: int, picture: bytes | Coverage) -> None:
        """Take one of them."""
        if isinstance(picture, bytes):
            self.pictures[index] = picture
        else:
            self.page[index] = picture


def run(config: Config, world: World) -> None:
    """Do the whole job that `config` describes, with the ranks of `world`."""
    begin = time.perf_counter()
    np.empty(KEPT_BYTES, np.uint8)
    tally = Tally()
    if not config.dry_run:
        world.on_root(lambda: outputs.check(config))
    findings = find(config, world, tally)
    plans = make_plans(findings, config, world, tally)
    if config.dry_run:
        world.on_root(lambda: preview.show(plans, findings, config, world.size, tally))
        return
    claims = world.on_root(lambda: allocate(plans, config)) or []
    try:
        drawings = fill(plans, claims, config, world)
        world.on_root(lambda: finish(plans, claims, config))
    except BaseException as error:
        kept = [path for claim in claims if (path := claim.release())]
        if kept:
            error.add_note(f"what was done is in {', '.join(map(quoted, kept))}; --resume goes on")
        raise
    world.on_root(lambda: show(plans, findings, config, tally, drawings))
    if config.profile:
        ranks = world.gather(stopwatch.spent)
        wall = time.perf_counter() - begin
        table = stopwatch.table(ranks, stopwatch.spent_ahead, wall)
        world.on_root(lambda: print("\n".join(table)))


def threads_for(pairs: Iterable[Pair]) -> int:
    """Return how many threads may read these pairs: none where decoders are needed.

    Some of those are no friends of threads, and one is run in a process that is forked.
    """
    plain = all(one.pixel_offset is not None for pair in pairs for one in (pair.input, pair.target))
    return ahead.threads() if plain else 0


# --- find ------------------------------------------------------------------------------------


def find(config: Config, world: World, tally: Tally) -> Findings:
    """Read the headers of all patients and pair their slices."""
    folders = world.on_root(lambda: dicom_io.find_patients(config))
    listings: dict[str, dicom_io.Listing] = {}
    headers: dict[str, dict[dicom_io.SeriesPart, dicom_io.Headers]] = {}
    found: dict[str, PatientPairs] = {}

    def look(one: dicom_io.PatientFolders) -> dicom_io.Listing:
        with step("headers"):
            return dicom_io.list_series(config.input_folder, one)

    def read(part: dicom_io.SeriesPart) -> tuple[dicom_io.SeriesPart, dicom_io.Headers]:
        with step("headers"):
            return part, dicom_io.read_headers(config.input_folder, part)

    def listed(one: dicom_io.Listing) -> None:
        patient = one.folders.patient
        listings[patient], headers[patient] = one, {}
        pair_if_whole(patient)

    def taken(result: tuple[dicom_io.SeriesPart, dicom_io.Headers]) -> None:
        part, told = result
        headers[part.patient][part] = told
        pair_if_whole(part.patient)

    def pair_if_whole(patient: str) -> None:
        """Pair the slices once all headers are there, and let go of what no pair needs."""
        one, told = listings[patient], headers[patient]
        if len(told) == len(one.parts):
            found[patient] = dicom_io.pair_up(one, [told.pop(part) for part in one.parts])

    world.run(folders, look, listed)
    parts = [part for one in listings.values() for part in one.parts]
    world.run(parts, read, taken)
    return world.on_root(lambda: planning.choose_pairs(found, config, tally)) or Findings()


# --- plan ------------------------------------------------------------------------------------


def make_plans(findings: Findings, config: Config, world: World, tally: Tally) -> dict[str, Plan]:
    """Look at the pixels as far as needed, and give every pair its place; by side, on rank 0."""
    collector = planning.Collector(findings, config)
    with Progress("planning", len(findings.tasks), config.quiet) as progress:

        def take(survey: planning.Survey) -> None:
            collector.take(survey)
            progress.advance()

        threads = threads_for(task.pair for task in findings.tasks)
        survey = planning.surveyor(config)
        world.run(findings.tasks, lambda made: made, take, prepare=survey, threads=threads)
    return world.on_root(lambda: planning.assemble(findings, collector, config, tally)) or {}


# --- allocate, fill, finish, show ------------------------------------------------------------


def allocate(plans: dict[str, Plan], config: Config) -> list[outputs.Claim]:
    """Make the partial files in their full size, or go on with those that are there."""
    claims: list[outputs.Claim] = []
    try:
        for side, path in outputs.files_of(config).items():
            claims.append(outputs.Claim(plans[side], path, config))
    except BaseException:
        for claim in claims:
            claim.release()
        raise
    return claims


def fill(
    plans: dict[str, Plan], claims: list[outputs.Claim], config: Config, world: World
) -> list[Drawings]:
    """Make every block that is not there yet and write it at its place; draw the slices to show.

    Returns
    -------
    list of Drawings
        One for each file, on rank 0.
    """
    layouts = world.share([claim.layout for claim in claims])
    direct = config.hand_over != "messages" and world.beside_root
    files = [_open(layout, world.rank, direct) for layout in layouts]
    writers = world.open_writers(files)
    tasks: list[PairTask | DrawTask] = [
        PairTask(file, i, pair, plan.parts[i], plan.degradations[i], plan.starts[i], plan.fixed)
        for file, (plan, claim) in enumerate(zip(plans.values(), claims, strict=True))
        for i, pair in enumerate(plan.pairs)
        if not claim.complete and i not in claim.done
    ]

    # Last: small tasks at the end leave no rank waiting for long.
    tasks += to_draw(plans, config)
    drawings = [Drawings() for _ in plans]

    def prepare(task: PairTask | DrawTask) -> Drawn | tuple[PairTask, patching.Block]:
        return draw(task, config) if isinstance(task, DrawTask) else (task, make(task))

    def make(task: PairTask) -> patching.Block:
        pair = task.pair
        read = dicom_io.Reader(config.input_folder)
        with step("read"):
            images = [
                read.hu(one) if config.in_hu else read.stored(one)
                for one in (pair.input, pair.target)
            ]
        return patching.make_block(
            pair, task.part, task.degradation, images[0], images[1], config, task.fixed
        )

    def work(prepared: Drawn | tuple[PairTask, patching.Block]) -> Filled | Drawn:
        if isinstance(prepared, Drawn):
            return prepared
        task, block = prepared
        layout = layouts[task.file]
        record = h5_store.write_block(writers[task.file], layout, block, task.index, task.start)
        return Filled(task.file, task.index, record)

    def name(task: PairTask | DrawTask) -> str:
        return f"{shown(task.pair.input.file)}: "

    blocks = sum(isinstance(task, PairTask) for task in tasks)
    with Progress("filling", blocks, config.quiet) as progress:

        def take(result: Filled | Drawn) -> None:
            if isinstance(result, Drawn):
                drawings[result.file].put(result.index, result.picture)
                return
            claim, index = claims[result.file], result.index
            claim.note(index, result.record)
            patches = claim.plan.starts[index + 1] - claim.plan.starts[index]
            progress.advance(patches * config.bytes_a_patch)

        threads = threads_for(task.pair for task in tasks)
        world.run(tasks, work, take, name, prepare, threads)
    for one in files:
        if one:
            one.close()
    return drawings


def to_draw(plans: dict[str, Plan], config: Config) -> list[DrawTask]:
    """Return which slices are to be drawn with their windows; rank 0 alone has plans."""
    if not plans:
        return []
    import report_pictures
    import sanity

    return [
        DrawTask(file, for_page, i, plan.pairs[i], plan.parts[i], plan.names[i].target_file)
        for file, plan in enumerate(plans.values())
        for for_page, choose in (
            (False, sanity.coverage_pairs),
            (True, report_pictures.coverage_pairs),
        )
        for i in choose(plan, config)
    ]


def draw(task: DrawTask, config: Config) -> Drawn:
    """Draw one slice."""
    import report_pictures
    import sanity

    with step("draw"):
        what = report_pictures.coverage if task.for_page else sanity.coverage
        return Drawn(task.file, task.index, what(task.pair, task.part, task.target_file, config))


def _open(layout: h5_store.Layout, rank: int, direct: bool) -> h5_store.PartialFile | None:
    """Open a file for writing, or return None where its bytes have to go through rank 0."""
    if rank == 0:
        return h5_store.PartialFile(layout)
    return h5_store.PartialFile.seen(layout) if direct else None


def finish(plans: dict[str, Plan], claims: list[outputs.Claim], config: Config) -> None:
    """Complete the files, and with `--anonymize` the key of the pseudonyms."""
    if config.anonymize:
        key: dict[str, str] = {}
        for plan in plans.values():
            for pair, names in zip(plan.pairs, plan.names, strict=True):
                real = (pair.patient, pair.input.file, pair.target.file)
                key |= dict(zip(names, real, strict=True))
        outputs.write_key(key, config)
    outputs.finish(claims)


def show(
    plans: dict[str, Plan],
    findings: Findings,
    config: Config,
    tally: Tally,
    drawings: list[Drawings],
) -> None:
    """Save the sanity-check pictures and the page, and print the summary."""
    import report
    import sanity

    files = outputs.files_of(config)
    command = shlex.join(["python", "main.py", *config.argv])
    folders, pages = [], []
    for (side, plan), drawn in zip(plans.items(), drawings, strict=True):
        folders.append(sanity.draw(plan, files[side], side, config, drawn.pictures))
        slices = [drawn.page[i] for i in sorted(drawn.page)]
        pages.append(report.write(plan, files[side], side, config, tally, command, slices)[0])
    say(tally, config)
    if config.verbose:
        preview.show_plan(plans, findings, config)
    if config.quiet:
        return
    for (side, plan), folder, page in zip(plans.items(), folders, pages, strict=True):
        if side:
            patients = sorted({names.patient for names in plan.names})
            print(f"{side:28} {plan.patches} patches of {', '.join(map(shown, patients))}")
        print(f"{'output':28} {shown(files[side])}")
        print(f"{'page to keep with it':28} {shown(page)}")
        print(f"{'pictures to check it by':28} {shown(folder)}")
