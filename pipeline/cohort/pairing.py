"""Pairing: which slices of two series have the same position.

Headers in, pairs and problems out; no files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.model import LeftOut, Pair, Slice

#: Two values of a geometry tag are the same up to this.
SAME_MM = 0.01
SAME_NUMBER = 1e-4
#: Kind of what `--unpaired` is about.
UNPAIRED = "unpaired"


@dataclass
class PatientPairs:
    """The pairs of one patient, and its files without one.

    Attributes
    ----------
    pairs : list of Pair
        Ordered by position.
    strays : int
        Files that are no slices.
    by_instance : bool
        Whether the slices paired by Instance Number, as they have no positions.
    bad : list of LeftOut
        Files that cannot be used.
    unpaired : list of LeftOut
        Slices without a partner.
    persons : set of str
        Digests of what identifies the person scanned, each after the name of its tag.
    """

    pairs: list[Pair] = field(default_factory=list)
    strays: int = 0
    by_instance: bool = False
    bad: list[LeftOut] = field(default_factory=list)
    unpaired: list[LeftOut] = field(default_factory=list)
    persons: set[str] = field(default_factory=set)


def tolerance_mm(slices: Sequence[Slice]) -> float:
    """Return the largest distance of two equal positions, mm: 0.01 mm or a tenth of the spacing.

    The spacing is the smallest distance of two neighbours, and no more than the slices' thickness:
    a series may have gaps.
    """
    at = sorted({s.position_mm for s in slices if s.position_mm is not None})
    gaps = np.diff(at)
    thickness = [s.thickness_mm for s in slices if s.thickness_mm]
    spacing = min([*gaps[gaps > SAME_MM], *thickness], default=0.0)
    return max(SAME_MM, 0.1 * float(spacing))


def pair_slices(
    patient: str, inputs: Sequence[Slice], targets: Sequence[Slice], out: PatientPairs
) -> None:
    """Pair the slices of two series by position along the slice normal; add to `out`.

    Series without positions pair by Instance Number, if all slices have one and it is unique.
    """
    everything = [*inputs, *targets]
    if not everything:
        return
    if all(s.position_mm is not None for s in everything):
        near, unit = tolerance_mm(targets), "mm"

        def place(s: Slice) -> float:
            return float(s.position_mm or 0.0)

    elif all(s.position_mm is None and s.instance is not None for s in everything):
        near, unit, out.by_instance = 0.0, "InstanceNumber", True

        def place(s: Slice) -> float:
            return float(s.instance or 0)

    else:
        hint = "wanted: one in every slice of the patient, or in none and an InstanceNumber"
        out.unpaired += [
            LeftOut(patient, (s.file,), f"no ImagePositionPatient; {hint}", UNPAIRED)
            for s in everything
            if s.position_mm is None
        ]
        located = [[s for s in side if s.position_mm is not None] for side in (inputs, targets)]
        if all(located):
            pair_slices(patient, located[0], located[1], out)
        return
    sides = [
        _single(patient, sorted(s, key=place), place, near, unit, out) for s in (inputs, targets)
    ]
    _match(patient, sides[0], sides[1], place, near, unit, out)


def _single(
    patient: str,
    side: list[Slice],
    place: Callable[[Slice], float],
    near: float,
    unit: str,
    out: PatientPairs,
) -> list[Slice]:
    """Return the slices at a unique position; the others go to `out.unpaired`."""
    double: set[int] = set()
    for i, (a, b) in enumerate(itertools.pairwise(side)):
        if place(b) - place(a) <= near:
            double |= {i, i + 1}
            reason = f"at one position, {place(a):g} {unit}"
            out.unpaired.append(LeftOut(patient, (a.file, b.file), reason, UNPAIRED))
    return [s for i, s in enumerate(side) if i not in double]


def _match(
    patient: str,
    inputs: Sequence[Slice],
    targets: Sequence[Slice],
    place: Callable[[Slice], float],
    near: float,
    unit: str,
    out: PatientPairs,
) -> None:
    """Walk along two sorted series and pair slices at the same position."""
    i = j = 0
    while i < len(inputs) or j < len(targets):
        if i < len(inputs) and j < len(targets):
            gap = place(inputs[i]) - place(targets[j])
        else:
            gap = -np.inf if i < len(inputs) else np.inf
        if abs(gap) <= near:
            _pair(patient, inputs[i], targets[j], out)
            i, j = i + 1, j + 1
            continue
        lone, kind = (inputs[i], "target") if gap < 0 else (targets[j], "input")
        reason = f"no single {kind} slice at its position, {place(lone):g} {unit}"
        out.unpaired.append(LeftOut(patient, (lone.file,), reason, UNPAIRED))
        i, j = (i + 1, j) if gap < 0 else (i, j + 1)


def _pair(patient: str, a: Slice, b: Slice, out: PatientPairs) -> None:
    problem = mismatch(a, b)
    if problem:
        out.unpaired.append(LeftOut(patient, (a.file, b.file), problem, UNPAIRED))
    else:
        # Whose slices they are has been noted: the plan of a large set need not carry it.
        bare = [replace(s, event="", persons=()) for s in (a, b)]
        out.pairs.append(Pair(patient, bare[0], bare[1]))


def mismatch(a: Slice, b: Slice) -> str:
    """Return the reason why an input and a target slice are no pair; '' if nothing does."""
    checks: tuple[tuple[str, Sequence[float], Sequence[float], float], ...] = (
        ("Rows", (a.rows,), (b.rows,), 0),
        ("Columns", (a.columns,), (b.columns,), 0),
        ("PixelSpacing", a.spacing_mm, b.spacing_mm, SAME_NUMBER),
        ("ImageOrientationPatient", a.orientation, b.orientation, SAME_NUMBER),
        ("ImagePositionPatient in the plane", a.in_plane_mm, b.in_plane_mm, SAME_MM),
    )
    for name, one, two, near in checks:
        if len(one) != len(two) or any(abs(x - y) > near for x, y in zip(one, two, strict=True)):
            return f"no pair, {name} {_plain(one)} against {_plain(two)}"
    if a.event and b.event and a.event != b.event:
        # The values stay out: a UID of the study may identify the patient.
        return "no pair, IrradiationEventUID differs: they are of two acquisitions"
    return ""


def _plain(values: Sequence[float]) -> str:
    return "\\".join(f"{v:g}" for v in values) or "missing"
