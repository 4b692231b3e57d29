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
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

import augment
from patching import Grid
from utils import Image, printable

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


def label(text: object, most: int) -> str:
    """Return text on one line, with characters escaped that the font does not have.

    Of a long text, the first and the last characters.
    """
    font = get_font(findfont("DejaVu Sans"))
    line = "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
        for c in printable(text)
    )
    half = (most - 3) // 2
    return line if len(line) <= most else f"{line[:half]} \u2026 {line[-half:]}"


def _figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of a size in inches; its title is shortened to fit."""
    figure = Figure((width, height), dpi=DPI)
    text, how = label(title, int(8 * width)), {"fontsize": 10, "fontweight": "bold"}
    figure.text(0.15, height - 0.2, text, how, va="center", transform=figure.dpi_scale_trans)
    return figure


def _axes(figure: Figure, left: float, above: float, width: float, height: float) -> Axes:
    """Add axes of a size in inches, so far from the left and the upper edge of a figure."""
    all_wide, all_high = figure.get_size_inches()
    corner = left / all_wide, 1 - (above + height) / all_high
    return figure.add_axes((*corner, width / all_wide, height / all_high))


def _colour_bar(image: AxesImage, axes: Axes, unit: str, ticks: Any = None) -> None:
    """Fill axes with the colour bar of an image."""
    how: Any = {"ticks": ticks or MaxNLocator(4), "orientation": "horizontal", "extend": "both"}
    axes.figure.colorbar(image, axes, label=unit, **how)


def patch_rows(
    input_hu: Image, target_hu: Image, labels: Sequence[Sequence[str]], title: str
) -> Figure:
    """Draw patches, shape (n, p, p), HU: a row of input, target and input minus target for each.

    All have one grey range, and all differences one range of colours. The lines of a label stand
    beside their row.
    """
    n, size, _ = input_hu.shape
    gap = max(1, size // 24)
    difference_hu = input_hu - target_hu
    low, high = np.quantile([input_hu, target_hu], (CLIPPED_PART, 1 - CLIPPED_PART))
    # A round number that 98 % of the differences do not exceed by much.
    most = float(f"{np.quantile(np.abs(difference_hu), 0.98):.0e}") or 1.0
    grey = {"vmin": low, "vmax": max(high, low + 1)}
    colours = {"vmin": -most, "vmax": most, "cmap": "PuOr_r"}
    # A whole number of pixels per pixel of a patch, or some would be wider than others.
    pixel = max(1, round(PATCH_PIXELS / size)) / DPI
    side, height = pixel * size, pixel * (n * (size + gap) - gap)
    left, between, below, above = LABEL_INCHES, 0.08, 0.76, 0.66
    lefts = np.cumsum([left, *[side + between] * 3])
    figure = _figure(lefts[3] - between + 0.16, below + height + above, title)
    drawn: list[AxesImage] = []
    for name, patches, limits in (
        ("Input", input_hu, grey),
        ("Target", target_hu, grey),
        ("Input minus target", difference_hu, colours),
    ):
        column = np.pad(patches, ((0, 0), (0, gap), (0, 0)), constant_values=np.nan)
        axes = _axes(figure, lefts[len(drawn)], above, side, height)
        axes.set_axis_off()
        axes.set_title(name)
        image = column.reshape(-1, size)[:-gap]
        drawn.append(axes.imshow(image, interpolation="nearest", **limits))
    for row, lines in enumerate(labels):
        text = "\n".join(label(line, MAX_LABEL) for line in lines)
        y = below + height - row * (size + gap) * pixel
        # Below the images, which hide the end of a line of the widest letters.
        how = {"va": "top", "fontsize": 8, "zorder": -1}
        figure.text(0.15, y, text, how, transform=figure.dpi_scale_trans)
    bar = _axes(figure, left + 0.2, above + height + 0.18, 2 * side + between - 0.4, 0.1)
    _colour_bar(drawn[0], bar, "HU")
    bar = _axes(figure, left + 2 * (side + between) + 0.15, above + height + 0.18, side - 0.3, 0.1)
    _colour_bar(drawn[2], bar, "input minus target, HU", [-most, 0, most])
    return figure


def _chart(x_label: str, y_label: str, above: float = 0.15) -> tuple[Figure, Axes]:
    figure = Figure((5.5, 2.95 + above), dpi=DPI)
    axes = _axes(figure, 0.8, above, 4.55, 2.4)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    return figure, axes


def noise(patients: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the noise of patients, as `statistics.by_patient_and_dose` returns them."""
    figure, axes = _chart("patient, by its number in the table", "SD of input minus target, HU")
    known = {i: one["noise"] for i, one in enumerate(patients, 1) if one["noise"]}
    values, errors = ([one[name] for one in known.values()] for name in ("sd_hu", "sd_error_hu"))
    size = 4 if len(values) < 200 else 2
    axes.errorbar([*known], values, errors, fmt="o", ms=size, capsize=2)
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
        axes.secondary_xaxis("top", functions=functions).set_xlabel(unit)
    axes.legend(loc="upper right")
    return figure


class WindowedView(NamedTuple):
    """A view of a target, HU, and which of its windows are kept and left out.

    The masks have the shape (rows, columns) of the grid; with `--nsplit`, windows in another file
    are in neither.
    """

    scale: float
    image_hu: Image
    grid: Grid
    kept: NDArray[np.bool_]
    left_out: NDArray[np.bool_]


def coverage(
    views: Sequence[WindowedView], title: str, body: NDArray[np.bool_] | None = None
) -> Figure:
    """Draw a slice at every scale, the largest first, with its kept and rejected windows.

    The body is a mask of the slice at scale 1, of which the outline is drawn.
    """
    views = [view for view in views if view.image_hu.size]
    inch = 3.4 / max(views[0].image_hu.shape)
    sizes = [(inch * v.image_hu.shape[1], inch * v.image_hu.shape[0]) for v in views]
    left, between, right, below, above = 0.65, 0.75, 0.35, 1.1, 0.95
    lefts = np.cumsum([left, *(max(wide, MIN_WIDTH) + between for wide, _ in sizes)])
    width = lefts[-1] - between + right
    height = below + max(high for _, high in sizes) + above
    figure = _figure(width, height, title)
    for x, (wide, high), view in zip(lefts[:-1], sizes, views, strict=True):
        axes = _axes(figure, x, above, wide, high)
        image = _draw_view(axes, view, inch)
        if body is not None:
            _outline(axes, body, view.scale)
    _colour_bar(image, _axes(figure, left, height - 0.52, 2.0, 0.1), "HU")
    keys = [Line2D([], [], color=KEPT_COLOUR, lw=2, label="kept")]
    if any(view.left_out.any() for view in views):
        keys.append(Line2D([], [], color=AIR_COLOUR, lw=2, ls=(0, (2, 1)), label="left out"))
    if body is not None:
        keys.append(Line2D([], [], color=BODY_COLOUR, lw=1.5, ls=":", label="body"))
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(2.9 / width, 0))
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


def _draw_view(axes: Axes, view: WindowedView, inch: float) -> AxesImage:
    """Draw one view; a pixel of it is `inch` wide."""
    size, (rows, columns) = view.grid.size, view.image_hu.shape
    reduced = augment.downscale(view.image_hu, min(1.0, MAX_DRAWN_SIZE / max(rows, columns)))
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(reduced, vmin=MIN_SLICE_HU, vmax=MAX_SLICE_HU, extent=extent)
    every = 1
    while view.kept[::every, ::every].size > MAX_DRAWN_WINDOWS:
        every += 1
    # The rejected ones lie further in: where two windows meet, both lines are visible.
    for windows, inset, colour, dashes in (
        (view.left_out, 0.09 * size, AIR_COLOUR, (0, (3, 2))),
        (view.kept, 0.03 * size, KEPT_COLOUR, "solid"),
    ):
        i, j = np.nonzero(windows[::every, ::every])
        places = view.grid.cols[::every][j], view.grid.rows[::every][i]
        corners = np.stack(places, axis=1) + inset - 0.5
        outline = (size - 2 * inset) * np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
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
