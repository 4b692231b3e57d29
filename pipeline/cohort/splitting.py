"""Splitting: which patients are the same person, and the subset (train, val, test) of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils import SUBSETS, CallError, RunError, join_lines, key, printable, quoted

#: Longest text of a split file; `/dev/zero` has no end.
MAX_CHARACTERS = 10_000_000
#: Tags whose value identifies nobody where it is the same in every patient.
_MAYBE_PLACEHOLDER = ("PatientID", "StudyDate with StudyTime")


def same_persons(
    marks: Mapping[str, set[str]],
) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """Group patients who are the same person.

    Parameters
    ----------
    marks : dict of str to set of str
        For each patient what identifies the person: the name of a tag or 'identical pixels', a
        space, and a digest.

    Returns
    -------
    groups : list of list of str
        Every patient once; sorted.
    reasons : list of tuple of str
        Why patients share a group: one, another, and the tags that are the same.
    """
    owners: dict[str, list[str]] = {}
    for patient in sorted(marks):
        for mark in sorted(marks[patient]):
            owners.setdefault(mark, []).append(patient)
    leader = {patient: patient for patient in marks}

    def find(patient: str) -> str:
        while leader[patient] != patient:
            patient = leader[patient]
        return patient

    why: dict[tuple[str, str], set[str]] = {}
    for mark, patients in owners.items():
        tag = mark.rpartition(" ")[0]
        if tag in _MAYBE_PLACEHOLDER and len(patients) == len(marks) > 2:
            continue
        for other in patients[1:]:
            why.setdefault((patients[0], other), set()).add(tag)
            a, b = sorted((find(patients[0]), find(other)))
            leader[b] = a
    groups: dict[str, list[str]] = {}
    for patient in sorted(marks):
        groups.setdefault(find(patient), []).append(patient)
    reasons = [(a, b, ", ".join(sorted(tags))) for (a, b), tags in sorted(why.items())]
    return list(groups.values()), reasons


def draw_subsets(
    groups: Sequence[Sequence[str]], parts: Sequence[float], seed: int
) -> dict[str, str]:
    """Assign each group of patients to a subset, in an order drawn by the seed.

    Every subset gets one group; each of the others goes to the subset that lacks most patients.

    Parameters
    ----------
    groups : sequence of sequence of str
        Patients who must stay together.
    parts : sequence of float
        Expected part of all patients for train, val and test; 0 for a subset without a file.

    Returns
    -------
    dict of str to str
        Subset by patient.

    Raises
    ------
    RunError
        There are fewer groups than subsets.
    """
    expected = {subset: part for subset, part in zip(SUBSETS, parts, strict=True) if part}
    patients = sum(len(group) for group in groups)
    if len(groups) < len(expected):
        raise RunError(
            f"--split leaves a side empty: {len(expected)} sides for {patients} patients, "
            f"{len(groups)} different persons"
        )
    drawn = sorted(groups, key=lambda group: key(seed, "split", group[0]))
    lacking = {subset: part * patients for subset, part in expected.items()}
    empty = list(expected)
    out: dict[str, str] = {}
    for left, group in zip(range(len(drawn), 0, -1), drawn, strict=True):
        among = empty if left <= len(empty) else list(lacking)
        subset = max(among, key=lambda s: lacking[s])
        lacking[subset] -= len(group)
        empty = [s for s in empty if s != subset]
        out |= dict.fromkeys(group, subset)
    return out


def read_subsets(path: str, groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Read the split from a text file: a line per patient, the subset and then the name.

    Blank lines and lines that begin with # are ignored.

    Raises
    ------
    CallError
        The file cannot be read or does not fit the patients, or it splits one person.
    """
    lines = _read_lines(path)
    known = {patient for group in groups for patient in group}
    out: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        subset, *rest = line.split(maxsplit=1)
        subset, patient = subset.rstrip(":"), "".join(rest)
        if subset not in SUBSETS or not patient:
            problems.append(
                f"line {number}: {quoted(line)}; wanted: {' or '.join(SUBSETS)} and a name"
            )
        elif patient not in known:
            problems.append(f"line {number}: no patient {quoted(patient)} below the input folder")
        elif out.setdefault(patient, subset) != subset:
            problems.append(f"line {number}: patient {quoted(patient)} is on two sides")
    problems += [f"patient {quoted(p)} is on no side" for p in sorted(known - set(out))]
    for group in groups:
        subsets = {out.get(patient) for patient in group} - {None}
        if len(subsets) > 1:
            names = ", ".join(printable(p) for p in group)
            problems.append(f"{names} are the same person, but on different sides")
    problems += [f"{subset} is left empty" for subset in SUBSETS if subset not in out.values()]
    if problems:
        raise CallError(join_lines(f"--split-file {quoted(path)}", problems))
    return out


def _read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise CallError(f"--split-file {quoted(path)}: {reason}") from None
    if len(text) > MAX_CHARACTERS:
        raise CallError(
            f"--split-file {quoted(path)} has more than {MAX_CHARACTERS} characters; expected a "
            "line per patient"
        )
    return [line.strip() for line in text.splitlines()]
