"""The report on a finished file: a page to keep with it, its figures as JSON, sanity-check images.

All of it lies in one folder. The page needs no network and no script. Nothing here holds a time, a
host name, a rank count or an absolute path, so the same job gives the same bytes; nor, with
`--anonymize`, a real name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ctpatches.validation import open_file
from pipeline.config import FILE_OPTIONS, Config
from pipeline.model import Plan
from utils import RunError, __version__, atomic_write, quoted

from . import figures, job, page, sanity
from .statistics import (
    Facts,
    Pairs,
    Sample,
    choose_coverage,
    choose_examples,
    difference_range,
    gather,
    grey_range,
)

ROOT = "sanity_check"


def folder_of(file: str) -> Path:
    """Return the folder of a file's report, below the working directory."""
    name = os.path.basename(file)
    stem = name.removesuffix(".h5")
    return Path(ROOT, stem if stem.strip(".") else name)


def write_report(
    file: str, plan: Plan, subset: str, config: Config, warnings: Sequence[str]
) -> Path:
    """Write the report on a finished file, in place of an earlier one.

    Parameters
    ----------
    file : str
        The h5 file.
    plan : Plan
        For the scans of its pairs, and what is left out.
    subset : str
        '' without a split, else `train`, `val` or `test`.
    config : Config
    warnings : sequence of str
        Of the whole run.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        It cannot be written, or the file or a scan can no longer be read.
    """
    folder = folder_of(file)
    try:
        with open_file(file) as opened, figures.style():
            contents = _draw(opened, plan, subset, config, warnings)
        _replace(folder, contents)
    except (OSError, RunError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{quoted(file)} is complete, but its report cannot be written to {quoted(folder)}: "
            f"{reason}; --resume completes the report"
        ) from error
    return folder / "report.html"


def _draw(
    file: h5py.File, plan: Plan, subset: str, config: Config, warnings: Sequence[str]
) -> dict[str, bytes]:
    """Return all files of the report by name."""
    pairs = Pairs.read(file, config)
    sample = Sample.read(file, pairs, config)
    facts = gather(file, pairs, sample, config) | {
        "subset": subset,
        "tool_version": __version__,
        "command": job.command(config),
        "configuration": json.loads(config.as_json()),
        "left_out": [{**vars(one), "files": list(one.files)} for one in plan.left_out],
        "warnings": job.warnings(warnings, config),
    }
    facts["examples"], examples = _examples(sample, config)
    covered = [
        sanity.coverage(file, i, plan.pairs[i], pairs, config)
        for i in choose_coverage(pairs, config)
    ]
    facts["coverage"] = [one for _, _, one in covered]
    images = _charts(facts) | {"examples": examples, "coverage": [png for _, png, _ in covered]}
    defaults = [name for name, option in FILE_OPTIONS.items() if job.is_default(config, option)]
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return {
        **dict(sanity.sheets(file, facts["file"], config)),
        **{name: png for name, png, _ in covered},
        "report.json": text.encode(),
        "report.html": page.render(facts, images, defaults).encode(),
    }


def _examples(sample: Sample, config: Config) -> tuple[list[Facts], list[bytes]]:
    """Draw single patches: input, target and difference."""
    chosen = choose_examples(sample, config)
    low, full = sample.hu("input", chosen), sample.hu("target", chosen)
    difference = difference_range(low - full)
    facts, images = [], []
    for i, one, other in zip(chosen.tolist(), low, full, strict=True):
        pair = int(sample.pair[i])
        position = float(sample.pairs.position_mm[pair])
        facts.append(
            {
                "patch": int(sample.index[i]),
                "patient": sample.patient[i],
                "position_mm": None if np.isnan(position) else position,
                "row": int(sample.row[i]),
                "col": int(sample.col[i]),
                "scale": round(float(sample.scale[i]), 6),
                "degradation": sample.pairs.degradation[pair],
                "difference_hu": difference,
            }
        )
        images.append(figures.png(figures.comparison(one, other, grey_range(other), difference)))
    return facts, images


def _charts(facts: Facts) -> dict[str, Any]:
    """Draw the charts of the page."""
    noise = [one["noise"] and one["noise"]["sd_hu"] for one in facts["patients"]]
    return {
        "noise": figures.png(figures.noise(noise)) if any(noise) else None,
        "histograms": [
            figures.png(
                figures.histogram(
                    one["edges"],
                    one["counts"],
                    one["outside"],
                    facts["unit"],
                    log=one["name"] == "all values",
                )
            )
            for one in facts["histograms"]
        ],
    }


def _replace(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files of a report, in place of an earlier one's; nothing else there is touched."""
    for pattern in ("sheet_*.png", "coverage_*.png"):
        for path in folder.glob(pattern):
            if path.name not in contents:
                path.unlink(missing_ok=True)
    for name, content in contents.items():
        with atomic_write(folder / name) as partial:
            Path(partial).write_bytes(content)
