"""The plan: the subset of every pair, its names, and the offset of its block."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

import augment
import patching
from ctpatches.normalisation import fixed_affine
from pipeline.cohort import splitting
from pipeline.cohort.selection import Cohort
from pipeline.config import Config
from pipeline.model import LeftOut, Names, Pair, PairPlan, Plan, View, Windows
from pipeline.mpi.ranks import Ranks
from pipeline.output import paths
from pipeline.survey import Survey, survey_pairs
from utils import RunError, join_lines, printable


def make_plans(cohort: Cohort, config: Config, ranks: Ranks) -> dict[str, Plan]:
    """Survey the pixels on all ranks, and return the plan of each subset, on rank 0."""
    surveys = survey_pairs(cohort, config, ranks)
    return ranks.on_root(lambda: plan_files(cohort, surveys, config)) or {}


def plan_files(cohort: Cohort, surveys: Mapping[int, Survey], config: Config) -> dict[str, Plan]:
    """Assign every pair to a subset and to an offset in it: '' is the subset without a split.

    Raises RunError if a file could not be read, a pair does not look like one, or there would be no
    patch.
    """
    problems = [survey.problem for _, survey in sorted(surveys.items()) if survey.problem]
    if problems and config.bad_files == "error":
        headline = "files that cannot be used (to continue without them: --bad-files skip)"
        raise RunError(join_lines(headline, map(str, problems)))
    _check_anatomy(cohort, config)
    left_out = cohort.left_out + problems
    chosen = [(task.pair, surveys[task.index]) for task in cohort.tasks if task.chosen]
    planned = [(pair, survey) for pair, survey in chosen if not survey.problem]
    if not planned:
        raise RunError(join_lines("no pair is left", map(str, left_out)))
    cohort.ranges = [survey.ranges for _, survey in planned]
    pairs = [pair for pair, _ in planned]
    subsets = _choose_subsets(cohort, pairs, config)
    training = [
        s.statistics for p, s in planned if s.statistics and subsets[p.patient] in ("", "train")
    ]
    fixed = fixed_affine(config.normalization_type, config.hu_window, training)
    degradations = [""] * len(pairs)
    if config.blurr_n_noise:
        degradations = augment.draw_degradations([pair.identity for pair in pairs], config.seed)
    names = _names(pairs, cohort, config)
    plans = {}
    for subset in paths.subsets_of(config):
        mine = (
            PairPlan(pair, name, survey.windows, degradation, fixed, survey.digests)
            for (pair, survey), name, degradation in zip(planned, names, degradations, strict=True)
            if subsets[pair.patient] == subset
        )
        plans[subset] = Plan(
            _placed(mine, config),
            left_out=[
                _named(one, cohort, config)
                for one in left_out
                if subsets.get(one.patient, subset) == subset  # incomplete patients: in every file
            ],
        )
        _check_patches(subset, plans[subset].pairs, config)
    return plans


def _placed(pairs: Iterable[PairPlan], config: Config) -> list[PairPlan]:
    """Return these pairs with their places in a file."""
    out = []
    patch = pixel = 0
    for index, planned in enumerate(pairs):
        patches = planned.windows.kept_windows * config.orientations
        pixels = patches * config.patch_size**2
        views: tuple[View, ...] = ()
        if config.store == "views":
            views = tuple(_views(planned, index, pixel, config))
            pixels = sum(view.rows * view.columns for view in views)
        end, pixel_end = patch + patches, pixel + pixels
        placed = dataclasses.replace(
            planned, index=index, patches=(patch, end), pixels=(pixel, pixel_end), views=views
        )
        out.append(placed)
        patch, pixel = end, pixel_end
    return out


def _views(planned: PairPlan, index: int, offset: int, config: Config) -> Iterator[View]:
    """Yield the views of a pair with kept windows, the first of them at that offset."""
    target = planned.pair.target
    for scale, kept in zip(config.scales, planned.windows.kept_masks(), strict=True):
        if kept.any():
            shape = augment.view_shape((target.rows, target.columns), scale)
            padded = patching.Grid(shape, config).shape
            yield View(index, scale, offset, *padded)
            offset += math.prod(padded)


def divide(plan: Plan, config: Config) -> list[Plan]:
    """Divide the plan of a subset into the plans of its `--nsplit` files.

    Their kept windows are equally many, or one more, in the order of the undivided plan. So the end
    of a file may lie within a pair: both files then have the pair, with a part of its windows each.
    Pairs and windows without a patch are in one file, that of the patches before them.
    """
    if config.nsplit == 1:
        return [plan]
    n, first = config.nsplit, 0
    starts = [start // config.orientations for start in plan.starts]  # in windows
    cuts = [starts[-1] * number // n for number in range(n + 1)]
    plans = []
    for low, high in itertools.pairwise(cuts):
        after = bisect.bisect_right(starts, high, lo=1) - 1  # the first pair that ends after it
        stop = after + (after < len(plan.pairs) and starts[after] < high)
        pairs = [
            dataclasses.replace(one, windows=_between(one.windows, low - start, high - start))
            for one, start in zip(plan.pairs[first:stop], starts[first:stop], strict=True)
        ]
        plans.append(Plan(_placed(pairs, config), plan.left_out))
        first = after
    return plans


def _between(windows: Windows, low: int, high: int) -> Windows:
    """Return the windows of the part of a pair with its kept windows number `low` to `high`.

    Windows of air are in the part of the kept one before them, or else of the first.
    """
    if low <= 0 and high >= windows.kept_windows:
        return windows
    kept = np.concatenate(windows.kept_masks())
    number = np.cumsum(kept)  # of kept windows, up to and with each
    first = int(np.searchsorted(number, low, "right")) if low > 0 else 0
    end = int(np.searchsorted(number, high, "right"))
    kept[:first] = kept[end:] = False
    return Windows.of(np.split(kept, np.cumsum(windows.numbers)[:-1]), (first, end))


def _check_anatomy(cohort: Cohort, config: Config) -> None:
    """Raise an error for pairs that do not look like the same anatomy, or warn of them."""
    misfits = sorted(cohort.misfits.items())
    lines = [line for _, lines_of_one in misfits for line in lines_of_one]
    if lines and config.anatomy_check == "error":
        raise RunError(join_lines("not the same anatomy (see --anatomy-check)", lines))
    if config.anonymize:
        lines = [f"{len(of)} pairs of {cohort.names[patient]}" for patient, of in misfits if of]
    cohort.warnings += [f"not the same anatomy: {line}" for line in lines]


def _choose_subsets(cohort: Cohort, pairs: Sequence[Pair], config: Config) -> dict[str, str]:
    """Return the subset of each patient: '' without a split."""
    if not config.has_subsets:
        return dict.fromkeys(cohort.persons, "")
    groups, reasons = splitting.same_persons(cohort.persons)
    if config.split_file is not None:
        incomplete = cohort.names.keys() - cohort.persons.keys()
        subsets = splitting.read_subsets(config.split_file, groups, incomplete)
    else:
        parts = config.split or ()
        subsets = splitting.draw_subsets(groups, parts, config.seed)
        cohort.warnings += splitting.deviations(subsets, parts)
    for one, other, tags in reasons:
        names = " and ".join(printable(cohort.names[patient]) for patient in (one, other))
        cohort.warnings.append(f"{names} are the same person: same {tags}")
    empty = set(subsets.values()) - {subsets[pair.patient] for pair in pairs}
    if empty:
        raise RunError(
            f"the split leaves {', '.join(sorted(empty))} without a pair; expected: at least one; "
            "choose another --seed, or the patients with --split-file"
        )
    return subsets


def _names(pairs: Sequence[Pair], cohort: Cohort, config: Config) -> list[Names]:
    """Return the names of pairs in the file: real ones or pseudonyms."""
    if not config.anonymize:
        return [Names(p.patient, p.input.file, p.target.file) for p in pairs]
    out = []
    for patient, its_pairs in itertools.groupby(cohort.names[pair.patient] for pair in pairs):
        for i, _ in enumerate(its_pairs, 1):
            out.append(Names(patient, f"{patient}/in_{i:04d}", f"{patient}/target_{i:04d}"))
    return out


def _named(one: LeftOut, cohort: Cohort, config: Config) -> LeftOut:
    """Return what was left out by its pseudonym, if there are any."""
    if not config.anonymize:
        return one
    name = cohort.names[one.patient]
    return LeftOut(name, (name,), one.kind, one.kind)


def _check_patches(subset: str, pairs: Sequence[PairPlan], config: Config) -> None:
    where = f"{subset}: " if subset else ""
    windows = sum(sum(one.windows.numbers) for one in pairs)
    kept = sum(one.windows.kept_windows for one in pairs)
    if not windows:
        raise RunError(
            f"{where}no patch: every image is smaller than --patch-size p{config.patch_size}; "
            "choose a smaller one"
        )
    if not kept:
        raise RunError(
            f"{where}no patch: --air_threshold left out all {windows} windows, none with "
            f"{patching.air_rule(config)}; are these the right slices?"
        )
    if kept < config.nsplit:
        raise RunError(
            f"{where}--nsplit {config.nsplit} is more than the {kept} windows with patches; "
            f"expected: 1 to {kept}, so that every file has a patch"
        )
