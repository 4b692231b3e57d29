"""The survey: the pixels of every pair as far as the plan needs them, on any rank."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import augment
import patching
from ctpatches.checksums import pixel_digest
from ctpatches.dicom.pixels import read_hu
from ctpatches.dicom.slice_file import BadFile
from ctpatches.normalisation import Statistics, statistics_of
from pipeline import prefetch
from pipeline.cohort import anatomy
from pipeline.cohort.selection import Cohort, SurveyTask
from pipeline.config import Config
from pipeline.model import BAD, LeftOut, Windows
from pipeline.mpi.ranks import Ranks
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Image


@dataclass
class Survey:
    """What is known of the pixels of a pair; empty where it is not needed."""

    index: int  # of its task
    windows: Windows = field(default_factory=Windows)
    samples: tuple[anatomy.Sample, ...] = ()  # of the input, the target, and `SurveyTask.others`
    statistics: Statistics | None = None
    digests: tuple[int, ...] = ()  # of the input and the target
    persons: frozenset[str] = frozenset()  # what identifies the person
    ranges: tuple[tuple[float, float], ...] = ()  # lowest and highest HU of input and target
    problem: LeftOut | None = None


def survey_pairs(cohort: Cohort, config: Config, ranks: Ranks) -> dict[int, Survey]:
    """Return the surveys of the chosen pairs by index of their task, on rank 0.

    Adds what the pixels identify to `cohort.persons`, and fills `cohort.misfits`.
    """
    surveys: dict[int, Survey] = {}
    of_patient: defaultdict[str, list[Survey]] = defaultdict(list)
    expected = Counter(task.pair.patient for task in cohort.tasks if task.chosen)
    threads = prefetch.threads_for(task.pair for task in cohort.tasks)
    batches: list[list[SurveyTask]] = []  # two targets are downscaled in less time together
    for _, same_shape in itertools.groupby(cohort.tasks, _target_shape):
        while batch := list(itertools.islice(same_shape, 2)):
            batches.append(batch)
    survey = functools.partial(survey_batch, config=config)
    results = ranks.imap_unordered(lambda surveyed: surveyed, batches, survey, threads)
    with (
        contextlib.closing(results),
        contextlib.closing(Progress("planning", len(cohort.tasks), config.quiet)) as progress,
    ):
        for found in itertools.chain.from_iterable(results):
            progress.advance()
            task = cohort.tasks[found.index]
            patient = task.pair.patient
            cohort.persons[patient] |= found.persons
            if task.chosen:  # the files of other pairs may be bad
                surveys[found.index] = found
                of_patient[patient].append(found)
                if len(of_patient[patient]) == expected[patient] and config.anatomy_check != "off":
                    cohort.misfits[patient] = _misfits(cohort, of_patient.pop(patient))
    return surveys


def _misfits(cohort: Cohort, surveys: list[Survey]) -> list[str]:
    """Compare the images of a patient, and drop their samples."""
    surveys.sort(key=lambda survey: survey.index)
    good = [(cohort.tasks[survey.index], survey) for survey in surveys if not survey.problem]
    out = anatomy.misfits(
        [task.pair for task, _ in good],
        [survey.samples[0] for _, survey in good],
        [survey.samples[1] for _, survey in good],
        [both for task, s in good for both in zip(task.others, s.samples[2:], strict=True)],
    )
    for _, survey in good:
        survey.samples = ()
    return out


def _target_shape(task: SurveyTask) -> tuple[int, int]:
    return task.pair.target.rows, task.pair.target.columns


def survey_batch(tasks: Sequence[SurveyTask], config: Config) -> list[Survey]:
    """Survey pairs with targets of one shape; what is wrong with files is found, not raised."""
    with step("plan"):
        found = [survey_pixels(task, config) for task in tasks]
        good = [
            one
            for task, one in zip(tasks, found, strict=True)
            if task.chosen and not one[0].problem
        ]
        targets = [target for _, target in good]
        windows = plan_pairs(_target_shape(tasks[0]), config, targets)
        for (survey, _), of_pair in zip(good, windows, strict=True):
            survey.windows = of_pair
    return [survey for survey, _ in found]


def survey_pixels(task: SurveyTask, config: Config) -> tuple[Survey, Image | None]:
    """Survey one pair but for its windows; also return its target, HU, if these depend on it."""
    out, read = Survey(task.index), functools.partial(read_hu, config.input_folder)
    hu_of = functools.cache(read)  # of both slices, each read at most once
    pair, slices = task.pair, (task.pair.input, task.pair.target)
    target = None
    try:
        if task.identify:
            images = [hu_of(one) for one in slices]
            out.digests = tuple(map(pixel_digest, images))
            both = zip(images, out.digests, strict=True)
            # A constant image identifies nobody.
            varied = [digest for hu, digest in both if hu.min() != hu.max()]
            out.persons = frozenset(f"identical pixels {digest:016x}" for digest in varied)
        if not task.chosen:
            return out, None
        if config.dry_run:
            images = [hu_of(one) for one in slices]
            out.ranges = tuple((float(image.min()), float(image.max())) for image in images)
        if config.normalization_type.startswith("dataset"):
            out.statistics = statistics_of(hu_of(pair.input))
        if config.air_threshold:
            target = hu_of(pair.target)
        if config.anatomy_check != "off":
            images_hu = itertools.chain(map(hu_of, slices), map(read, task.others))
            out.samples = tuple(map(anatomy.sample_of, images_hu))
        elif any(one.pixel_offset is None for one in slices):  # whether they decode
            for one in slices:
                hu_of(one)
    except BadFile as error:
        out.problem = LeftOut(pair.patient, (error.file,), error.reason, BAD)
    return out, target


def plan_pairs(
    shape: tuple[int, int], config: Config, targets_hu: Sequence[Image | None]
) -> list[Windows]:
    """Find the windows of pairs of images of that shape; given their targets, none of air."""
    images = [image for image in targets_hu if image is not None]
    if config.air_rule == "body":
        images = [patching.body_mask(image).astype(np.float32) for image in images]
    grids = [patching.Grid(augment.view_shape(shape, scale), config) for scale in config.scales]
    if not images:  # without --air_threshold
        return [Windows.of([np.ones(len(grid), bool) for grid in grids])] * len(targets_hu)
    scales = [scale for scale, grid in zip(config.scales, grids, strict=True) if len(grid)]
    scaled = augment.downscale_all(images, scales)
    masks = [
        [patching.kept_windows(view, grid, config) for view in next(scaled)]
        if len(grid)
        else [np.ones(0, bool)] * len(images)
        for grid in grids
    ]
    return [Windows.of(of_pair) for of_pair in zip(*masks, strict=True)]
