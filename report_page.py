"""The page itself: one file of HTML with style, drawings and pictures in it."""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctpatches.patchfile import ORIENTATIONS
from patching import MEAN_HU, TISSUE_HU, TISSUE_PART
from report_figures import (
    DIVERGING,
    OPTIONS,
    TABLE_ROWS,
    Facts,
    median,
    nice,
    number,
    paths_of,
)
from report_pictures import Coverage, Picture, Tiles
from sanity import SLICE_HU
from utils import Config, shown


def escaped(value: object) -> str:
    """Return a name or any other text as HTML: nothing in it is markup or a control character."""
    return html.escape(shown(value))


def named(value: object) -> str:
    """Return a name as HTML; its direction of writing does not spread to what is around it."""
    return f"<bdi>{escaped(value)}</bdi>"


def percent(part: float, whole: float) -> str:
    """Return a part of a whole, with one digit after the point."""
    if 0 < part < 0.001 * whole:
        return "less than 0.1\u202f%"
    return f"{100 * part / whole:.1f}\u202f%" if whole else "\u2013"


def bytes_told(size: int) -> str:
    """Return a size in the unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g}\u00a0{unit}"
    return f"{size}\u00a0bytes"


def counted(amount: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number(amount, 0)} {one if amount == 1 else many or one + 's'}"


def page(facts: Facts, tiles: list[Tiles], slices: Sequence[Coverage]) -> str:
    """Return the whole page."""
    sections = [
        ("patches", "Patches", _wall_section(facts, tiles)),
        ("noise", "Noise removed", _noise_section(facts)),
        ("intensities", "Intensities", _histogram_section(facts)),
        ("coverage", "Coverage", _coverage_section(facts, slices)),
        ("counts", "Patients and counts", _count_section(facts)),
        ("left-out", "Left out", _left_out_section(facts)),
        ("made", "How it was made", _made_section(facts)),
        ("use", "How to use it", _use_section(facts)),
    ]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n'
        f"{content}\n</section>"
        for key, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escaped(facts["file"])} \u2013 paired CT patches</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
{_header(facts)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer><p>Written with the data set by version {escaped(facts["tool_version"])} of the tool. The
figures of this page are in {_code(paths_of(facts["file"])[1])} too.</p></footer>
</body>
</html>
"""


def _code(value: object) -> str:
    return f"<code>{escaped(value)}</code>"


def _header(facts: Facts) -> str:
    totals, (p, _) = facts["totals"], facts["patch_shape"]
    unit = facts["unit"]
    sides = {"train": "training", "val": "validation", "test": "test"}
    side = (
        f" \u00b7 {sides.get(facts['side'], escaped(facts['side']))} set" if facts["side"] else ""
    )
    spread_hu = [x["noise"]["sd_hu"] for x in facts["patients"] if x["noise"]]
    figures = [
        (number(totals["patients"], 0), "patient" if totals["patients"] == 1 else "patients"),
        (number(totals["pairs"], 0), "pairs of slices"),
        (number(totals["patches"], 0), f"pairs of patches, {p}\u00a0\u00d7\u00a0{p}\u00a0pixels"),
        (percent(totals["kept"], totals["windows"]), "of the windows kept"),
        *(
            [(f"{median(spread_hu):.1f} HU", "noise removed, median of the patients")]
            if spread_hu
            else []
        ),
        (bytes_told(facts["bytes"]), f"h5 file, {'in ' * (unit == 'HU')}{escaped(unit)}"),
    ]
    items = "".join(f"<div><dt>{told}</dt><dd>{value}</dd></div>" for value, told in figures)
    return f"""<header>
<p class="eyebrow">Paired CT patches{side}</p>
<h1>{named(facts["file"])}</h1>
<dl class="figures">{items}</dl>
</header>"""


def _table(caption: str, heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in a box of its own that scrolls.

    Parameters
    ----------
    caption : str
    heads : sequence of (str, str)
        Title and class of each column; the first column holds the heads of the rows.
    rows : sequence of sequence of str
        HTML.
    """

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        data = "".join(
            f'<td class="{kind}">{cell}</td>'
            for cell, (_, kind) in zip(rest, heads[1:], strict=True)
        )
        return f'<tr><th scope="row">{first}</th>{data}</tr>'

    kind = "scroll long" if len(rows) > 25 else "scroll"
    top = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in heads)
    body = "\n".join(map(line, rows[:TABLE_ROWS]))
    more = len(rows) - TABLE_ROWS
    note = f'<p class="note">{counted(more, "more row")} in the JSON.</p>' if more > 0 else ""
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"
        f"</div>{note}"
    )


def _img(one: Picture) -> str:
    return (
        f'<img src="{one.url}" width="{one.width}" height="{one.height}" '
        f'alt="{html.escape(one.alt)}">'
    )


DOT = " \u00b7 "


# --- sections --------------------------------------------------------------------------------


def _wall_section(facts: Facts, tiles: list[Tiles]) -> str:
    reach = number(facts["wall"]["difference_hu"])
    figures = "\n".join(
        f'<figure class="pair"><div class="tiles">{"".join(map(_img, one.pictures))}</div>'
        f"<figcaption><b>Patch {one.patch}</b>{DOT}{named(one.patient)}{DOT}"
        f'{DOT.join(map(escaped, one.told))}{DOT}<span class="shades">{one.shades}</span>'
        "</figcaption>"
        "</figure>"
        for one in tiles
    )
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in DIVERGING)
    return f"""<p class="lead">From left to right: input (low dose), target (full dose), and
input less target. Drawn at random among patches of the body, as they lie in the slice; in HU, any
normalisation undone.</p>
<div class="legend"><span class="scale">Difference: \u2212{reach} HU <i role="img"
style="background:linear-gradient(90deg, {stops})"
aria-label="from blue through white to orange"></i> +{reach} HU</span></div>
<div class="wall">
{figures}
</div>"""


def _noise_section(facts: Facts) -> str:
    measured = [p for p in facts["patients"] if p["noise"]]
    kinds = facts["noise_by_degradation"]
    normalised = any(abs(k["sd_hu"] - k["sd_file"]) > 1e-4 * k["sd_hu"] for k in kinds.values())
    heads = [("Patient", ""), ("", "bar"), ("SD, HU", "n"), ("Mean, HU", "n")]
    heads += [(f"SD, {escaped(facts['unit'])}", "n")] if normalised else []
    heads += [("Patches", "n")]
    most = max((p["noise"]["sd_hu"] for p in measured), default=0) or 1
    rows = [_noise_row(named(p["patient"]), p["noise"], most, normalised) for p in measured]
    table = _table("Input less target, by patient", heads, rows) if rows else ""
    missing = facts["totals"]["patients"] - len(measured)
    note = (
        f'<p class="note">Not measured: {counted(missing, "patient")} without such a patch in the '
        "sample.</p>"
        if missing
        else ""
    )
    if set(kinds) - {"none"}:
        words = {"none": "left as it was", "blur": "blurred", "noise": "made noisier"}
        most = max(k["sd_hu"] for k in kinds.values()) or 1
        rows = [_noise_row(words[k], kinds[k], most, normalised) for k in words if k in kinds]
        heads = [("Input", ""), *heads[1:]]
        note += _table("Input less target, by what was done to the input", heads, rows)
    return f"""<p class="lead">What a network is to take away: the standard deviation (SD) of input
less target. The mean tells whether the two doses agree in brightness; it should be near 0. Measured
on sampled patches at scale 1, neither turned nor flipped, whose inputs were neither blurred nor
made noisier.</p>
{table}{note}"""


def _noise_row(first: str, noise: Facts, most: float, normalised: bool) -> list[str]:
    share = 100 * noise["sd_hu"] / most
    cells = [first, f'<span class="meter" style="width:{share:.1f}%"></span>']
    cells += [number(noise["sd_hu"], 2), number(noise["mean_hu"], 2)]
    cells += [number(noise["sd_file"], 4)] if normalised else []
    return [*cells, number(noise["patches"], 0)]


def _histogram_section(facts: Facts) -> str:
    sample, unit = facts["sample"], escaped(facts["unit"])
    figures = "\n".join(_histogram(panel, facts["unit"]) for panel in facts["histograms"])
    return f"""<p class="lead">Values of the file, {unit}, in a sample of {
        counted(sample["patches"], "pair")
    } of patches of {counted(sample["patients"], "patient")}, drawn by the seed.</p>
<div class="legend"><span class="key target">target</span><span class="key input">input</span></div>
<div class="panels">
{figures}
</div>"""


#: Size of a histogram, and of what is around its field: left, right, top, bottom.
PLOT, MARGINS = (400, 232), (46, 10, 10, 40)


def _histogram(panel: Facts, unit: str) -> str:
    """Draw input and target as steps: over all values on a logarithmic scale."""
    log = panel["name"] == "all values"
    left, right, top, bottom = MARGINS
    wide, high = PLOT[0] - left - right, PLOT[1] - top - bottom
    sides = ("target", "input")
    shares = {
        s: np.array(panel[s]) / max(1, sum(panel[s]) + panel["outside"][s]) * 100 for s in sides
    }
    most = max(float(v.max()) for v in shares.values())
    ticks = _ticks_log(shares, most) if log else _ticks(0, most)
    floor, roof = ticks[0], max(most * (1.15 if log else 1.04), ticks[-1])

    def y(value: float) -> float:
        if log:
            value = max(value, floor)
            return float(top + high * (1 - math.log(value / floor) / math.log(roof / floor)))
        return float(top + high * (1 - value / roof))

    bins = len(shares["input"])
    low, span = panel["low"], bins * panel["width"]

    def x(value: float) -> float:
        return float(left + wide * (value - low) / span)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{number(t)}</text>'
        for t in ticks
    )
    grid += "".join(
        f'<line class="tick" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top + high}" '
        f'y2="{top + high + 4}"/><text x="{x(t):.1f}" y="{top + high + 17}" '
        f'text-anchor="middle">{number(t)}</text>'
        for t in _ticks(low, low + span, 5)
    )
    paths = ""
    for s in sides:
        steps = "".join(f"V{y(v):.1f}h{wide / bins:.2f}" for v in shares[s])
        line = f"M{left} {top + high}{steps}V{top + high}"
        paths += f'<path class="{s}" d="{line}"/>'
    about = f"Histogram of input and target, {panel['name']}"
    width = number(panel["width"])
    scale = ", logarithmic" if log else ""
    outside = sum(panel["outside"].values())
    whole = outside + sum(sum(panel[s]) for s in sides)
    beyond = f"; {percent(outside, whole)} of the pixels lie outside" if outside else ""
    return f"""<figure class="histogram"><svg viewBox="0 0 {PLOT[0]} {PLOT[1]}" role="img"
aria-label="{about}">{grid}{paths}
<line class="axis" x1="{left}" x2="{left + wide}" y1="{top + high}" y2="{top + high}"/>
<text x="{left + wide / 2:.0f}" y="{PLOT[1] - 6}" text-anchor="middle">{escaped(unit)}</text></svg>
<figcaption><b>{panel["name"].capitalize()}</b>, % of the pixels in bins of {width}{scale}{beyond}.
</figcaption></figure>"""


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`."""
    step = nice(max((high - low) / most, 1e-12))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _ticks_log(shares: dict[str, NDArray[np.float64]], most: float) -> list[float]:
    """Return powers of ten from below the smallest share that is worth a look."""
    least = min(float(v[v > 0].min()) for v in shares.values() if v.any())
    first = max(math.floor(math.log10(least)), math.floor(math.log10(most)) - 3)
    return [10.0**i for i in range(first, math.floor(math.log10(most)) + 1)]


def _coverage_section(facts: Facts, slices: Sequence[Coverage]) -> str:
    low, high = (number(v) for v in SLICE_HU)
    air = facts["configuration"]["air_threshold"]
    rule = (
        f"Kept are windows with more than {TISSUE_PART:.0%} of the target's pixels above "
        f"{number(TISSUE_HU)} HU and a mean above {number(MEAN_HU)} HU."
        if air
        else "All windows are kept: <code>--air_threshold</code> was not given."
    )
    key = '<span class="key kept">kept</span>'
    key += '<span class="key air">left out as air</span>' if air else ""
    figures = "\n".join(_coverage_figure(one, air) for one in slices)
    return f"""<p class="lead">Target slices at scale 1 with the windows that patches were cut
from. {rule}</p>
<div class="legend">{key}<span>Grey: {low} to {high} HU</span></div>
<div class="slices">
{figures}
</div>"""


def _coverage_figure(one: Coverage, air: bool) -> str:
    rows, columns = one.shape
    told = counted(one.kept, "window") + (f" kept, {number(one.air, 0)} of air" if air else "")
    if one.every > 1:
        told += f"; drawn is one in {one.every} of each row and column"
    return (
        f'<figure class="slice"><div class="stack">{_img(one.slice)}'
        f'<svg viewBox="0 0 {columns} {rows}" aria-hidden="true">'
        f'<path class="air" d="{one.air_lines}"/><path class="kept" d="{one.kept_lines}"/></svg>'
        f"</div><figcaption>{named(one.target_file)}<br>{told}</figcaption></figure>"
    )


def _count_section(facts: Facts) -> str:
    columns = [("Windows", "windows"), ("Kept", "kept"), ("Air", "air"), ("Patches", "patches")]
    heads = [("Patient", ""), ("Pairs", "n"), *((title, "n") for title, _ in columns)]
    keys = ["pairs", *(key for _, key in columns)]
    rows = [[named(p["patient"]), *(number(p[k], 0) for k in keys)] for p in facts["patients"]]
    last = ["All", *(number(facts["totals"][k], 0) for k in keys)]
    table = _table("Counts by patient", heads, rows)
    cells = "".join(f'<td class="n">{cell}</td>' for cell in last[1:])
    foot = f'<tfoot><tr><th scope="row">{last[0]}</th>{cells}</tr></tfoot></table>'
    table = table.replace("</table>", foot, 1)
    scales = ""
    if len(facts["scales"]) > 1:
        rows = [
            [number(s["scale"]), *(number(s[k], 0) for _, k in columns)] for s in facts["scales"]
        ]
        heads = [("Scale", ""), *((title, "n") for title, _ in columns)]
        scales = _table("Counts by scale", heads, rows)
    return f"""<p class="lead">A window is a place that a patch is cut from; a kept window gives
{
        "three patches: as it is, turned, and flipped"
        if facts["configuration"]["rot_augment"]
        else "one patch"
    }.</p>
{table}{scales}"""


def _left_out_section(facts: Facts) -> str:
    parts = [_left_out_lead(facts)]
    if facts["left_out"]:
        heads = [("Files", "wrap"), ("Patient", ""), ("Why", "wrap")]
        rows = [
            ["<br>".join(map(named, one["files"])), named(one["patient"]), escaped(one["reason"])]
            for one in facts["left_out"]
        ]
        parts.append(_table("Files that give no patches", heads, rows))
    warnings = facts["warnings"]
    if warnings:
        shown_ones = "".join(f"<li>{escaped(w)}</li>" for w in warnings[:TABLE_ROWS])
        more = len(warnings) - TABLE_ROWS
        note = f'<p class="note">{counted(more, "more")} in the JSON.</p>' if more > 0 else ""
        parts.append(f"<h3>Warnings of the run</h3><ul>{shown_ones}</ul>{note}")
    return "\n".join(parts)


def _left_out_lead(facts: Facts) -> str:
    totals, options, files = facts["totals"], facts["configuration"], facts["left_out"]
    amount = sum(len(one["files"]) for one in files)
    told = [f"{counted(amount, 'file')}, listed below." if files else "No file of these patients."]
    if options["random_N"] is not None:
        told.append(
            f"Of each patient {counted(options['random_N'], 'pair')} at most, as asked for."
        )
    if totals["air"]:
        part = percent(totals["air"], totals["windows"])
        told.append(f"{counted(totals['air'], 'window')} of air, {part} of all.")
    small = sum(s["views_too_small"] for s in facts["scales"])
    if small:
        told.append(f"{counted(small, 'view')} smaller than a patch.")
    return f'<p class="lead">{" ".join(told)}</p>'


def _made_section(facts: Facts) -> str:
    defaults = {f.name: f.default for f in fields(Config)}
    configuration = facts["configuration"]
    rows = []
    for key in sorted(configuration, key=lambda k: [*OPTIONS, k].index(k)):
        value = configuration[key]
        option, unit, meaning = OPTIONS.get(key, (f"--{key.replace('_', '-')}", "", ""))
        plain = tuple(value) if isinstance(value, list) else value
        told = escaped(_told(key, value))
        told = told if plain == defaults.get(key) else f"<b>{told}</b>"
        told += f' <span class="unit">{unit}</span>' if unit and value is not None else ""
        rows.append([f"<code>{option}</code>", told, meaning])
    heads = [("Option", ""), ("Value", ""), ("Meaning", "wrap")]
    return f"""<p class="lead">The command, without folders and without options that only say how
the work was done, such as <code>--mpi_run</code>:</p>
<pre class="command"><code>{_command_lines(facts["command"])}</code></pre>
{_table("Options that decide what the file holds; bold: not the default", heads, rows)}"""


def _command_lines(command: str) -> str:
    """Return the command with a line for each option."""
    lines: list[str] = []
    for word in shlex.split(command.replace("\u2026", "'\u2026'")):
        if word.startswith("--") or not lines:
            lines.append("")
        quoted_word = word if word == "\u2026" else shlex.join([word])
        lines[-1] = f"{lines[-1]} {quoted_word}".strip()
    return " \\\n    ".join(map(escaped, lines))


def _told(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "all" if key == "random_N" else "\u2013"
    if key == "patch_size":
        return f"p{value}"
    if isinstance(value, list):
        return (" to " if key == "hu_window" else ", ").join(number(v) for v in value)
    return str(value)


#: Where a patch comes from: datasets of the file, and what they say.
PROVENANCE = (
    ("patch/pair", "row of the table <code>pair/</code>, which names patient and files"),
    ("patch/scale", "of the pair that the patch was cut from: 1, 0.8 or 0.6"),
    ("patch/row, patch/col", "first row and column of the window at that scale, pixels"),
    ("patch/orientation", ""),
    ("pair/degradation", "what was done to the input: none, blur or noise"),
    ("pair/*_offset, *_divisor", "undo the normalisation: value \u00d7 divisor + offset"),
    ("pair/*_slope, *_intercept", "HU of stored values: slope \u00d7 value + intercept"),
    ("pair/checksum, checksum", "of a pair\u2019s block, and of all other bytes"),
)


def _use_section(facts: Facts) -> str:
    codes = "; ".join(f"{code}: {told}" for code, told in enumerate(ORIENTATIONS))
    rows = [[f"<code>{key}</code>", told or codes] for key, told in PROVENANCE]
    table = _table("Where every patch comes from", [("Dataset", ""), ("Holds", "wrap")], rows)
    verify = shlex.join(["python", "main.py", "--verify", facts["file"]])
    return f"""<h3>Load it</h3>
<p>With h5py alone, or with <code>h5_dataset.py</code> and <code>h5_read.py</code> of the tool,
which can be copied beside a training script.</p>
<pre><code>{text_lines(snippet(facts))}</code></pre>
<h3>Trace a patch</h3>
<p>The table <code>patch/</code> has a row a patch and <code>pair/</code> a row a pair, so every
patch can be followed to the pixels of the slices that it was cut from.
<code>h5_read.provenance(file, patch)</code> looks it up;
<code>h5_read.denormalise</code> gives HU back.</p>
{table}
<h3>Verify it</h3>
<p>The file holds a checksum of every byte. Whether a copy is whole:</p>
<pre><code>{escaped(verify)}</code></pre>
<p>Fingerprint of this file, format version {facts["format_version"]} (its dataset
<code>checksum</code>, XXH3-128 of all tables, the checksums of the blocks among them; the same job
gives the same):</p>
<pre><code>{facts["fingerprint"]}</code></pre>"""


def text_lines(lines: str) -> str:
    """Return several lines as HTML."""
    return "\n".join(map(escaped, lines.split("\n")))


def snippet(facts: Facts) -> str:
    """Return Python code that loads the file."""
    file, p = json.dumps(facts["file"], ensure_ascii=False), facts["patch_shape"][0]
    torch = facts["configuration"]["tensor_format"] == "torch"
    shape = f"(1, {p}, {p})" if torch else f"({p}, {p}, 1)"
    load = (
        f"from ctpatches.torch import PatchDataset\n\npatches = PatchDataset({file})"
        "  # for torch.utils.data.DataLoader"
        if torch
        else f"from ctpatches.torch import tf_dataset\n\npatches = tf_dataset({file}, 64)  # batches"
    )
    return f"""import h5py

with h5py.File({file}) as file:
    low, full = file["input"][0], file["target"][0]  # float32, {shape}

{load}"""


# --- the style -------------------------------------------------------------------------------

#: Nothing is fetched and nothing runs, whatever a name might smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d9dee3; --wash: #f4f6f8;
  --link: #0b57a4; --input: #b4530a; --target: #1c63ad; --fill: #1c63ad26;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e6e9ec; --soft: #a3adb7; --line: #343a41; --wash: #1d2125;
    --link: #84b9f5; --input: #f2a25c; --target: #7ab5f3; --fill: #7ab5f32e;
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem;
  max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1, h2, h3 { line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { margin: 0 0 1.5rem; font-size: clamp(1.75rem, 5vw, 2.6rem); letter-spacing: -0.02em; }
h2 { margin: 0 0 0.6rem; font-size: 1.45rem; letter-spacing: -0.01em; }
h3 { margin: 2rem 0 0.5rem; font-size: 1.05rem; }
p { max-width: 44rem; margin: 0 0 1rem; }
a { color: var(--link); }
.eyebrow { margin: 0 0 0.35rem; color: var(--soft); font-weight: 600; }
.lead, .note, figcaption, .legend, footer { color: var(--soft); }
.note, figcaption, .legend, footer { font-size: 0.875rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.25rem 1.5rem; margin: 0; padding: 1.25rem 0; border-block: 1px solid var(--line);
}
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.figures dt { color: var(--soft); font-size: 0.875rem; line-height: 1.35; }
.figures dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.figures dd, .n, svg text { font-variant-numeric: tabular-nums; }
nav ul {
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0 0; padding: 0;
  list-style: none; font-size: 0.9375rem;
}
nav a { display: block; padding: 0.25rem 0; text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
section { margin-top: 3.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 0.5rem; line-height: 1.45; text-wrap: pretty; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
img, svg { display: block; max-width: 100%; height: auto; }
.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 1.5rem; margin: 0 0 1.25rem;
}
.scale { display: inline-flex; align-items: center; gap: 0.5rem; flex-wrap: wrap; }
.scale i { width: 7rem; height: 0.75rem; border-radius: 2px; }
.wall { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.wall { gap: 1.75rem 2rem; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.tiles img { width: 100%; image-rendering: pixelated; }
.panels, .slices { display: grid; gap: 2rem; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.slices { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.histogram svg { width: 100%; max-width: 34rem; }
.histogram text { fill: var(--soft); font-size: 11.5px; }
.grid { stroke: var(--line); }
.axis, .tick { stroke: var(--soft); }
path.target { fill: var(--fill); stroke: var(--target); stroke-width: 1.6; }
path.input { fill: none; stroke: var(--input); stroke-width: 1.6; }
path { stroke-linejoin: round; }
.stack { position: relative; background: #000; }
.stack img { width: 100%; }
.stack svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.stack path { fill: none; stroke-width: 1.4; vector-effect: non-scaling-stroke; }
path.kept { stroke: #4cc2ff; }
path.air { stroke: #ff9a2e; stroke-dasharray: 4 3; }
.key { display: inline-flex; align-items: center; gap: 0.45rem; }
.key::before { content: ""; width: 1.1rem; height: 0; border-top: 3px solid; }
.key.target::before { color: var(--target); }
.key.input::before { color: var(--input); }
.key.kept::before, .key.air::before { width: 1rem; height: 1rem; border: 2px solid #1597dc; }
.key.air::before {
  border: 2px dashed #d97706;
  background: linear-gradient(45deg, transparent 46%, #d97706 46% 54%, transparent 54%);
}
.scroll {
  overflow: auto; margin: 0 0 1rem; border-block: 1px solid var(--line);
}
.long { max-height: 40rem; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; }
caption span { position: sticky; inset-inline-start: 0.25rem; }
caption span { display: inline-block; max-width: calc(100vw - 2.5rem); white-space: normal; }
.shades { white-space: nowrap; }
.unit { color: var(--soft); }
caption { padding: 0.6rem 0.25rem; text-align: start; color: var(--soft); font-size: 0.875rem; }
th, td {
  padding: 0.4rem 1rem 0.4rem 0.25rem; text-align: start; vertical-align: baseline;
  white-space: nowrap;
}
thead th {
  position: sticky; top: 0; background: var(--paper); color: var(--soft); font-size: 0.875rem;
  font-weight: 600; box-shadow: inset 0 -1px var(--line);
}
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tfoot > tr > * { border-top: 2px solid var(--soft); font-weight: 650; }
.n { text-align: end; }
.wrap { white-space: normal; min-width: 12rem; }
td:last-child, th:last-child { padding-inline-end: 0.25rem; }
.bar { width: 40%; min-width: 4.5rem; }
.meter { display: block; height: 0.7rem; border-radius: 2px; background: var(--target); }
code { font: 0.9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
p code { overflow-wrap: anywhere; }
pre {
  margin: 0 0 1rem; padding: 0.9rem 1rem; overflow-x: auto; border-radius: 6px;
  background: var(--wash);
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 30rem) {
  th, td { padding-inline-end: 0.7rem; }
  .wrap { white-space: nowrap; }
}
@page { margin: 14mm; }
@media print {
  :root {
    --paper: #fff; --ink: #000; --soft: #333; --line: #bbb; --wash: #f4f4f4;
    --link: #000; --input: #b4530a; --target: #1c63ad; --fill: #1c63ad26;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  section { margin-top: 2rem; }
  .scroll { overflow: visible; max-height: none; }
  thead th { position: static; }
  figure, tr, pre, .figures { break-inside: avoid; }
  h2, h3, .lead, .legend, caption, thead { break-after: avoid; }
  tbody tr:first-child { break-before: avoid; }
  caption span { max-width: none; }
  .wall, .panels, .slices { grid-template-columns: repeat(2, 1fr); }
  th, td { padding-block: 0.25rem; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
  img, .meter, .scale i, .key::before {
    -webkit-print-color-adjust: exact; print-color-adjust: exact;
  }
}
"""
