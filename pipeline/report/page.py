"""The page: one HTML file with style and images in it, rendered by jinja2."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ctpatches.schema import ORIENTATIONS
from patching import MEAN_HU, TISSUE_HU, TISSUE_PART
from pipeline.config import FILE_OPTIONS
from utils import printable

from .statistics import Facts

#: Rows of a table of the page; the JSON has all.
MAX_TABLE_ROWS = 300
SUBSETS = {"": "", "train": "training set", "val": "validation set", "test": "test set"}


def number(value: float, digits: int | None = None) -> str:
    """Return a number with commas between thousands and a real minus sign."""
    text = f"{value:,.{digits}f}" if digits is not None else f"{value:,.6g}"
    return text.replace("-", "\u2212")


def counted(amount: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number(amount, 0)} {noun if amount == 1 else plural or noun + 's'}"


def percent(part: float, whole: float) -> str:
    """Return a part of a whole, with one digit after the point."""
    if 0 < part < 0.001 * whole:
        return "less than 0.1\u202f%"
    return f"{100 * part / whole:.1f}\u202f%" if whole else "\u2013"


def file_size(size: int) -> str:
    """Return a size in the unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g}\u00a0{unit}"
    return f"{size}\u00a0bytes"


def option_value(key: str, value: Any) -> str:
    """Return the value of an option as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "all" if key == "random_N" else "\u2013"
    if key == "patch_size":
        return f"p{value}"
    if isinstance(value, list):
        return (" to " if key == "hu_window" else ", ").join(number(v) for v in value)
    return str(value)


def all_printable(value: Any) -> Any:
    """Return plain data with the control characters in all its strings escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: all_printable(one) for key, one in value.items()}
    return [all_printable(one) for one in value] if isinstance(value, list) else value


def png_url(png: bytes) -> str:
    """Return an image as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def render(facts: Facts, images: dict[str, Any], defaults: Sequence[str]) -> str:
    """Return the whole page.

    Parameters
    ----------
    facts : dict
        What becomes the JSON.
    images : dict
        PNG by name: `noise`, and in the order of the facts `examples`, `histograms`, `coverage`.
    defaults : sequence of str
        Names of options that have their default.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": file_size, "url": png_url}
    environment.globals |= {"counted": counted, "percent": percent, "option_value": option_value}
    noise = [one["noise"]["sd_hu"] for one in facts["patients"] if one["noise"]]
    return environment.get_template("page.html.j2").render(
        **all_printable(facts),
        images=images,
        defaults=defaults,
        style=(here / "page.css").read_text("utf-8"),
        subset_name=SUBSETS[facts["subset"]],
        median_noise=float(np.median(noise)) if noise else None,
        file_literal=repr(facts["file"]),
        verify=shlex.join(["python", "main.py", "--verify", printable(facts["file"])]),
        options=FILE_OPTIONS,
        orientations="; ".join(f"{code}: {name}" for code, name in enumerate(ORIENTATIONS)),
        air_rule={"part": f"{TISSUE_PART:.0%}", "tissue": TISSUE_HU, "mean": MEAN_HU},
        max_rows=MAX_TABLE_ROWS,
    )
