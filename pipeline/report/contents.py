"""The report on a finished file: a page to keep with it, its figures as JSON, sanity-check images.

All of it lies in one folder. The page needs no network and no script. Nothing here holds a time, a
host name, a rank count or an absolute path, so the same job gives the same bytes; nor, with
`--anonymize`, a real name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import patching
from ctpatches import __version__
from ctpatches.file import rounding
from ctpatches.files import Invalid, atomic_write
from ctpatches.schema import REST
from ctpatches.validation import ValidatedFile, opened
from pipeline.config import FILE_OPTIONS, Config
from pipeline.model import Plan
from pipeline.report import figures, job, page, sanity, spectrum, statistics
from utils import RunError, quoted

FOLDER = "sanity_check"


def write_report(
    file: str, plan: Plan, subset: str, config: Config, warnings: Sequence[str]
) -> Path:
    """Write the report on a finished file, in place of an earlier one; return the page.

    The warnings are those of the whole run. Raises RunError if the report cannot be written, or the
    file or a scan can no longer be read.
    """
    name = os.path.basename(file)
    stem = name.removesuffix(".h5")
    folder = Path(FOLDER, stem if stem.strip(".") else name)
    try:
        with opened(file) as source, figures.style():
            contents = _contents(source, plan, subset, config, warnings)
        # Nothing else there is deleted; earlier versions drew sheet_*.png.
        for pattern in ("patches_*.png", "coverage_*.png", "sheet_*.png"):
            for path in folder.glob(pattern):
                if path.name not in contents:
                    path.unlink(missing_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as partial:
                Path(partial).write_bytes(content)
    except (OSError, RunError, Invalid) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{quoted(file)} is complete, but its report cannot be written to {quoted(folder)}: "
            f"{reason}; --resume completes the report"
        ) from error
    return folder / "report.html"


def _contents(
    source: ValidatedFile, plan: Plan, subset: str, config: Config, warnings: Sequence[str]
) -> dict[str, bytes]:
    """Return all files of the report by name."""
    sheets = list(sanity.sheets(source, config))
    coverage = list(sanity.coverage(source, plan, config))
    sample = statistics.read_sample(source, plan, config)
    differences = statistics.read_differences(source)
    patients, doses = statistics.by_patient_and_dose(plan, differences, config)
    power = spectrum.measure(plan, config)
    histograms = statistics.histograms(sample, plan, config)
    unit, unit_map = statistics.unit_of(config), statistics.unit_map(plan, config)
    windows = [planned.windows for planned in plan.pairs]
    facts = {
        "file": os.path.basename(source.path),
        "bytes": os.path.getsize(source.path),
        "format_version": source.version,
        "fingerprint": source.values(REST).tobytes().hex(),
        "unit": unit,
        "rounding": rounding(source),
        "patch_size": config.patch_size,
        "totals": {"patients": len(patients), **statistics.count_pairs(windows, config)},
        "scales": statistics.count_scales(windows, config),
        "patients": patients,
        "doses": doses,
        "noise_power": power,
        "clipped": statistics.count_clipped(differences, config),
        "histograms": histograms,
        "unit_map": unit_map,
        "sample": {
            "index": sample.index.tolist(),
            "patches": len(sample.index),
            "patients": len({plan.pairs[i].names.patient for i in sample.pair}),
        },
        "sheets": [{"file": name, "patches": patches} for name, patches, _ in sheets],
        "coverage": [one for _, one, _ in coverage],
        "subset": subset,
        "tool_version": __version__,
        "command": job.command(config),
        "configuration": json.loads(config.as_json()),
        "air_rule": patching.air_rule(config),
        "left_out": [{**vars(one), "files": list(one.files)} for one in plan.left_out],
        "warnings": job.warnings(warnings, config),
    }
    images: dict[str, Any] = {
        "noise": None,
        "sheet": sheets[0][2] if sheets else None,
        "noise_power": figures.png(figures.spectrum(power)) if power else None,
        "coverage": [png for _, _, png in coverage],
        "histograms": [figures.png(figures.histogram(h, unit, unit_map)) for h in histograms],
    }
    if any(one["noise"] for one in patients):
        images["noise"] = figures.png(figures.noise([one["noise"] for one in patients]))
    defaults = [name for name, option in FILE_OPTIONS.items() if job.is_default(config, option)]
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return {
        **{name: png for name, _, png in [*sheets, *coverage]},
        "report.json": text.encode(),
        "report.html": page.render(facts, images, defaults).encode(),
    }
