"""The report on a finished file: a page to keep with it, its figures as JSON, sanity-check images.

All of it lies in one folder. The page needs no network and no script. Nothing here holds a time, a
host name, a rank count or an absolute path, so the same job gives the same bytes; nor, with
`--anonymize`, a real name.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import patching
from ctpatches import __version__
from ctpatches.file import PatchFile, rounding
from ctpatches.files import Invalid, atomic_write
from ctpatches.schema import DIFFERENCE_COLUMNS, REST
from pipeline.config import FILE_OPTIONS, OPTIONS, Config
from pipeline.model import Plan
from pipeline.options import PATCH_OVERLAPS, Option
from pipeline.report import figures, page, sanity, spectrum, statistics
from utils import RunError, quoted

FOLDER = "sanity_check"
#: In place of paths and names, with `--anonymize`.
HIDDEN = "\u2026"
#: Parts of warnings that name no patient; with pseudonyms, warnings are counted by them.
WARNING_KINDS = ("not the same anatomy", "paired by InstanceNumber", "fewer than --random_N")


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
        with PatchFile(file) as source, figures.style():
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
    source: PatchFile, plan: Plan, subset: str, config: Config, warnings: Sequence[str]
) -> dict[str, bytes]:
    """Return all files of the report by name."""
    sheets = list(sanity.sheets(source, config))
    coverage = list(sanity.coverage(source, plan, config))
    index, hu = statistics.read_sample(source, plan, config)
    pairs = source.pair_of(index).tolist()
    windows = statistics.count_windows(plan)
    differences = {name: source.values(f"pair/{name}") for name in DIFFERENCE_COLUMNS}
    patients, doses = statistics.by_patient_and_dose(plan, windows, differences, config)
    counts = {"patients": len(patients), "pairs": len(windows)}
    facts = {
        "file": os.path.basename(source.path),
        "bytes": os.path.getsize(source.path),
        "format_version": source.version,
        "fingerprint": source.values(REST).tobytes().hex(),
        "unit": statistics.unit_of(config),
        "rounding": rounding(source),
        "patch_size": config.patch_size,
        "totals": {**counts, **statistics.totals(windows, config)},
        "scales": statistics.by_scale(windows, config),
        "patients": patients,
        "doses": doses,
        "noise_power": spectrum.measure(plan, config),
        "clipped": statistics.count_clipped(differences, config),
        "histograms": statistics.histograms(hu, pairs, plan, config),
        "unit_map": statistics.unit_map(plan, config),
        "sample": {
            "index": index.tolist(),
            "patches": len(index),
            "patients": len({plan.pairs[i].names.patient for i in pairs}),
        },
        "sheets": [one for _, one, _ in sheets],
        "coverage": [one for _, one, _ in coverage],
        "subset": subset,
        "tool_version": __version__,
        "command": command(config),
        "configuration": source.config,
        "air_rule": patching.air_rule(config),
        "left_out": [{**vars(one), "files": list(one.files)} for one in plan.left_out],
        "warnings": safe_warnings(warnings, config),
    }
    defaults = [name for name, option in FILE_OPTIONS.items() if is_default(config, option)]
    images = {"sheets": [png for *_, png in sheets], "coverage": [png for *_, png in coverage]}
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return {
        **{name: png for name, _, png in [*sheets, *coverage]},
        "report.json": text.encode(),
        "report.html": page.render(facts, images, defaults).encode(),
    }


def is_default(config: Config, option: Option) -> bool:
    """Return whether an option has the value that it has when it is not given."""
    default = option.default
    if option.name == "overlap":
        default = PATCH_OVERLAPS.get(config.patch_size)
    return bool(getattr(config, option.name) == default)


def command(config: Config) -> list[str]:
    """Return the command that writes the same file: a line per option, quoted as for a shell.

    It follows from the configuration alone, so options that do not affect the file are not in it.
    Of paths it has the last name; with `--anonymize` neither paths nor names.
    """
    lines = ["python main.py"]
    for option in OPTIONS.values():
        value = getattr(config, option.name)
        if option.is_path and value is not None:
            value = os.path.basename(os.path.abspath(value))
        elif option.is_path or option.name not in FILE_OPTIONS or is_default(config, option):
            continue
        if config.anonymize and (option.is_path or option.kind.metavar == "NAME"):
            lines.append(f"{option.flag} {HIDDEN}")
        elif value is True or isinstance(value, tuple):
            lines.append(option.words(value))
        else:
            text = option.text(value)
            join = "=" if text.startswith("-") else " "
            lines.append(f"{option.flag}{join}{shlex.quote(text)}")
    return lines


def safe_warnings(found: Sequence[str], config: Config) -> list[str]:
    """Return the warnings of the run; with `--anonymize`, the number of each kind.

    Their text names patients and files, also those of pairs that are not in this file.
    """
    if not config.anonymize:
        return list(found)
    kinds = [next((k for k in WARNING_KINDS if k in text), "other warnings") for text in found]
    return [f"{kind}: {kinds.count(kind)}" for kind in dict.fromkeys(kinds)]
