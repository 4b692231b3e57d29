"""Every chart and image of the report, drawn by matplotlib: arrays in, a figure out.

Figures are drawn inside of `style()`, which makes them independent of the user's settings.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

import augment
from utils import printable

Floats = NDArray[np.float32]

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59636e",
    "grid.color": "#d9dee3",
    "text.parse_math": False,  # a name may have dollar signs
    "image.cmap": "gray",
    "legend.frameon": False,
    "savefig.dpi": "figure",
}
#: Blue and orange: distinct for colour-blind readers, and in grey.
COLOURS = {"input": "#b4530a", "target": "#1c63ad"}
KEPT_COLOUR, AIR_COLOUR = "#3cbeff", "#ff8c1e"
#: Grey range of whole slices, HU: lung to bone.
MIN_SLICE_HU, MAX_SLICE_HU = -1000.0, 600.0
#: Part of the pixels of a sheet that may be darker or lighter than its grey range.
CLIPPED_PART = 0.005
#: Rows and columns at which a view is drawn: more would use memory without being visible.
MAX_DRAWN_SIZE = 1024
#: Width of axes with the room for their title, inches.
MIN_WIDTH = 2.0
#: Windows drawn on one view; of more, only every k-th row and column.
MAX_DRAWN_WINDOWS = 2500


def style() -> AbstractContextManager[None]:
    """Draw in the style of the report, whatever the user's settings are."""
    return matplotlib.style.context(STYLE, after_reset=True)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # For images with noise, a higher level makes larger files in twice the time.
    figure.savefig(file, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return file.getvalue()


def label(text: object) -> str:
    """Return text on one line, with characters escaped that the font does not have."""
    font = get_font(findfont("DejaVu Sans"))
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
        for c in printable(text)
    )


def _row(
    sizes: Sequence[tuple[float, float]], margins: Sequence[float], gap: float = 0, title: str = ""
) -> Figure:
    """Return a figure with axes in a row, aligned at the top; a title is shortened to fit.

    In inches: width and height of each of the axes, the margins left, right, below and above them,
    and the gap between them.
    """
    left, right, below, above = margins
    lefts = np.cumsum([left, *(max(wide, MIN_WIDTH) + gap for wide, _ in sizes)])
    width, height = lefts[-1] - gap + right, below + max(high for _, high in sizes) + above
    figure = Figure((width, height), dpi=150)
    for x, (wide, high) in zip(lefts[:-1], sizes, strict=True):
        figure.add_axes((x / width, 1 - (above + high) / height, wide / width, high / height))
    text, most = label(title), int(8 * width)
    if len(text) > most:
        text = f"{text[: most // 2]} \u2026 {text[-most // 2 :]}"
    if text:
        place = 0.15 / width, 1 - 0.2 / height
        figure.text(*place, text, va="center", fontsize=10, fontweight="bold")
    return figure


def _image(axes: Axes, image: Floats, title: str, **limits: Any) -> ScalarMappable:
    """Draw patches, every pixel a square."""
    axes.set_axis_off()
    axes.set_title(title)
    return axes.imshow(image, interpolation="nearest", **limits)


def _colour_bar(figure: Figure, image: ScalarMappable, unit: str, place: Sequence[float]) -> None:
    """Add a colour bar; its place is left, lower edge, width and height, inches."""
    left, below, width, height = np.divide(place, np.tile(figure.get_size_inches(), 2))
    axes = figure.add_axes((left, below, width, height))
    ticks = MaxNLocator(4)
    figure.colorbar(image, axes, orientation="horizontal", extend="both", ticks=ticks, label=unit)


def tiles(patches: Floats, columns: int) -> Floats:
    """Arrange patches, shape (n, p, p), in rows, with NaN between them and where there are none."""
    count, size, _ = patches.shape
    columns = min(count, columns)
    rows = -(-count // columns)
    gap = max(1, size // 24)
    step = size + gap
    out = np.full((rows * columns, step, step), np.nan, np.float32)
    out[:count, :size, :size] = patches
    out = out.reshape(rows, columns, step, step).swapaxes(1, 2)
    return out.reshape(rows * step, columns * step)[:-gap, :-gap]


def sheet(input_patches: Floats, target_patches: Floats, title: str, unit: str) -> Figure:
    """Draw at most 12 patches of both roles, each of shape (n, p, p), in one grey range."""
    both = [tiles(patches, 4) for patches in (input_patches, target_patches)]
    low, high = np.nanquantile(np.stack(both), (CLIPPED_PART, 1 - CLIPPED_PART))
    size = 4.6, 4.6 * both[0].shape[0] / both[0].shape[1]
    figure = _row([size, size], (0.15, 0.15, 0.7, 0.65), 0.2, title)
    for axes, image, name in zip(figure.axes, both, ("Input", "Target"), strict=True):
        drawn = _image(axes, image, name, vmin=low, vmax=max(high, low + 1e-6))
    _colour_bar(figure, drawn, unit, (2.55, 0.48, 4.6, 0.12))
    return figure


def comparison(
    input_hu: Floats, target_hu: Floats, grey: tuple[float, float], difference: float
) -> Figure:
    """Draw one patch: input, target, and input minus target.

    The HU of black and white are `grey`; those at the ends of the colours are plus and minus
    `difference`.
    """
    figure = _row([(2.0, 2.0)] * 3, (0.05, 0.05, 0.6, 0.28), 0.06)
    left, middle, right = figure.axes
    limits = {"vmin": grey[0], "vmax": grey[1]}
    _image(left, input_hu, "Input", **limits)
    drawn = _image(middle, target_hu, "Target", **limits)
    _colour_bar(figure, drawn, "HU", (1.08, 0.45, 2.0, 0.1))
    limits = {"vmin": -difference, "vmax": difference}
    drawn = _image(right, input_hu - target_hu, "Input minus target", cmap="PuOr_r", **limits)
    _colour_bar(figure, drawn, "HU", (4.27, 0.45, 1.8, 0.1))
    return figure


def _chart(x_label: str, y_label: str, above: float = 0.15) -> tuple[Figure, Axes]:
    figure = _row([(4.55, 2.4)], (0.8, 0.15, 0.55, above))
    (axes,) = figure.axes
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    return figure, axes


def noise(patients: Sequence[Mapping[str, Any] | None]) -> Figure:
    """Draw the noise of all patients, each of `statistics.measure_noise`."""
    figure, axes = _chart("patient, by its number in the table", "SD of input minus target, HU")
    known = [(i, one) for i, one in enumerate(patients, 1) if one]
    numbers = [i for i, _ in known]
    values, errors = ([one[name] for _, one in known] for name in ("sd_hu", "sd_error_hu"))
    axes.errorbar(numbers, values, errors, fmt="o", ms=4 if len(values) < 200 else 2, capsize=2)
    median = float(np.median(values))
    axes.axhline(median, color="black", lw=1, ls="--", zorder=3, label=f"median: {median:.1f} HU")
    axes.set_ylim(0, max(1.25 * max(values), 1e-3))
    axes.set_xlim(0.5, len(patients) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.legend(loc="upper right")
    return figure


def spectrum(facts: Mapping[str, Any]) -> Figure:
    """Draw a noise power spectrum of `spectrum.measure`."""
    figure, axes = _chart("spatial frequency, 1/mm", "noise power, HU\u00b2 mm\u00b2")
    axes.plot(facts["per_mm"], facts["hu2_mm2"], lw=1.5)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return figure


def histogram(panel: Mapping[str, Any], unit: str, unit_map: Sequence[float] | None) -> Figure:
    """Draw how often HU occur in input and target.

    The panel is one of `statistics.histograms`. With `statistics.unit_map` a second axis has the
    unit of the file.
    """
    edges = panel["edges"]
    figure, axes = _chart("HU", "% of the pixels, per HU", 0.6 if unit_map else 0.15)
    for role in ("target", "input"):
        counts = np.array(panel["counts"][role])
        pixels = max(1, counts.sum() + panel["outside"][role])
        percent = 100 * counts / pixels / (edges[1] - edges[0])
        axes.stairs(percent, edges, color=COLOURS[role], lw=1.2, label=role)
        if role == "target":
            axes.stairs(percent, edges, color=COLOURS[role], alpha=0.15, fill=True)
    if panel["name"] == "all values":
        axes.set_yscale("log", nonpositive="clip")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(edges[0], edges[-1])
    if unit_map:
        offset, divisor = unit_map
        functions = (lambda hu: (hu - offset) / divisor, lambda value: value * divisor + offset)
        axes.secondary_xaxis("top", functions=functions).set_xlabel(label(unit))
    axes.legend(loc="upper right")
    return figure


class WindowedView(NamedTuple):
    """A view of a target, HU, with its windows: their first rows and columns, and which are kept.

    Windows that are not kept, in `kept` of shape (len(rows), len(cols)), were left out as air.
    """

    scale: float
    image_hu: Floats
    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    size: int
    kept: NDArray[np.bool_]


def coverage(views: Sequence[WindowedView], title: str) -> Figure:
    """Draw a slice at every scale, the largest first, with its kept and rejected windows."""
    views = [view for view in views if view.image_hu.size]
    inch = 3.4 / max(views[0].image_hu.shape)
    sizes = [(inch * v.image_hu.shape[1], inch * v.image_hu.shape[0]) for v in views]
    figure = _row(sizes, (0.65, 0.35, 1.1, 0.95), 0.75, title)
    for axes, view in zip(figure.axes, views, strict=True):
        drawn = _draw_view(axes, view)
    _colour_bar(figure, drawn, "HU", (0.65, 0.42, 2.0, 0.1))
    keys = [Line2D([], [], color=KEPT_COLOUR, lw=2, label="kept")]
    if not all(view.kept.all() for view in views):
        keys.append(Line2D([], [], color=AIR_COLOUR, lw=2, ls=(0, (2, 1)), label="left out as air"))
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(2.9 / figure.get_figwidth(), 0))
    return figure


def _draw_view(axes: Axes, view: WindowedView) -> ScalarMappable:
    rows, columns = view.image_hu.shape
    reduced = augment.downscale(view.image_hu, min(1.0, MAX_DRAWN_SIZE / max(rows, columns)))
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(reduced, vmin=MIN_SLICE_HU, vmax=MAX_SLICE_HU, extent=extent)
    every = max(1, math.ceil(math.sqrt(view.kept.size / MAX_DRAWN_WINDOWS)))
    drawn = view.kept[::every, ::every]
    # The rejected ones lie further in: where two windows meet, both lines are visible.
    for keep, inset, colour, dashes in (
        (False, 0.09 * view.size, AIR_COLOUR, (0, (3, 2))),
        (True, 0.03 * view.size, KEPT_COLOUR, "solid"),
    ):
        i, j = np.nonzero(drawn == keep)
        corners = np.stack([view.cols[::every][j], view.rows[::every][i]], axis=1) + inset - 0.5
        outline = (view.size - 2 * inset) * np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
        squares = [*(corners[:, None] + outline)]
        axes.add_collection(LineCollection(squares, colors=colour, lw=1.0, linestyles=[dashes]))
    counts = f"{view.kept.sum()} windows kept, {(~view.kept).sum()} air"
    thinned = f"\n(drawn: 1 in {every} rows and columns)" if every > 1 else ""
    axes.set_title(f"scale {view.scale:g}\n{counts}{thinned}", loc="left")
    axes.set(xlabel="column, pixels", ylabel="row, pixels")
    axes.spines[:].set_visible(False)
    axes.locator_params(nbins=5)
    return image
