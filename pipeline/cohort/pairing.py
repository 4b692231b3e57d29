"""Pairing: which slices of two series have the same position.

Headers in, pairs and problems out; no files.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ctpatches.dicom.slice_file import Slice
from pipeline.cohort.patients import Patient
from pipeline.model import BAD, INCOMPLETE, UNPAIRED, LeftOut, Pair

#: Two values of a geometry tag are the same up to this.
SAME_MM = 0.01
SAME_NUMBER = 1e-4


def pair_up(patient: Patient, headers: dict[str, Slice | str]) -> None:
    """Pair the slices of a patient; their headers, by file, are removed to free the memory."""
    series: dict[str, list[Slice]] = {role: [] for role in patient.folders}
    for role, files in patient.files.items():
        for file in files:
            header = headers.pop(file)
            if isinstance(header, Slice):
                series[role].append(header)
                patient.persons.update(header.persons)
            else:
                patient.problems.append(LeftOut(patient.name, (file,), header, BAD))
    for role, folder in patient.folders.items():
        if not series[role] and not any(p.files[0].startswith(folder) for p in patient.problems):
            reason = "holds no CT slice; expected: one DICOM file per slice"
            patient.problems.append(LeftOut(patient.name, (folder,), reason, INCOMPLETE))
    if not patient.is_incomplete:
        pair_slices(patient, series["input"], series["target"])


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


def pair_slices(patient: Patient, inputs: Sequence[Slice], targets: Sequence[Slice]) -> None:
    """Pair the slices of the two series of a patient by position along the slice normal.

    Series without positions pair by Instance Number, if all slices have one and it is unique.
    """

    def leave_out(reason: str, *slices: Slice) -> None:
        files = tuple(one.file for one in slices)
        patient.problems.append(LeftOut(patient.name, files, reason, UNPAIRED))

    def place(one: Slice) -> float:
        return float((one.instance if patient.by_instance else one.position_mm) or 0)

    everything = [*inputs, *targets]
    lost = [s for s in everything if s.position_mm is None]
    numbered = [s for s in lost if s.instance is not None]
    patient.by_instance = len(numbered) == len(everything) > 0
    if lost and not patient.by_instance:
        hint = "expected: one in every slice of the patient, or in none and an InstanceNumber"
        for one in lost:
            leave_out(f"no ImagePositionPatient; {hint}", one)
        inputs = [s for s in inputs if s.position_mm is not None]
        targets = [s for s in targets if s.position_mm is not None]
        if not (inputs and targets):
            return
    near, unit = (0.0, "InstanceNumber") if patient.by_instance else (tolerance_mm(targets), "mm")
    located: list[tuple[float, str, Slice]] = []
    for role, series in (("input", inputs), ("target", targets)):
        ordered = sorted(series, key=place)
        double = set()
        for a, b in itertools.pairwise(ordered):
            if place(b) - place(a) <= near:
                double |= {a.file, b.file}
                leave_out(f"at one position, {place(a):g} {unit}", a, b)
        located += [(place(s), role, s) for s in ordered if s.file not in double]
    # Slices of one series are farther apart than `near`: only the next one may be the partner.
    located.sort(key=lambda item: item[0], reverse=True)
    while located:
        at, role, one = located.pop()
        if not located or located[-1][1] == role or located[-1][0] - at > near:
            partner = "target" if role == "input" else "input"
            leave_out(f"no single {partner} slice at its position, {at:g} {unit}", one)
            continue
        other = located.pop()[2]
        both = (one, other) if role == "input" else (other, one)
        if problem := mismatch(*both):
            leave_out(problem, *both)
        else:
            # The persons have been noted: the plan of a large set need not carry them.
            slices = (replace(one, persons=()) for one in both)
            patient.pairs.append(Pair(patient.name, *slices))


def mismatch(a: Slice, b: Slice) -> str:
    """Return the reason why an input and a target slice are not a pair, or ''."""
    checks: tuple[tuple[str, Sequence[float], Sequence[float], float], ...] = (
        ("Rows", (a.rows,), (b.rows,), 0),
        ("Columns", (a.columns,), (b.columns,), 0),
        ("PixelSpacing", a.spacing_mm, b.spacing_mm, SAME_NUMBER),
        ("ImageOrientationPatient", a.orientation, b.orientation, SAME_NUMBER),
        ("ImagePositionPatient in the plane", a.in_plane_mm, b.in_plane_mm, SAME_MM),
    )
    for name, one, two, near in checks:
        if len(one) != len(two) or any(abs(x - y) > near for x, y in zip(one, two, strict=True)):
            found = ["\\".join(f"{v:g}" for v in values) or "missing" for values in (one, two)]
            return f"no pair, {name} {found[0]} against {found[1]}"
    marks = {mark for mark in (*a.persons, *b.persons) if mark.startswith("IrradiationEventUID ")}
    if len(marks) > 1:
        # The values stay out: a UID of the study may identify the patient.
        return "no pair, IrradiationEventUID differs: they are of two acquisitions"
    return ""
