"""The selection: which pairs a run uses, and which slices it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.cohort.pairing import UNPAIRED, PatientPairs
from pipeline.config import Config
from pipeline.dicom.slice_file import BAD
from pipeline.model import LeftOut, Pair, Slice
from pipeline.tally import Tally
from utils import RunError, generator, join_lines, printable

#: The option for each kind of slice that cannot be used.
_SKIPS = (("--bad-files", BAD), ("--unpaired", UNPAIRED))


@dataclass(frozen=True)
class SurveyTask:
    """A pair whose pixels are surveyed before any patch is created.

    `chosen` is False for pairs that only serve to find out which patients are the same person;
    `others` are neighbouring target slices that are in no pair of the run.
    """

    index: int
    pair: Pair
    chosen: bool
    others: tuple[Slice, ...]


@dataclass
class Findings:
    """The selected pairs on rank 0; empty on other ranks."""

    pairs: list[Pair] = field(default_factory=list)
    tasks: list[SurveyTask] = field(default_factory=list)
    persons: dict[str, set[str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    ranges: list[tuple[tuple[float, float], ...]] = field(default_factory=list)


def choose_pairs(found: dict[str, PatientPairs], config: Config, tally: Tally) -> Findings:
    """Return the pairs of the run, ordered by patient and position.

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
        raise RunError(join_lines(headline, map(str, problems)))
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
        raise RunError(join_lines("no pair is left", map(str, left_out)))
    return findings


def add_tasks(
    patient: str, pairs: list[Pair], config: Config, findings: Findings, tally: Tally
) -> None:
    """Choose `--random_N` pairs of a patient, or all, and add their surveys."""
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
    """Reject stored values that mean different things in different files."""
    if config.in_hu:
        return
    first: dict[tuple[float, float], str] = {}
    for pair in pairs:
        for one in (pair.input, pair.target):
            first.setdefault((one.slope, one.intercept), one.file)
    if len(first) > 1:
        lines = [f"{printable(f)}: slope {s:g}, intercept {i:g}" for (s, i), f in first.items()]
        raise RunError(
            join_lines("stored values mean different things in this job; add --intensity hu", lines)
        )
