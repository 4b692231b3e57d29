"""The run: find, plan, allocate, fill, finish, show; each step the same for one rank and many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import dicom_io
import h5_store
import patching
from augment import draw_degradations
from parallel import World
from utils import Affine, Config, Pair, PairPlan, Plan, RunError, Tally, generator, listed, shown


@dataclass(frozen=True)
class PairTask:
    """All that a rank needs to make and place the block of one pair."""

    index: int
    pair: Pair
    part: PairPlan
    degradation: str
    start: int


def run(config: Config, world: World) -> None:
    """Do the whole job that `config` describes, with the ranks of `world`."""
    tally = Tally()
    world.on_root(lambda: h5_store.check_output(config))
    pairs = find(config, world, tally)
    plan = make_plan(pairs, config, world, tally)
    layout = world.share(world.on_root(lambda: h5_store.create(checked(plan, tally), config)))
    try:
        affines = fill(plan, layout, config, world)
        world.on_root(lambda: h5_store.finish(layout, affines, config))
    except BaseException:
        if world.rank == 0:
            h5_store.discard(layout)
        raise
    world.on_root(lambda: show(checked(plan, tally), config, tally))


def find(config: Config, world: World, tally: Tally) -> list[Pair]:
    """Return all pairs, ordered by patient and position; on rank 0."""
    folders = world.on_root(lambda: dicom_io.find_patients(config))
    found: dict[str, dicom_io.PatientPairs] = {}
    world.run(
        folders,
        lambda one: (one.patient, dicom_io.find_pairs(config.input_folder, one)),
        lambda result: found.update([result]),
    )
    return world.on_root(lambda: choose_pairs(found, config, tally)) or []


def choose_pairs(
    found: dict[str, dicom_io.PatientPairs], config: Config, tally: Tally
) -> list[Pair]:
    """Return the pairs that the run is about, or refuse with all that is wrong."""
    problems = [p for patient in sorted(found) for p in found[patient].problems]
    if problems:
        raise RunError(listed("the slices do not pair", problems))
    pairs: list[Pair] = []
    for patient in sorted(found):
        one = found[patient]
        tally.add("patients")
        tally.add("stray files ignored", one.strays)
        if one.by_instance:
            tally.warnings.append(
                f"patient {shown(patient)}: no positions, paired by InstanceNumber"
            )
        pairs += draw_pairs(patient, one.pairs, config, tally)
    return pairs


def draw_pairs(patient: str, pairs: list[Pair], config: Config, tally: Tally) -> list[Pair]:
    """Return `--random_N` pairs of a patient in their order, or all."""
    if config.random_N is None:
        return pairs
    if len(pairs) < config.random_N:
        tally.warnings.append(
            f"patient {shown(patient)} has {len(pairs)} pairs, fewer than --random_N "
            f"{config.random_N}: all are taken"
        )
        return pairs
    rng = generator(config.seed, "pairs", patient)
    return [pairs[i] for i in sorted(rng.permutation(len(pairs))[: config.random_N])]


def make_plan(pairs: list[Pair], config: Config, world: World, tally: Tally) -> Plan | None:
    """Count the patches of every pair; on rank 0.

    The counts hang on shapes alone, but for `--air_threshold`: then on the targets' pixels.
    """
    parts: dict[int, PairPlan] = {}
    problems: dict[int, str] = {}

    @lru_cache
    def by_shape(rows: int, columns: int) -> PairPlan:
        return patching.plan_pair((rows, columns), config)

    def count(task: tuple[int, Pair]) -> tuple[int, PairPlan | str]:
        index, pair = task
        target = pair.target
        if not config.air_threshold:
            return index, by_shape(target.rows, target.columns)
        try:
            hu = dicom_io.to_hu(dicom_io.read_pixels(config.input_folder, target), target)
        except RunError as error:
            return index, str(error)
        return index, patching.plan_pair((target.rows, target.columns), config, hu)

    def take(result: tuple[int, PairPlan | str]) -> None:
        index, part = result
        if isinstance(part, str):
            problems[index] = part
        else:
            parts[index] = part

    world.run(list(enumerate(pairs)), count, take)
    return world.on_root(lambda: assemble_plan(pairs, parts, problems, config, tally))


def assemble_plan(
    pairs: list[Pair],
    parts: dict[int, PairPlan],
    problems: dict[int, str],
    config: Config,
    tally: Tally,
) -> Plan:
    """Give every pair its place in the file.

    Raises
    ------
    RunError
        A file could not be read, or no patch would be made.
    """
    if problems:
        raise RunError(listed("bad files", [problems[i] for i in sorted(problems)]))
    ordered = [parts[i] for i in range(len(pairs))]
    starts = [0]
    for part in ordered:
        starts.append(starts[-1] + part.kept_windows * config.orientations)
    windows = sum(sum(part.windows) for part in ordered)
    tally.add("pairs", len(pairs))
    tally.add("windows", windows)
    tally.add("windows of air left out", windows - sum(part.kept_windows for part in ordered))
    tally.add("views smaller than a patch", sum(part.windows.count(0) for part in ordered))
    tally.add("patches", starts[-1])
    if not windows:
        raise RunError(
            f"no patch: every image is smaller than --patch-size p{config.patch_size}; "
            "choose a smaller one"
        )
    if not starts[-1]:
        raise RunError(
            f"no patch: --air_threshold left out all {windows} windows, none with more than "
            f"{patching.TISSUE_PART:.0%} of its pixels above {patching.TISSUE_HU:g} HU and a mean "
            f"above {patching.MEAN_HU:g} HU; are these the right slices?"
        )
    names = [pair.identity for pair in pairs]
    degradations = (
        draw_degradations(names, config.seed) if config.blurr_n_noise else [""] * len(names)
    )
    return Plan(pairs, ordered, starts, degradations)


def checked(plan: Plan | None, tally: Tally) -> Plan:
    """Return the plan where there must be one: on rank 0."""
    assert plan is not None, tally.as_dict()
    return plan


def fill(
    plan: Plan | None, layout: h5_store.Layout, config: Config, world: World
) -> list[tuple[Affine, Affine]]:
    """Make every block and write it at its place; return each pair's normalisation, on rank 0."""
    direct = world.rank == 0 or (config.hand_over != "messages" and world.beside_root)
    writer = world.open_writer(h5_store.PartialFile.seen(layout) if direct else None)
    tasks, affines = [], []
    if plan is not None:
        tasks = [
            PairTask(i, pair, plan.parts[i], plan.degradations[i], plan.starts[i])
            for i, pair in enumerate(plan.pairs)
        ]
        affines = [(Affine(), Affine())] * len(tasks)

    def work(task: PairTask) -> tuple[int, Affine, Affine]:
        pair = task.pair
        images = [dicom_io.read_pixels(config.input_folder, s) for s in (pair.input, pair.target)]
        block = patching.make_block(pair, task.part, task.degradation, images[0], images[1], config)
        h5_store.write_block(writer, layout, block, task.index, task.start)
        return task.index, block.input_affine, block.target_affine

    def take(result: tuple[int, Affine, Affine]) -> None:
        index, *both = result
        affines[index] = (both[0], both[1])

    world.run(tasks, work, take)
    return affines


def show(plan: Plan, config: Config, tally: Tally) -> None:
    """Make the sanity-check pictures and print the summary."""
    import sanity

    folder = sanity.draw(plan, config)
    for name, number in tally.counts.items():
        if number or name in ("patients", "pairs", "patches"):
            print(f"{name:28} {number}")
    for warning in tally.warnings:
        print(f"warning: {warning}")
    print(f"{'output':28} {shown(config.output_fname)}")
    print(f"{'pictures to check it by':28} {shown(folder)}")
