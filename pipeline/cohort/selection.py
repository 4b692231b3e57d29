"""The selection: which pairs a run uses, and which slices it leaves out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctpatches.dicom.slice_file import Slice
from pipeline.cohort import patients
from pipeline.cohort.pairing import pair_up
from pipeline.cohort.patients import Patient
from pipeline.config import OPTIONS, Config
from pipeline.model import BAD, INCOMPLETE, UNPAIRED, LeftOut, Pair
from pipeline.mpi.ranks import Ranks
from pipeline.output import paths
from pipeline.progress import Progress
from utils import RunError, generator, join_lines, printable

#: The option for each kind of what cannot be used.
_OPTION_OF = {BAD: "bad_files", UNPAIRED: "unpaired", INCOMPLETE: "incomplete"}
#: Files whose headers are read in one go: a patient with many slices is shared by several ranks.
PART_FILES = 32


@dataclass(frozen=True)
class SurveyTask:
    """A pair whose pixels are surveyed before any patch is created."""

    index: int  # in `Cohort.tasks`
    pair: Pair
    chosen: bool  # False: only surveyed to find out which patients are the same person
    identify: bool  # whether the digests of the pixels are needed
    others: tuple[Slice, ...]  # neighbouring target slices that are in no pair of the run


@dataclass
class Cohort:
    """All patients of a run and their pairs, and what is to be reported on them.

    On rank 0; empty on other ranks.
    """

    #: The name of each patient in the output: its own or a pseudonym.
    names: dict[str, str] = field(default_factory=dict)
    #: For each patient the digests of what identifies the person.
    persons: dict[str, set[str]] = field(default_factory=dict)
    #: Ordered by patient and position.
    tasks: list[SurveyTask] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    strays: int = 0
    warnings: list[str] = field(default_factory=list)
    #: For each patient the pairs that do not look like the same anatomy.
    misfits: dict[str, list[str]] = field(default_factory=dict)
    #: Lowest and highest HU of both images of each pair; in a dry run alone.
    ranges: list[tuple[tuple[float, float], ...]] = field(default_factory=list)


def find(config: Config, ranks: Ranks) -> Cohort:
    """Read the headers of all patients, pair their slices, and choose the pairs of the run."""
    found = ranks.on_root(lambda: patients.find_patients(config)) or []
    files = [file for one in found for series in one.files.values() for file in series]
    parts = [files[i : i + PART_FILES] for i in range(0, len(files), PART_FILES)]
    read_headers = functools.partial(patients.read_headers, config.input_folder)
    headers: dict[str, Slice | str] = {}
    progress = Progress("reading headers", len(files), config.quiet, "files")
    with contextlib.closing(progress):
        for read in ranks.imap_unordered(read_headers, parts):
            headers.update(read)
            progress.advance(len(read))

    def choose() -> Cohort:
        for patient in found:
            pair_up(patient, headers)
        return choose_pairs(found, config)

    return ranks.on_root(choose) or Cohort()


def choose_pairs(found: Sequence[Patient], config: Config) -> Cohort:
    """Return the pairs of the run, of patients by name; all that cannot be used is one RunError."""
    problems: list[LeftOut] = []
    cohort = Cohort()
    for patient in found:
        # Where a bad file is left out, the slice at its position has lost its partner.
        lost = config.bad_files == "skip" and any(p.kind == BAD for p in patient.problems)
        for problem in patient.problems:
            skip = getattr(config, _OPTION_OF[problem.kind]) == "skip"
            skip |= lost and problem.kind == UNPAIRED
            (cohort.left_out if skip else problems).append(problem)
    if problems:
        kinds = {problem.kind for problem in problems}
        hints = [f"{OPTIONS[o].flag} skip" for kind, o in _OPTION_OF.items() if kind in kinds]
        headline = f"slices that cannot be used (to continue without them: {', '.join(hints)})"
        raise RunError(join_lines(headline, map(str, problems)))
    split = config.has_subsets
    identify = split or paths.may_resume(config)
    for number, patient in enumerate(found, 1):
        cohort.names[patient.name] = f"P{number:04d}" if config.anonymize else patient.name
        cohort.strays += patient.strays
        if patient.is_incomplete:
            continue
        cohort.persons[patient.name] = patient.persons
        if patient.by_instance:
            name = printable(cohort.names[patient.name])
            cohort.warnings.append(f"patient {name}: no positions, paired by InstanceNumber")
        chosen = _draw_pairs(patient, config, cohort)
        for place, pair in enumerate(patient.pairs):
            if place in chosen or split:
                beside = [i for i in (place - 1, place + 1) if 0 <= i < len(patient.pairs)]
                others = tuple(patient.pairs[i].target for i in beside if i not in chosen)
                index, is_chosen = len(cohort.tasks), place in chosen
                cohort.tasks.append(SurveyTask(index, pair, is_chosen, identify, others))
    if not config.in_hu:
        _check_rescale([task.pair for task in cohort.tasks if task.chosen])
    return cohort


def _draw_pairs(patient: Patient, config: Config, cohort: Cohort) -> set[int]:
    """Draw `--random_N` of a patient's pairs; all without it, or where there are fewer."""
    pairs = len(patient.pairs)
    if config.random_N is None:
        return set(range(pairs))
    if pairs < config.random_N:
        name = printable(cohort.names[patient.name])
        cohort.warnings.append(
            f"patient {name} has {pairs} pairs, fewer than --random_N {config.random_N}: all are "
            "used"
        )
    rng = generator(config.seed, "pairs", patient.name)
    return set(rng.permutation(pairs)[: config.random_N].tolist())


def _check_rescale(pairs: Sequence[Pair]) -> None:
    """Reject stored values that mean different things in different files."""
    first: dict[tuple[float, float], str] = {}
    for pair in pairs:
        for one in (pair.input, pair.target):
            first.setdefault((one.slope, one.intercept), one.file)
    if len(first) > 1:
        lines = [f"{printable(f)}: slope {s:g}, intercept {i:g}" for (s, i), f in first.items()]
        headline = "stored values mean different things in this job; add --intensity hu"
        raise RunError(join_lines(headline, lines))
