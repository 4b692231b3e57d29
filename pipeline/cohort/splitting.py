"""Splitting: which patients are the same person, and the subset (train, val, test) of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from utils import SUBSETS, CallError, RunError, did_you_mean, join_lines, key, printable, quoted

#: Longest text of a split file; `/dev/zero` has no end.
MAX_CHARACTERS = 10_000_000
#: Tags whose value identifies nobody where it is the same in every patient.
_MAYBE_PLACEHOLDER = ("PatientID", "StudyDate with StudyTime")


def same_persons(
    marks: Mapping[str, set[str]],
) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """Group patients who are the same person.

    `marks` are what identifies the person of each patient: the name of a tag or 'identical pixels',
    a space, and a digest. Returned are the groups, with every patient once, sorted, and the reasons
    why patients share a group: one, another, and the tags that are the same.
    """
    owners: dict[str, list[str]] = {}
    for patient in sorted(marks):
        for mark in sorted(marks[patient]):
            owners.setdefault(mark, []).append(patient)
    group_of = {patient: [patient] for patient in sorted(marks)}
    tags: dict[tuple[str, str], set[str]] = {}
    for mark, (first, *others) in owners.items():
        tag = mark.rpartition(" ")[0]
        if tag in _MAYBE_PLACEHOLDER and 1 + len(others) == len(marks) > 2:
            continue
        for other in others:
            tags.setdefault((first, other), set()).add(tag)
            if other not in group_of[first]:
                joined = sorted(group_of[first] + group_of[other])
                group_of.update(dict.fromkeys(joined, joined))
    groups = [group for patient, group in group_of.items() if patient == group[0]]
    return groups, [(a, b, ", ".join(sorted(same))) for (a, b), same in sorted(tags.items())]


def draw_subsets(
    groups: Sequence[Sequence[str]], parts: Sequence[float], seed: int
) -> dict[str, str]:
    """Assign each group of patients to a subset, in an order drawn by the seed.

    Every subset gets one group; each of the others goes to the subset that lacks most patients.
    `parts` are the expected parts of all patients for train, val and test; a subset of part 0 has
    no file. Returns the subset by patient.
    """
    expected = {subset: part for subset, part in zip(SUBSETS, parts, strict=True) if part}
    patients = sum(len(group) for group in groups)
    if len(groups) < len(expected):
        raise RunError(
            f"--split leaves a subset empty: {patients} patients, {len(groups)} different persons, "
            f"for {', '.join(expected)}; expected: one per subset; give the fraction 0 to a "
            "subset that you do not need, or add patients"
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


def deviations(subsets: Mapping[str, str], parts: Sequence[float]) -> list[str]:
    """Return a warning if a subset has a whole patient more or fewer than its part of all."""
    counts = Counter(subsets.values())
    actual = [counts[subset] for subset in SUBSETS]
    if all(abs(n - part * len(subsets)) < 1 for n, part in zip(actual, parts, strict=True)):
        return []
    requested, found = " ".join(f"{part:g}" for part in parts), " / ".join(map(str, actual))
    reason = "every subset receives at least one, and the folders of one person are not separated"
    return [f"--split {requested} assigns {found} of {len(subsets)} patients: {reason}"]


def read_subsets(
    path: str, groups: Sequence[Sequence[str]], incomplete: Collection[str] = ()
) -> dict[str, str]:
    """Read the split from a text file: a line per patient, the subset and then the name.

    Lines on `incomplete` patients, which are left out, have no effect; nor do blank lines and lines
    that begin with #. Raises `CallError` if the file cannot be read or does not fit the patients,
    or if it splits one person.
    """
    option = f"--split-file {quoted(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        hint = "expected: a text file with a line per patient, such as train L067"
        raise CallError(f"{option}: {reason}; {hint}") from None
    if len(text) > MAX_CHARACTERS:
        raise CallError(
            f"{option} has more than {MAX_CHARACTERS} characters; expected: a line per patient"
        )
    known = {patient for group in groups for patient in group}
    out: dict[str, str] = {}
    problems = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        subset, *rest = line.split(maxsplit=1)
        subset, patient = subset.rstrip(":"), "".join(rest)
        if subset not in SUBSETS or not patient:
            expected = f"{' or '.join(SUBSETS)} and a name"
            problems.append(f"line {number}: {quoted(line)}; expected: {expected}")
        elif patient in incomplete:
            continue
        elif patient not in known:
            hint = did_you_mean(patient, known)
            problems.append(
                f"line {number}: no patient {quoted(patient)} below the input folder{hint}"
            )
        elif out.setdefault(patient, subset) != subset:
            problems.append(f"line {number}: patient {quoted(patient)} is in two subsets")
    problems += [f"patient {quoted(p)} is in no subset" for p in sorted(known - set(out))]
    for group in groups:
        if len({out[patient] for patient in group if patient in out}) > 1:
            names = ", ".join(map(printable, group))
            problems.append(f"{names} are the same person, but in different subsets")
    problems += [f"{subset} is left empty" for subset in SUBSETS if subset not in out.values()]
    if problems:
        raise CallError(join_lines(option, problems))
    return out
