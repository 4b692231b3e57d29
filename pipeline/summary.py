"""The summary of a run: counts, warnings and files, returned and printed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctpatches.dicom.slice_file import Slice
from ctpatches.file import rounding_text
from ctpatches.validation import opened
from pipeline.cohort.selection import Cohort
from pipeline.config import Config
from pipeline.model import INCOMPLETE, LeftOut, Plan
from pipeline.output import paths
from utils import SUBSETS, printable


@dataclass(frozen=True)
class Summary:
    """What a run created, or after a dry run what it would create.

    Attributes
    ----------
    patients, pairs, windows, patches : int
        Numbers in all files; windows include those of air.
    files : tuple of str
        The h5 files: one, or with `nsplit` as many, for each subset of a split. None after a dry
        run.
    left_out : tuple of str
        Files that give no patches, and why.
    warnings : tuple of str
    """

    patients: int
    pairs: int
    windows: int
    patches: int
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def summarise(cohort: Cohort, plans: Mapping[str, Plan], files: Iterable[str]) -> Summary:
    """Return the summary of a run that has created these files."""
    counts = _counts(cohort, plans)
    return Summary(
        **{name: counts[name] for name in ("patients", "pairs", "windows", "patches")},
        files=tuple(files),
        left_out=tuple(map(str, _left_out(plans))),
        warnings=tuple(cohort.warnings),
    )


def _left_out(plans: Mapping[str, Plan]) -> list[LeftOut]:
    """Return what was left out of all files; incomplete patients are in each of them."""
    return list(dict.fromkeys(one for plan in plans.values() for one in plan.left_out))


def _patients(plans: Iterable[Plan]) -> set[str]:
    return {planned.names.patient for plan in plans for planned in plan.pairs}


def _counts(cohort: Cohort, plans: Mapping[str, Plan]) -> dict[str, int]:
    windows = [planned.windows for plan in plans.values() for planned in plan.pairs]
    total = sum(sum(one.numbers) for one in windows)
    return {
        "patients": len(_patients(plans.values())),
        "incomplete patients left out": sum(o.kind == INCOMPLETE for o in _left_out(plans)),
        "stray files ignored": cohort.strays,
        "pairs": len(windows),
        "windows": total,
        "windows of air left out": total - sum(one.kept_windows for one in windows),
        "views smaller than a patch": sum(one.numbers.count(0) for one in windows),
        "patches": sum(plan.patches for plan in plans.values()),
    }


def print_counts(cohort: Cohort, plans: Mapping[str, Plan], config: Config) -> None:
    """Print counts, what was left out, and warnings; with `--quiet` the last two alone."""
    body = config.air_rule == "body"
    for name, number in _counts(cohort, plans).items():
        if not config.quiet and (number or name in ("patients", "pairs", "patches")):
            label = name.replace("of air left out", "outside the body") if body else name
            print(f"{label:28} {number}")
            if name == "patients":
                _print_fractions(plans, config)
    for one in _left_out(plans):
        print(printable(f"left out: {one}"))
    for warning in cohort.warnings:
        print(printable(f"warning: {warning}"))


def _print_fractions(plans: Mapping[str, Plan], config: Config) -> None:
    """Print the actual and the requested part of the patients in each subset."""
    patients = len(_patients(plans.values()))
    requested = dict(zip(SUBSETS, config.split or (), strict=False))
    for subset, plan in plans.items():
        if subset:
            number = len(_patients([plan]))
            part = f"; requested {requested[subset]:.1%}" if config.split else ""
            print(f"{'patients in ' + subset:28} {number} ({number / patients:.1%}{part})")


def print_files(plans: Mapping[str, Plan], config: Config, pages: Mapping[str, Path]) -> None:
    """Print the files and, with a split, the patients of each subset."""
    for subset, files in paths.files_of(config).items():
        if subset:
            patients = ", ".join(map(printable, sorted(_patients([plans[subset]]))))
            print(f"{subset:28} {plans[subset].patches} patches of {patients}")
        for file in files:
            print(f"{'output':28} {printable(file)}")
            if config.dtype != "float32":
                with opened(file) as source:
                    print(f"{f'rounded to {config.dtype}':28} {rounding_text(source)}")
            if file in pages:
                print(f"{'report':28} {printable(pages[file])}")


def print_plan(cohort: Cohort, plans: Mapping[str, Plan], config: Config) -> None:
    """Print what the headers contain, and the windows and patches of each patient."""
    pairs = [planned.pair for plan in plans.values() for planned in plan.pairs]
    columns = [_headers([pair.input for pair in pairs]), _headers([pair.target for pair in pairs])]
    if config.dry_run:
        for column, ranges in zip(columns, zip(*cohort.ranges, strict=True), strict=True):
            column["intensity"] = _range(itertools.chain(*ranges), "HU")
    print(f"\n{'':28} {'input':24} target")
    for name in columns[0]:
        print(f"{name:28} {columns[0][name]:24} {columns[1][name]}")
    print()
    left_out = "outside" if config.air_rule == "body" else "air"
    for subset, plan in plans.items():
        title = f"patient ({subset})" if subset else "patient"
        print(f"{title:28} {'pairs':>8} {'kept':>10} {left_out:>10} {'patches':>10}")
        for patient, group in itertools.groupby(plan.pairs, lambda one: one.names.patient):
            windows = [planned.windows for planned in group]
            kept = sum(one.kept_windows for one in windows)
            left = sum(sum(one.numbers) for one in windows) - kept
            patches = kept * config.orientations
            print(f"{printable(patient):28} {len(windows):8} {kept:10} {left:10} {patches:10}")
        print()


def _headers(slices: Sequence[Slice]) -> dict[str, str]:
    return {
        "kernel": _values(s.kernel for s in slices if s.kernel),
        "slice thickness": _range((s.thickness_mm for s in slices), "mm"),
        "exposure": _range((s.exposure_mas for s in slices), "mAs"),
        "CTDIvol": _range((s.ctdi_mgy for s in slices), "mGy"),
        "pixels": _values(f"{s.rows} x {s.columns}" for s in slices),
    }


def _values(found: Iterable[str]) -> str:
    return ", ".join(sorted({printable(value) for value in found})) or "not recorded"


def _range(values: Iterable[float | None], unit: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not recorded"
    low, high = min(known), max(known)
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"
