"""The plan: the subset of every pair, its names, and the offset of its block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import augment
import patching
from pipeline.cohort import splitting
from pipeline.cohort.selection import Findings
from pipeline.config import Config
from pipeline.model import LeftOut, Names, Pair, Plan
from pipeline.output import paths
from pipeline.survey import Collector, fixed_affine
from pipeline.tally import Tally
from utils import RunError, join_lines


def make_plans(
    findings: Findings, collector: Collector, config: Config, tally: Tally
) -> dict[str, Plan]:
    """Assign every pair to a subset and to an offset in its file.

    Raises
    ------
    RunError
        A file could not be read, a pair does not look like one, or there would be no patch.
    """
    _check_surveys(findings, collector, config)
    tally.numbers = number_patients(findings.persons, config)
    _warn_of_misfits(collector, config, tally)
    good = [i for i in range(len(findings.pairs)) if i not in collector.problems]
    findings.pairs = [findings.pairs[i] for i in good]
    surveys = [collector.surveys[i] for i in good]
    findings.ranges = [survey.ranges for survey in surveys]
    subsets = choose_subsets(findings, config, tally)
    training = [s.figures for s in surveys if s.figures and subsets[s.patient] in ("", "train")]
    whole = Plan(
        pairs=findings.pairs,
        parts=[part for survey in surveys if (part := survey.part)],
        starts=[],
        degradations=_degradations(findings.pairs, config),
        names=name_pairs(findings.pairs, tally.numbers),
        fixed=fixed_affine(training, config),
        left_out=[_named(one, tally.numbers) for one in findings.left_out],
        digests=[survey.digests for survey in surveys],
    )
    tally.left_out = [str(one) for one in whole.left_out]
    plans = {}
    for subset in paths.files_of(config):
        rows = [i for i, pair in enumerate(whole.pairs) if subsets[pair.patient] == subset]
        left_out = [i for i, o in enumerate(findings.left_out) if subsets[o.patient] == subset]
        plans[subset] = _part_of(whole, rows, left_out, config)
        _check_patches(subset, plans[subset], config)
    count(plans, tally)
    return plans


def _part_of(whole: Plan, rows: Sequence[int], left_out: Sequence[int], config: Config) -> Plan:
    """Return the plan of a file with some of the pairs, their blocks one after the other."""
    parts = [whole.parts[i] for i in rows]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.kept_windows * config.orientations)
    return Plan(
        [whole.pairs[i] for i in rows],
        parts,
        starts,
        [whole.degradations[i] for i in rows],
        [whole.names[i] for i in rows],
        whole.fixed,
        [whole.left_out[i] for i in left_out],
        [whole.digests[i] for i in rows],
    )


def _check_surveys(findings: Findings, collector: Collector, config: Config) -> None:
    """Raise an error for files that cannot be used, or leave them out."""
    problems = [collector.problems[i] for i in sorted(collector.problems)]
    if problems and config.bad_files == "error":
        headline = "files that cannot be used (to go on without them: --bad-files skip)"
        raise RunError(join_lines(headline, map(str, problems)))
    findings.left_out += problems
    wrong = [line for patient in sorted(collector.misfits) for line in collector.misfits[patient]]
    if wrong and config.anatomy_check == "error":
        raise RunError(join_lines("not the same anatomy (see --anatomy-check)", wrong))


def _warn_of_misfits(collector: Collector, config: Config, tally: Tally) -> None:
    for patient, lines in sorted(collector.misfits.items()):
        if config.anonymize and lines:
            tally.warn(f"not the same anatomy: {len(lines)} pairs of {{}}", patient)
        else:
            for line in lines:
                tally.warn("not the same anatomy: " + line.replace("{", "{{").replace("}", "}}"))


def _degradations(pairs: Sequence[Pair], config: Config) -> list[str]:
    if not config.blurr_n_noise:
        return [""] * len(pairs)
    return augment.draw_degradations([pair.identity for pair in pairs], config.seed)


def choose_subsets(findings: Findings, config: Config, tally: Tally) -> dict[str, str]:
    """Return the subset of each patient: '' without a split."""
    if config.split is None and config.split_file is None:
        return dict.fromkeys(findings.persons, "")
    groups, reasons = splitting.same_persons(findings.persons)
    if config.split_file is not None:
        subsets = splitting.read_subsets(config.split_file, groups)
    else:
        subsets = splitting.draw_subsets(groups, config.split or (), config.seed)
    for one, other, tags in reasons:
        tally.warn(f"{{}} and {{}} are the same person: same {tags}", one, other)
    empty = set(subsets.values()) - {subsets[pair.patient] for pair in findings.pairs}
    if empty:
        raise RunError(f"the split leaves {', '.join(sorted(empty))} without a pair")
    return subsets


def number_patients(patients: Iterable[str], config: Config) -> dict[str, str]:
    """Return the pseudonym of each patient; nothing without `--anonymize`."""
    if not config.anonymize:
        return {}
    return {patient: f"P{i:04d}" for i, patient in enumerate(sorted(patients), 1)}


def name_pairs(pairs: Sequence[Pair], numbers: dict[str, str]) -> list[Names]:
    """Return the names of pairs in the file: real ones or pseudonyms."""
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
    """Return what was left out by its pseudonym, if there are any."""
    if not numbers:
        return one
    return LeftOut(numbers[one.patient], (numbers[one.patient],), one.kind, one.kind)


def _check_patches(subset: str, plan: Plan, config: Config) -> None:
    where = f"{subset}: " if subset else ""
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
    """Add the counts of the plans to the summary."""
    parts = [part for plan in plans.values() for part in plan.parts]
    windows = sum(sum(part.windows) for part in parts)
    tally.add("pairs", len(parts))
    tally.add("windows", windows)
    tally.add("windows of air left out", windows - sum(part.kept_windows for part in parts))
    tally.add("views smaller than a patch", sum(part.windows.count(0) for part in parts))
    tally.add("patches", sum(plan.patches for plan in plans.values()))
