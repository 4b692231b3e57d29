"""The survey: the pixels of every pair as far as the plan needs them, on any rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import augment
import patching
from ctpatches.checksums import pixel_digest
from pipeline.cohort.anatomy import misfits
from pipeline.cohort.selection import Findings, SurveyTask
from pipeline.config import Config
from pipeline.dicom.pixels import Reader, Sample
from pipeline.dicom.slice_file import BAD, BadFile
from pipeline.model import LeftOut, PairPlan
from pipeline.profile import step
from utils import Affine, sum_of


class Figures(NamedTuple):
    """Statistics of one input image for the normalisations by data set, HU."""

    pixels: int
    low: float
    high: float
    mean: float
    squares: float  # of the deviations from the mean


@dataclass
class Survey:
    """The survey of a pair; empty where not needed."""

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


def in_twos(tasks: Sequence[SurveyTask]) -> list[tuple[SurveyTask, ...]]:
    """Put two pairs into a task: two targets are scaled in less time together."""
    return [tuple(tasks[i : i + 2]) for i in range(0, len(tasks), 2)]


class Surveyor:
    """Surveys pairs, a few at a time.

    Parameters
    ----------
    config : Config
    identify : bool
        Whether the digests of all slices are needed.
    """

    def __init__(self, config: Config, identify: bool) -> None:
        self.config = config
        self.identify = identify or config.split is not None or config.split_file is not None
        self._plan_of_shape = lru_cache(lambda *shape: plan_pair(shape, config))

    def __call__(self, tasks: Sequence[SurveyTask]) -> list[Survey]:
        """Return the surveys of these tasks."""
        with step("plan"):
            readers = [Reader(self.config.input_folder) for _ in tasks]
            out = [self._survey(*one) for one in zip(tasks, readers, strict=True)]
            if self.config.air_threshold:
                good = [i for i, task in enumerate(tasks) if task.chosen and not out[i].problem]
                targets = [readers[i].hu(tasks[i].pair.target) for i in good]
                readers.clear()  # and with them the input images
                views = augment.downscale_all(targets, self.config.scales)
                for i, target, of_one in zip(good, targets, views, strict=True):
                    shape = (target.shape[0], target.shape[1])
                    out[i].part = plan_pair(shape, self.config, of_one)
            return out

    def _survey(self, task: SurveyTask, reader: Reader) -> Survey:
        out, pair = Survey(task.index, task.pair.patient), task.pair
        try:
            if self.identify:
                images = reader.hu(pair.input), reader.hu(pair.target)
                out.digests = tuple(map(pixel_digest, images))
                out.persons = tuple(map(_person, images, out.digests))
            if task.chosen:
                self._survey_chosen(task, reader, out)
        except BadFile as error:
            out.problem = LeftOut(pair.patient, (error.file,), error.reason, BAD)
        return out

    def _survey_chosen(self, task: SurveyTask, reader: Reader, out: Survey) -> None:
        """Survey a pair that is in the output; every problem of its files is found here."""
        slices = task.pair.input, task.pair.target
        if self.config.dry_run:
            images = [reader.hu(one) for one in slices]
            out.ranges = tuple((float(image.min()), float(image.max())) for image in images)
        if self.config.normalization_type.startswith("dataset"):
            out.figures = figures_of(reader.hu(task.pair.input))
        if self.config.air_threshold:
            reader.hu(task.pair.target)
        else:
            out.part = self._plan_of_shape(task.pair.target.rows, task.pair.target.columns)
        if self.config.anatomy_check != "off":
            out.input_sample, out.target_sample = map(reader.sample, slices)
            out.other_samples = tuple(map(reader.sample, task.others))
        elif any(one.pixel_offset is None for one in slices):  # whether they decode
            for one in slices:
                reader.hu(one)


def plan_pair(
    shape: tuple[int, int], config: Config, target_hu: Sequence[NDArray[np.float32]] | None = None
) -> PairPlan:
    """Count the windows of a pair, and with `target_hu` find those that are not air.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the two images.
    config : Config
    target_hu : sequence of ndarray of float32, shape (rows, columns), optional
        The target at every scale before normalisation, HU; needed with `--air_threshold` alone.
    """
    windows, kept = [], []
    total = 0
    for index, scale in enumerate(config.scales):
        grid = patching.Grid.of(
            augment.view_shape(shape, scale), config.patch_size, config.overlap, config.edge
        )
        mask = np.ones(len(grid), bool)
        if target_hu is not None and len(grid):
            mask = patching.kept_windows(target_hu[index], grid)
        windows.append(len(grid))
        kept.append(np.packbits(mask).tobytes())
        total += int(mask.sum())
    return PairPlan(tuple(windows), tuple(kept), total)


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
    order of the pairs: the result does not depend on the rank that surveyed a pair.
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
            delta = one.mean - mean
            both = pixels + one.pixels
            squares += one.squares + delta * delta * (pixels / both) * one.pixels
            mean += delta * one.pixels / both
            pixels = both
        return Affine(mean, math.sqrt(squares / pixels))
    return None


class Collector:
    """Collects surveys on rank 0, in any order; compares the images of a patient once complete."""

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

    def add(self, survey: Survey) -> None:
        """Add one survey."""
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
        """Compare the images of a patient, and drop their samples."""
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
