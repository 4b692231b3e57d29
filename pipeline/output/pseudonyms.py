"""The key of the pseudonyms of `--anonymize`: a CSV file for the owner of the data alone."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable

from pipeline.model import Plan
from pipeline.output.blocks import named_errors

#: What makes a spreadsheet read a cell as a formula: such names get an apostrophe before them.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def key_text(plans: Iterable[Plan]) -> bytes:
    """Return pseudonyms and names as CSV."""
    key: dict[str, str] = {}
    for plan in plans:
        for pair, names in zip(plan.pairs, plan.names, strict=True):
            real = (pair.patient, pair.input.file, pair.target.file)
            key |= dict(zip(names, real, strict=True))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("pseudonym", "name"))
    for pseudonym, name in key.items():
        rows.writerow((pseudonym, "'" * name.startswith(FORMULA) + name))
    return text.getvalue().encode("utf-8", "surrogateescape")


def write_key(path: str, text: bytes) -> None:
    """Write the key and sync it, readable by nobody but the owner."""
    with named_errors(path):
        # The mode at creation, not afterwards: nobody may read it in between.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
