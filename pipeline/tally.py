"""Counts, files left out and warnings of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config import Config
from utils import printable


@dataclass
class Tally:
    """Counts and remarks that the summary at the end of a run shows."""

    counts: dict[str, int] = field(default_factory=dict)
    remarks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, number: int = 1) -> None:
        """Add to the count of that name."""
        self.counts[name] = self.counts.get(name, 0) + number

    def warn(self, text: str, *patients: str) -> None:
        """Add a remark, `{}` in it standing for the names of patients."""
        self.remarks.append((text, patients))

    @property
    def warnings(self) -> list[str]:
        """The remarks, patients by their pseudonyms if they have some."""
        return [
            text.format(*(printable(self.numbers.get(patient, patient)) for patient in patients))
            for text, patients in self.remarks
        ]


def print_tally(tally: Tally, config: Config) -> None:
    """Print counts, what was left out, and warnings; with `--quiet` the last two alone."""
    for name, number in tally.counts.items():
        if not config.quiet and (number or name in ("patients", "pairs", "patches")):
            print(f"{name:28} {number}")
    for line in tally.left_out:
        print(printable(f"left out: {line}"))
    for warning in tally.warnings:
        print(printable(f"warning: {warning}"))
