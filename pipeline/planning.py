"""From the headers to the plan: which pairs there are, what their pixels show, where each goes.

All of it happens on one rank, but for the function that `surveyor` returns, which looks at a pair
on whichever rank has time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import augment
import patching
from ctpatches.checksums import pixel_digest
from pipeline.cohort import splitting
from pipeline.cohort.pairing import UNPAIRED, PatientPairs, Sample, misfits
from pipeline.dicom import dicom_io
from pipeline.output import commit
from pipeline.profile import step
from utils import (
    Affine,
    Config,
    LeftOut,
    Names,
    Pair,
    PairPlan,
    Plan,
    RunError,
    Slice,
    Tally,
    generator,
    listed,
    shown,
    sum_of,
)


class Figures(NamedTuple):
    """What the normalisations by data set need to know of one input image, HU."""

    pixels: int
    low: float
    high: float
    mean: float
    squares: float  # of the deviations from the mean


@dataclass(frozen=True)
class SurveyTask:
    """A pair to look at before any patch is made.

    `chosen` is False for pairs that are there to find out who is the same person only; `others` are
    neighbouring target slices that are in no pair of the run.
    """

    index: int
    pair: Pair
    chosen: bool
    others: tuple[Slice, ...]


@dataclass
class Survey:
    """What a look at the pixels of a pair has shown; empty where nobody asked."""

    index: int
    patient: str
    part: PairPlan | None = None
    input_sample: Sample | None = None
    target_sample: Sample | None = None
    other_samples: tuple[Sample, ...] = ()
    figures: Figures | None = None
    digests: tuple[int, ...] = ()
    persons: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    problem: LeftOut | None = None


@dataclass
class Findings:
    """What rank 0 knows of the patients before planning; empty on other ranks."""

    pairs: list[Pair] = field(default_factory=list)
    tasks: list[SurveyTask] = field(default_factory=list)
    persons: dict[str, set[str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    ranges: list[tuple[tuple[float, float], ...]] = field(default_factory=list)


# --- which pairs there are -------------------------------------------------------------------


#: Which option is about which kind of what cannot be used.
_SKIPS = (("--bad-files", dicom_io.BAD), ("--unpaired", UNPAIRED))


def choose_pairs(found: dict[str, PatientPairs], config: Config, tally: Tally) -> Findings:
    """Return the pairs that the run is about, ordered by patient and position.

    Raises
    ------
    RunError
        Files are bad, or slices do not pair: all of them at once.
    """
    patients = sorted(found)
    problems: list[LeftOut] = []
    left_out: list[LeftOut] = []
    for patient in patients:
        one = found[patient]
        # Where a bad file is left out, the slice at its position has lost its partner.
        skip = config.unpaired == "skip" or (config.bad_files == "skip" and bool(one.bad))
        (left_out if config.bad_files == "skip" else problems).extend(one.bad)
        (left_out if skip else problems).extend(one.unpaired)
    if problems:
        kinds = {problem.kind for problem in problems}
        hints = [f"{option} skip" for option, kind in _SKIPS if kind in kinds]
        headline = f"slices that cannot be used (to go on without them: {', '.join(hints)})"
        raise RunError(listed(headline, map(str, problems)))
    findings = Findings(
        persons={patient: set(found[patient].persons) for patient in patients}, left_out=left_out
    )
    for patient in patients:
        one = found[patient]
        tally.add("patients")
        tally.add("stray files ignored", one.strays)
        if one.by_instance:
            tally.warn("patient {}: no positions, paired by InstanceNumber", patient)
        add_tasks(patient, one.pairs, config, findings, tally)
    _check_rescale(findings.pairs, config)
    if not findings.pairs:
        raise RunError(listed("no pair is left", map(str, left_out)))
    return findings


def add_tasks(
    patient: str, pairs: list[Pair], config: Config, findings: Findings, tally: Tally
) -> None:
    """Choose `--random_N` pairs of a patient, or all, and add what is to be looked at."""
    chosen = set(draw_pairs(patient, len(pairs), config, tally))
    split = config.split is not None or config.split_file is not None
    for place, pair in enumerate(pairs):
        if place in chosen:
            beside = {place - 1, place + 1} - chosen
            others = tuple(pairs[i].target for i in sorted(beside) if 0 <= i < len(pairs))
            findings.tasks.append(SurveyTask(len(findings.pairs), pair, True, others))
            findings.pairs.append(pair)
        elif split:
            findings.tasks.append(SurveyTask(-1, pair, False, ()))


def draw_pairs(patient: str, pairs: int, config: Config, tally: Tally) -> list[int]:
    """Draw `--random_N` of a patient's pairs, or take all."""
    if config.random_N is None:
        return list(range(pairs))
    if pairs < config.random_N:
        tally.warn(
            f"patient {{}} has {pairs} pairs, fewer than --random_N {config.random_N}: all are "
            "taken",
            patient,
        )
        return list(range(pairs))
    rng = generator(config.seed, "pairs", patient)
    return sorted(int(i) for i in rng.permutation(pairs)[: config.random_N])


def _check_rescale(pairs: Sequence[Pair], config: Config) -> None:
    """Refuse stored values that mean different things in different files."""
    if config.in_hu:
        return
    first: dict[tuple[float, float], str] = {}
    for pair in pairs:
        for one in (pair.input, pair.target):
            first.setdefault((one.slope, one.intercept), one.file)
    if len(first) > 1:
        lines = [f"{shown(f)}: slope {s:g}, intercept {i:g}" for (s, i), f in first.items()]
        raise RunError(
            listed("stored values mean different things in this job; add --intensity hu", lines)
        )


# --- what their pixels show ------------------------------------------------------------------


def in_twos(tasks: Sequence[SurveyTask]) -> list[tuple[SurveyTask, ...]]:
    """Put two pairs into a task: two targets are scaled in less time than each alone."""
    return [tuple(tasks[i : i + 2]) for i in range(0, len(tasks), 2)]


def surveyor(config: Config, identify: bool) -> Callable[[Sequence[SurveyTask]], list[Survey]]:
    """Return the function that looks at a few pairs; `identify` asks for the digests of slices."""
    split = config.split is not None or config.split_file is not None

    @lru_cache
    def by_shape(rows: int, columns: int) -> PairPlan:
        return patching.plan_pair((rows, columns), config)

    def survey(tasks: Sequence[SurveyTask]) -> list[Survey]:
        with step("plan"):
            readers = [dicom_io.Reader(config.input_folder) for _ in tasks]
            out = [look(*one) for one in zip(tasks, readers, strict=True)]
            if config.air_threshold:
                good = [i for i, task in enumerate(tasks) if task.chosen and not out[i].problem]
                targets = [readers[i].last_hu(tasks[i].pair.target) for i in good]
                views = augment.downscale_all(targets, config.scales)
                for i, target, of_one in zip(good, targets, views, strict=True):
                    shape = (target.shape[0], target.shape[1])
                    out[i].part = patching.plan_pair(shape, config, of_one)
            return out

    def look(task: SurveyTask, read: dicom_io.Reader) -> Survey:
        out = Survey(task.index, task.pair.patient)
        pair = task.pair
        try:
            if split or identify:
                images = read.hu(pair.input), read.hu(pair.target)
                out.digests = tuple(map(pixel_digest, images))
                out.persons = tuple(map(_person, images, out.digests))
            if not task.chosen:
                return out
            if config.dry_run:
                images = read.hu(pair.input), read.hu(pair.target)
                out.ranges = tuple((float(i.min()), float(i.max())) for i in images)
            if config.normalization_type.startswith("dataset"):
                out.figures = figures_of(read.hu(pair.input))
            target = pair.target
            if config.air_threshold:
                read.stored(target)  # whatever is wrong with it is found here
            else:
                out.part = by_shape(target.rows, target.columns)
            if config.anatomy_check != "off":
                out.input_sample = read.sample(pair.input)
                out.target_sample = read.sample(target)
                out.other_samples = tuple(read.sample(one) for one in task.others)
            elif any(one.pixel_offset is None for one in (pair.input, target)):
                # Whether they decode shows up here, before any patch is made.
                for one in (pair.input, target):
                    read.stored(one)
        except dicom_io.BadFile as error:
            out.problem = LeftOut(pair.patient, (error.file,), error.reason, dicom_io.BAD)
        return out

    return survey


def _person(hu: NDArray[np.float32], digest: int) -> str:
    """Return what identifies a person by an image: nothing by a constant one."""
    return "" if hu.min() == hu.max() else f"identical pixels {digest:016x}"


def figures_of(image: NDArray[np.float32]) -> Figures:
    """Return extremes, mean and sum of squared deviations of an image."""
    mean = sum_of(np.asarray, image) / image.size
    squares = sum_of(lambda part: np.square(np.subtract(part, mean, dtype=np.float64)), image)
    return Figures(image.size, float(image.min()), float(image.max()), mean, squares)


def fixed_affine(figures: Sequence[Figures], config: Config) -> Affine | None:
    """Return the normalisation that is the same for every image, or None.

    Means and deviations of the images are combined as by Chan, Golub and LeVeque, 1979, in the
    order of the pairs: the result does not hang on who looked at which.
    """
    if config.normalization_type == "hu_window":
        low, high = config.hu_window
        return Affine(low, high - low)
    if config.normalization_type == "dataset_unity":
        low = min(f.low for f in figures)
        return Affine(low, max(f.high for f in figures) - low)
    if config.normalization_type == "dataset_std":
        pixels, mean, squares = 0, 0.0, 0.0
        for one in figures:
            apart = one.mean - mean
            both = pixels + one.pixels
            squares += one.squares + apart * apart * (pixels / both) * one.pixels
            mean += apart * one.pixels / both
            pixels = both
        return Affine(mean, math.sqrt(squares / pixels))
    return None


class Collector:
    """Takes surveys in any order, on rank 0, and compares a patient's images when all are there."""

    def __init__(self, findings: Findings, config: Config) -> None:
        self.findings, self.config = findings, config
        self.surveys: dict[int, Survey] = {}
        self.problems: dict[int, LeftOut] = {}
        self.misfits: dict[str, list[str]] = {}
        self.waiting: dict[str, set[int]] = {}
        for task in findings.tasks:
            if task.chosen:
                self.waiting.setdefault(task.pair.patient, set()).add(task.index)
        self.others = {task.index: task.others for task in findings.tasks if task.others}
        self.members = {patient: sorted(members) for patient, members in self.waiting.items()}

    def take(self, survey: Survey) -> None:
        """Take note of one survey."""
        patient = survey.patient
        self.findings.persons[patient].update(filter(None, survey.persons))
        if survey.index < 0:  # a pair that is not chosen may be as bad as it likes
            return
        self.surveys[survey.index] = survey
        if survey.problem:
            self.problems[survey.index] = survey.problem
        waiting = self.waiting[patient]
        waiting.discard(survey.index)
        if not waiting and self.config.anatomy_check != "off":
            self.compare(patient)

    def compare(self, patient: str) -> None:
        """Compare the images of a patient, and let go of their samples."""
        ours = [self.surveys[i] for i in self.members[patient] if i not in self.problems]
        pairs = [self.findings.pairs[s.index] for s in ours]
        inputs = [s.input_sample for s in ours if s.input_sample is not None]
        targets = [s.target_sample for s in ours if s.target_sample is not None]
        others = [
            (one, sample)
            for s in ours
            for one, sample in zip(self.others.get(s.index, ()), s.other_samples, strict=True)
        ]
        self.misfits[patient] = misfits(pairs, inputs, targets, others)
        for s in ours:
            s.input_sample = s.target_sample = None
            s.other_samples = ()


# --- where each goes --------------------------------------------------------------------------


def assemble(
    findings: Findings, collector: Collector, config: Config, tally: Tally
) -> dict[str, Plan]:
    """Give every pair its side and its place in that side's file.

    Raises
    ------
    RunError
        A file could not be read, a pair does not look like one, or no patch would be made.
    """
    problems = [collector.problems[i] for i in sorted(collector.problems)]
    if problems and config.bad_files == "error":
        headline = "files that cannot be used (to go on without them: --bad-files skip)"
        raise RunError(listed(headline, map(str, problems)))
    findings.left_out += problems
    wrong = [line for patient in sorted(collector.misfits) for line in collector.misfits[patient]]
    if wrong and config.anatomy_check == "error":
        raise RunError(listed("not the same anatomy (see --anatomy-check)", wrong))
    tally.numbers = number_patients(findings.persons, config)
    for patient, lines in sorted(collector.misfits.items()):
        if config.anonymize and lines:
            tally.warn(f"not the same anatomy: {len(lines)} pairs of {{}}", patient)
        else:
            for line in lines:
                tally.warn("not the same anatomy: " + line.replace("{", "{{").replace("}", "}}"))
    good = [i for i in range(len(findings.pairs)) if i not in collector.problems]
    findings.pairs = [findings.pairs[i] for i in good]
    surveys = [collector.surveys[i] for i in good]
    findings.ranges = [survey.ranges for survey in surveys]
    sides = choose_sides(findings, config, tally)
    training = [s.figures for s in surveys if s.figures and sides[s.patient] in ("", "train")]
    fixed = fixed_affine(training, config)
    names = name_pairs(findings.pairs, tally.numbers)
    left_out = [_named(one, tally.numbers) for one in findings.left_out]
    tally.left_out = [str(one) for one in left_out]
    identities = [pair.identity for pair in findings.pairs]
    kinds = [""] * len(identities)
    if config.blurr_n_noise:
        kinds = augment.draw_degradations(identities, config.seed)
    plans = {}
    for side in commit.files_of(config):
        here = [i for i, pair in enumerate(findings.pairs) if sides[pair.patient] == side]
        parts = [part for i in here if (part := surveys[i].part)]
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.kept_windows * config.orientations)
        pairs = [findings.pairs[i] for i in here]
        aside = [
            shown_as
            for one, shown_as in zip(findings.left_out, left_out, strict=True)
            if sides[one.patient] == side
        ]
        plans[side] = Plan(
            pairs,
            parts,
            starts,
            [kinds[i] for i in here],
            [names[i] for i in here],
            fixed,
            aside,
            [surveys[i].digests for i in here],
        )
        _check_patches(side, plans[side], config)
    count(plans, tally)
    return plans


def choose_sides(findings: Findings, config: Config, tally: Tally) -> dict[str, str]:
    """Return the side of each patient: '' without a split."""
    if config.split is None and config.split_file is None:
        return dict.fromkeys(findings.persons, "")
    groups, reasons = splitting.same_persons(findings.persons)
    if config.split_file is not None:
        sides = splitting.read_sides(config.split_file, groups)
    else:
        sides = splitting.draw_sides(groups, config.split or (), config.seed)
    for one, other, tags in reasons:
        tally.warn(f"{{}} and {{}} are the same person: same {tags}", one, other)
    empty = set(sides.values()) - {sides[pair.patient] for pair in findings.pairs}
    if empty:
        raise RunError(f"the split leaves {', '.join(sorted(empty))} without a pair")
    return sides


def number_patients(patients: Iterable[str], config: Config) -> dict[str, str]:
    """Return the pseudonym of each patient; nothing without `--anonymize`."""
    if not config.anonymize:
        return {}
    return {patient: f"P{i:04d}" for i, patient in enumerate(sorted(patients), 1)}


def name_pairs(pairs: Sequence[Pair], numbers: dict[str, str]) -> list[Names]:
    """Return what pairs are called in the file: their real names, or pseudonyms."""
    if not numbers:
        return [Names(p.patient, p.input.file, p.target.file) for p in pairs]
    seen: dict[str, int] = {}
    out = []
    for pair in pairs:
        i = seen[pair.patient] = seen.get(pair.patient, 0) + 1
        name = numbers[pair.patient]
        out.append(Names(name, f"{name}/in_{i:04d}", f"{name}/target_{i:04d}"))
    return out


def _named(one: LeftOut, numbers: dict[str, str]) -> LeftOut:
    """Return what was left out without a real name in it, if there are pseudonyms."""
    if not numbers:
        return one
    return LeftOut(numbers[one.patient], (numbers[one.patient],), one.kind, one.kind)


def _check_patches(side: str, plan: Plan, config: Config) -> None:
    where = f"{side}: " if side else ""
    windows = sum(sum(part.windows) for part in plan.parts)
    if not windows:
        raise RunError(
            f"{where}no patch: every image is smaller than --patch-size p{config.patch_size}; "
            "choose a smaller one"
        )
    if not plan.patches:
        raise RunError(
            f"{where}no patch: --air_threshold left out all {windows} windows, none with more "
            f"than {patching.TISSUE_PART:.0%} of its pixels above {patching.TISSUE_HU:g} HU and a "
            f"mean above {patching.MEAN_HU:g} HU; are these the right slices?"
        )


def count(plans: dict[str, Plan], tally: Tally) -> None:
    """Count for the summary what the plans hold."""
    parts = [part for plan in plans.values() for part in plan.parts]
    windows = sum(sum(part.windows) for part in parts)
    tally.add("pairs", len(parts))
    tally.add("windows", windows)
    tally.add("windows of air left out", windows - sum(part.kept_windows for part in parts))
    tally.add("views smaller than a patch", sum(part.windows.count(0) for part in parts))
    tally.add("patches", sum(plan.patches for plan in plans.values()))
