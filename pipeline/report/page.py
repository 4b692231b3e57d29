"""The page: one HTML file with style and images in it, rendered by jinja2."""

from __future__ import annotations

import base64
import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ctpatches.schema import ORIENTATIONS
from pipeline.config import FILE_OPTIONS
from pipeline.report import figures, spectrum, statistics
from pipeline.report.statistics import Facts
from utils import printable

#: Rows of a table of the page; the JSON has all.
MAX_TABLE_ROWS = 300
HERE = Path(__file__).parent


def number(value: float, digits: int | None = None) -> str:
    """Return a number with commas between thousands and a real minus sign."""
    text = f"{value:,.{digits}f}" if digits is not None else f"{value:,.6g}"
    return text.replace("-", "\u2212")


def all_printable(value: Any) -> Any:
    """Return plain data with the control characters in all its strings escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: all_printable(one) for key, one in value.items()}
    return [all_printable(one) for one in value] if isinstance(value, list) else value


@functools.cache
def _template() -> jinja2.Template:
    """Return the template, compiled once for the reports of all files of a run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "png": figures.png, "base64": base64.b64encode}
    return environment.get_template("page.html.j2")


def render(facts: Facts, images: Mapping[str, Sequence[bytes]], defaults: Sequence[str]) -> str:
    """Return the whole page.

    The facts are those of the JSON, of which the charts are drawn here; `images` are the PNGs of
    its `sheets` and `coverage`; `defaults` are the options that have their default.
    """
    noise = [one["noise"]["sd_hu"] for one in facts["patients"] if one["noise"]]
    return _template().render(
        **all_printable(facts),
        figures=figures,
        statistics=statistics,
        spectrum=spectrum,
        images=images,
        defaults=defaults,
        style=(HERE / "page.css").read_text("utf-8"),
        median_noise=float(np.median(noise)) if noise else None,
        file_literal=repr(facts["file"]),
        verify=shlex.join(["python", "main.py", "--verify", printable(facts["file"])]),
        options=FILE_OPTIONS,
        orientations="; ".join(f"{code}: {name}" for code, name in enumerate(ORIENTATIONS)),
        max_rows=MAX_TABLE_ROWS,
    )
