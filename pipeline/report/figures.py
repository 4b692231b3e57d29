"""Every chart and image of the report, drawn by matplotlib: arrays in, a figure out.

Figures are drawn inside of `style()`, which makes them independent of the user's settings.
"""

from __future__ import annotations

import io
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
DPI = 150
#: Blue and orange: distinct for colour-blind readers, and in grey.
COLOURS = {"input": "#b4530a", "target": "#1c63ad"}
KEPT_COLOUR, AIR_COLOUR, BODY_COLOUR = "#3cbeff", "#ff8c1e", "#ff66cc"
#: Grey range of whole slices, HU: lung to bone.
MIN_SLICE_HU, MAX_SLICE_HU = -1000.0, 600.0
#: Part of the pixels of a sheet that may be darker or lighter than its grey range.
CLIPPED_PART = 0.005
#: Rows and columns at which a view is drawn: more would use memory without being visible.
MAX_DRAWN_SIZE = 1024
#: Width of a slice with the room for its title, inches.
MIN_WIDTH = 2.0
#: Sheets of patches: about the side of a patch, pixels of the image; width of the labels, inches,
#: and characters of a line of them.
PATCH_PIXELS, LABEL_INCHES, MAX_LABEL = 210, 1.76, 22
#: Windows drawn on one view; of more, only every k-th row and column.
MAX_DRAWN_WINDOWS = 700


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


def shortened(text: object, most: int) -> str:
    """Return the label of a text, of a long one its first and last characters."""
    line = label(text)
    half = (most - 3) // 2
    return line if len(line) <= most else f"{line[:half]} \u2026 {line[-half:]}"


def _row(
    sizes: Sequence[tuple[float, float]],
    margins: Sequence[float],
    gap: float = 0,
    title: str = "",
    min_width: float = 0,
) -> Figure:
    """Return a figure with axes in a row, aligned at the top; a title is shortened to fit.

    In inches: width and height of each of the axes, the margins left, right, below and above them,
    the gap between them, and the room for one that is narrower.
    """
    left, right, below, above = margins
    lefts = np.cumsum([left, *(max(wide, min_width) + gap for wide, _ in sizes)])
    width, height = lefts[-1] - gap + right, below + max(high for _, high in sizes) + above
    figure = Figure((width, height), dpi=DPI)
    for x, (wide, high) in zip(lefts[:-1], sizes, strict=True):
        figure.add_axes((x / width, 1 - (above + high) / height, wide / width, high / height))
    if text := shortened(title, int(8 * width)):
        place = 0.15 / width, 1 - 0.2 / height
        figure.text(*place, text, va="center", fontsize=10, fontweight="bold")
    return figure


def _image(axes: Axes, image: Floats, title: str, **limits: Any) -> ScalarMappable:
    """Draw patches, every pixel a square."""
    axes.set_axis_off()
    axes.set_title(title)
    return axes.imshow(image, interpolation="nearest", **limits)


def _colour_bar(
    figure: Figure,
    image: ScalarMappable,
    unit: str,
    place: Sequence[float],
    ticks: Sequence[float] | None = None,
) -> None:
    """Add a colour bar; its place is left, lower edge, width and height, inches."""
    left, below, width, height = np.divide(place, np.tile(figure.get_size_inches(), 2))
    axes = figure.add_axes((left, below, width, height))
    figure.colorbar(
        image,
        axes,
        orientation="horizontal",
        extend="both",
        ticks=MaxNLocator(4) if ticks is None else ticks,
        label=unit,
    )


def patch_rows(
    input_hu: Floats, target_hu: Floats, labels: Sequence[Sequence[str]], title: str
) -> Figure:
    """Draw patches, shape (n, p, p), HU: a row of input, target and input minus target for each.

    All have one grey range, and all differences one range of colours. The lines of a label stand
    beside their row.
    """
    size = input_hu.shape[1]
    gap = max(1, size // 24)
    columns = {
        name: np.pad(patches, ((0, 0), (0, gap), (0, 0)), constant_values=np.nan).reshape(-1, size)[
            :-gap
        ]
        for name, patches in (
            ("Input", input_hu),
            ("Target", target_hu),
            ("Input minus target", input_hu - target_hu),
        )
    }
    low, high = np.nanquantile([*columns.values()][:2], (CLIPPED_PART, 1 - CLIPPED_PART))
    # A round number that 98 % of the differences do not exceed by much.
    most = float(f"{np.nanquantile(np.abs(columns['Input minus target']), 0.98):.0e}") or 1.0
    grey = {"vmin": low, "vmax": max(high, low + 1)}
    limits = [grey, grey, {"vmin": -most, "vmax": most, "cmap": "PuOr_r"}]
    # A whole number of pixels per pixel of a patch, or some would be wider than others.
    pixel = max(1, round(PATCH_PIXELS / size)) / DPI
    side, left, between = pixel * size, LABEL_INCHES, 0.08
    axes_size = side, pixel * len(columns["Input"])
    figure = _row([axes_size] * 3, (left, 0.16, 0.76, 0.66), between, title)
    drawn = [
        _image(axes, column, name, **limit)
        for axes, (name, column), limit in zip(figure.axes, columns.items(), limits, strict=True)
    ]
    width, height = figure.get_size_inches()
    for row, lines in enumerate(labels):
        text = "\n".join(shortened(line, MAX_LABEL) for line in lines)
        top = height - 0.66 - row * (size + gap) * pixel
        # Below the images, which hide the end of a line of the widest letters.
        figure.text(0.15 / width, top / height, text, va="top", fontsize=8, zorder=-1)
    _colour_bar(figure, drawn[0], "HU", (left + 0.2, 0.48, 2 * side + between - 0.4, 0.1))
    place = left + 2 * (side + between) + 0.15, 0.48, side - 0.3, 0.1
    _colour_bar(figure, drawn[2], "input minus target, HU", place, [-most, 0, most])
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

    Windows that are neither in `kept`, of shape (len(rows), len(cols)), nor in another file of
    `--nsplit` were left out.
    """

    scale: float
    image_hu: Floats
    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    size: int
    kept: NDArray[np.bool_]
    others: NDArray[np.bool_] | np.bool_ = np.False_  # in another file

    @property
    def left_out(self) -> NDArray[np.bool_]:
        return ~(self.kept | self.others)


def coverage(
    views: Sequence[WindowedView], title: str, body: NDArray[np.bool_] | None = None
) -> Figure:
    """Draw a slice at every scale, the largest first, with its kept and rejected windows.

    The body is a mask of the slice at scale 1, of which the outline is drawn.
    """
    views = [view for view in views if view.image_hu.size]
    inch = 3.4 / max(views[0].image_hu.shape)
    sizes = [(inch * v.image_hu.shape[1], inch * v.image_hu.shape[0]) for v in views]
    figure = _row(sizes, (0.65, 0.35, 1.1, 0.95), 0.75, title, MIN_WIDTH)
    for axes, view in zip(figure.axes, views, strict=True):
        drawn = _draw_view(axes, view, inch)
        if body is not None:
            _outline(axes, body, view.scale)
    _colour_bar(figure, drawn, "HU", (0.65, 0.42, 2.0, 0.1))
    keys = [Line2D([], [], color=KEPT_COLOUR, lw=2, label="kept")]
    if any(view.left_out.any() for view in views):
        keys.append(Line2D([], [], color=AIR_COLOUR, lw=2, ls=(0, (2, 1)), label="left out"))
    if body is not None:
        keys.append(Line2D([], [], color=BODY_COLOUR, lw=1.5, ls=":", label="body"))
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(2.9 / figure.get_figwidth(), 0))
    return figure


def _outline(axes: Axes, mask: NDArray[np.bool_], scale: float) -> None:
    """Draw the outline of a mask of the slice at scale 1."""
    rows, columns = augment.view_shape((mask.shape[0], mask.shape[1]), scale)
    reduced = augment.downscale(mask.astype(np.float32), min(1.0, MAX_DRAWN_SIZE / max(mask.shape)))
    if min(reduced.shape) < 2 or not reduced.min() < 0.5 < reduced.max():
        return  # no outline: matplotlib refuses the first, and warns of the second
    axes.contour(
        reduced,
        [0.5],
        extent=(-0.5, columns - 0.5, -0.5, rows - 0.5),
        colors=BODY_COLOUR,
        linewidths=1.5,
        linestyles=":",
    )


def _draw_view(axes: Axes, view: WindowedView, inch: float) -> ScalarMappable:
    """Draw one view; a pixel of it is `inch` wide."""
    rows, columns = view.image_hu.shape
    reduced = augment.downscale(view.image_hu, min(1.0, MAX_DRAWN_SIZE / max(rows, columns)))
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(reduced, vmin=MIN_SLICE_HU, vmax=MAX_SLICE_HU, extent=extent)
    every = 1
    while view.kept[::every, ::every].size > MAX_DRAWN_WINDOWS:
        every += 1
    # The rejected ones lie further in: where two windows meet, both lines are visible.
    for windows, inset, colour, dashes in (
        (view.left_out, 0.09 * view.size, AIR_COLOUR, (0, (3, 2))),
        (view.kept, 0.03 * view.size, KEPT_COLOUR, "solid"),
    ):
        i, j = np.nonzero(windows[::every, ::every])
        corners = np.stack([view.cols[::every][j], view.rows[::every][i]], axis=1) + inset - 0.5
        outline = (view.size - 2 * inset) * np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
        squares = [*(corners[:, None] + outline)]
        axes.add_collection(LineCollection(squares, colors=colour, lw=1.0, linestyles=[dashes]))
    counts = f"windows: {view.kept.sum()} kept, {view.left_out.sum()} left out"
    if not view.kept.size:
        counts = "smaller than a patch"
    thinned = f"\n(drawn: 1 in {every} rows and columns)" if every > 1 else ""
    axes.set_title(f"scale {view.scale:g}\n{counts}{thinned}", loc="left")
    axes.set(xlabel="column, pixels", ylabel="row, pixels")
    axes.spines[:].set_visible(False)
    for axis, length in ((axes.xaxis, columns), (axes.yaxis, rows)):
        labels = max(1, min(5, int(2 * inch * length)))  # one per half inch at most
        axis.set_major_locator(MaxNLocator(labels, steps=[1, 2, 5, 10], integer=True))
    return image
