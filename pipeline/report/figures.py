"""Every chart and image of the report, drawn by matplotlib: arrays in, a figure out.

Figures are drawn inside of `style()`, which makes them independent of the user's settings.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator
from numpy.typing import NDArray

import augment
from utils import printable

Floats = NDArray[np.float32]
Range = tuple[float, float]

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
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#0a3e7d", "#5499d6", "#f6f6f4", "#ee9642", "#8c3702"]
)
#: Grey range of whole slices, HU: lung to bone.
SLICE_HU = (-1000.0, 600.0)
#: Part of the pixels of a sheet that may be darker or lighter than its grey range.
CLIPPED = 0.005
#: Size of a chart, and place of its axes, inches.
CHART, CHART_AXES = (5.4, 3.1), (0.7, 0.55, 4.55, 2.4)
#: Pixels a side at which a view is drawn: more would take memory and not be seen.
MAX_DRAWN_SIDE = 1024
#: Windows drawn on one view; of more, only every k-th row and column.
MAX_DRAWN_WINDOWS = 2500


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the report, whatever the user's settings are."""
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # Of pictures with noise, a higher level makes larger files in twice the time.
    figure.savefig(file, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return file.getvalue()


def label(text: object) -> str:
    """Return text on one line, with characters escaped that the font does not have."""
    font = get_font(findfont("DejaVu Sans"))
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
        for c in printable(text)
    )


def _figure(width: float, height: float, dpi: int = 150) -> Figure:
    """Return an empty figure; width and height are inches."""
    figure = Figure((width, height), dpi)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes whose place is given in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def _title(figure: Figure, text: str) -> None:
    """Add a title in the upper left corner, shortened where it does not fit."""
    wide, high = figure.get_size_inches()
    text, most = label(text), int(8 * wide)
    if len(text) > most:
        text = f"{text[: most // 2]} \u2026 {text[-most // 2 :]}"
    figure.text(0.15 / wide, 1 - 0.2 / high, text, va="center", fontsize=10, fontweight="bold")


def _image(
    axes: Axes, image: Floats, title: str, limits: Range, cmap: Colormap | None = None
) -> ScalarMappable:
    """Draw patches, every pixel a square."""
    axes.set_axis_off()
    axes.set_title(title)
    low, high = limits
    return axes.imshow(image, cmap, vmin=low, vmax=high, interpolation="nearest")


def _colour_bar(
    figure: Figure, image: ScalarMappable, place: tuple[float, float, float, float], text: str
) -> None:
    """Add a horizontal colour bar; its place in inches is that of `_axes`."""
    bar = figure.colorbar(image, _axes(figure, *place), orientation="horizontal", extend="both")
    bar.set_label(text)
    bar.locator = MaxNLocator(4)


# --- patches ---------------------------------------------------------------------------------


def tiles(patches: Floats, columns: int) -> Floats:
    """Lay patches out in rows, with NaN between them and where there are too few.

    Parameters
    ----------
    patches : ndarray of float32, shape (n, p, p)
    columns : int
    """
    count, size, _ = patches.shape
    gap = max(1, size // 24)
    columns = min(count, columns)
    out = np.full((-(-count // columns), size + gap, columns, size + gap), np.nan, np.float32)
    for i, patch in enumerate(patches):
        row, column = divmod(i, columns)
        out[row, :size, column, :size] = patch
    rows = out.shape[0] * (size + gap)
    return out.reshape(rows, -1)[: rows - gap, :-gap]


def sheet(input_patches: Floats, target_patches: Floats, title: str, unit: str) -> Figure:
    """Draw patches of both roles side by side in one grey range.

    Parameters
    ----------
    input_patches, target_patches : ndarray of float32, shape (n, p, p)
        At most 12.
    title, unit : str
    """
    both = [tiles(patches, 4) for patches in (input_patches, target_patches)]
    low, high = np.nanquantile(np.stack(both), (CLIPPED, 1 - CLIPPED))
    limits = float(low), max(float(high), float(low) + 1e-6)
    rows, columns = both[0].shape
    side, step = 4.6, 4.8
    height = side * rows / columns
    figure = _figure(step + side + 0.3, height + 1.35)
    _title(figure, title)
    for number, (name, image) in enumerate(zip(("Input", "Target"), both, strict=True)):
        axes = _axes(figure, 0.15 + number * step, 0.7, side, height)
        mappable = _image(axes, image, name, limits)
    _colour_bar(figure, mappable, (0.15 + step / 2, 0.48, side, 0.12), unit)
    return figure


def comparison(input_hu: Floats, target_hu: Floats, grey: Range, difference: float) -> Figure:
    """Draw one patch: input, target, and input minus target.

    Parameters
    ----------
    input_hu, target_hu : ndarray of float32, shape (p, p)
        HU.
    grey : tuple of float
        HU shown black and white.
    difference : float
        HU at the ends of the colours of the difference.
    """
    side, step = 1.8, 1.86
    figure = _figure(2 * step + side + 0.1, side + 0.86)
    limits = (-difference, difference)
    panels = (
        (input_hu, "Input", grey, None),
        (target_hu, "Target", grey, None),
        (input_hu - target_hu, "Input minus target", limits, DIVERGING),
    )
    images = [
        _image(_axes(figure, 0.05 + i * step, 0.58, side, side), *panel)
        for i, panel in enumerate(panels)
    ]
    _colour_bar(figure, images[0], (0.05 + step / 2, 0.44, step, 0.09), "HU")
    _colour_bar(figure, images[2], (0.15 + 2 * step, 0.44, side - 0.2, 0.09), "HU")
    return figure


# --- charts ----------------------------------------------------------------------------------


def noise(sd_hu: Sequence[float | None]) -> Figure:
    """Draw the noise of all patients: the standard deviation of input minus target, HU."""
    figure = _figure(*CHART)
    axes = _axes(figure, *CHART_AXES)
    values = np.array([np.nan if sd is None else sd for sd in sd_hu])
    axes.plot(np.arange(1, len(values) + 1), values, "o", ms=4 if len(values) < 200 else 2)
    middle = float(np.nanmedian(values))
    axes.axhline(middle, color="black", lw=1, ls="--", zorder=3, label=f"median: {middle:.1f} HU")
    axes.set_ylim(0, max(1.25 * float(np.nanmax(values)), 1e-3))
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlabel("patient, in the order of the table")
    axes.set_ylabel("standard deviation, HU")
    axes.grid(axis="y")
    axes.legend(loc="upper right")
    return figure


def histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    outside: Mapping[str, int],
    unit: str,
    log: bool,
) -> Figure:
    """Draw how often values occur in input and target, in percent of the pixels of each.

    Parameters
    ----------
    edges : sequence of float, length n + 1
    counts, outside : mapping of str to sequence of int, and to int
        By role: pixels in each of the n bins, and in none of them.
    unit : str
        Of the edges.
    log : bool
        Whether the percentages have a logarithmic scale.
    """
    figure = _figure(*CHART)
    axes = _axes(figure, *CHART_AXES)
    for role in ("target", "input"):
        percent = 100 * np.array(counts[role]) / max(1, sum(counts[role]) + outside[role])
        axes.stairs(percent, edges, color=COLOURS[role], lw=1.2, label=role)
        if role == "target":
            axes.stairs(percent, edges, color=COLOURS[role], alpha=0.15, fill=True)
    if log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(label(unit))
    axes.set_ylabel(f"% of the pixels, bins of {edges[1] - edges[0]:.3g}")
    axes.grid(axis="y")
    axes.legend(loc="upper right")
    return figure


# --- coverage --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowedView:
    """A view of a target with its windows.

    Attributes
    ----------
    scale : float
    image_hu : ndarray of float32, shape (rows, columns)
    rows, cols : ndarray of integers
        Where windows begin along each axis.
    size : int
        Pixels a side of a window.
    kept : ndarray of bool, shape (len(rows), len(cols))
        Whether the window gave patches, or was left out as air.
    """

    scale: float
    image_hu: Floats
    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    size: int
    kept: NDArray[np.bool_]


def coverage(views: Sequence[WindowedView], title: str) -> Figure:
    """Draw a slice at every scale with its kept and rejected windows."""
    views = [view for view in views if view.image_hu.size]
    inch = 4.6 / max(views[0].image_hu.shape)
    sizes = [(inch * v.image_hu.shape[1], inch * v.image_hu.shape[0]) for v in views]
    slots = [max(width, 2.0) + 0.75 for width, _ in sizes]
    top = max(height for _, height in sizes) + 1.3
    figure = _figure(max(sum(slots), 5.0) + 0.15, top + 0.95, dpi=110)
    _title(figure, title)
    left = 0.65
    for view, (width, height), slot in zip(views, sizes, slots, strict=True):
        image = _draw_view(_axes(figure, left, top - height, width, height), view)
        left += slot
    _colour_bar(figure, image, (0.65, 0.42, 2.0, 0.1), "HU")
    keys = [Line2D([], [], color=KEPT_COLOUR, lw=2, label="kept")]
    if not all(view.kept.all() for view in views):
        keys.append(Line2D([], [], color=AIR_COLOUR, lw=2, ls=(0, (2, 1)), label="left out as air"))
    place = 2.9 / figure.get_figwidth(), 0.1 / figure.get_figheight()
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=place)
    return figure


def _draw_view(axes: Axes, view: WindowedView) -> ScalarMappable:
    low, high = SLICE_HU
    rows, columns = view.image_hu.shape
    reduced = augment.downscale(view.image_hu, min(1.0, MAX_DRAWN_SIDE / max(rows, columns)))
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(reduced, vmin=low, vmax=high, extent=extent)
    every = max(1, math.ceil(math.sqrt(view.kept.size / MAX_DRAWN_WINDOWS)))
    drawn = view.kept[::every, ::every]
    # The rejected ones lie further in: where two windows meet, both lines are seen.
    for keep, inset, colour, dashes in (
        (False, 0.09 * view.size, AIR_COLOUR, (0, (3, 2))),
        (True, 0.03 * view.size, KEPT_COLOUR, "solid"),
    ):
        rows, cols = np.nonzero(drawn == keep)
        places = np.stack([view.cols[::every][cols], view.rows[::every][rows]], axis=1)
        squares = _squares(places + inset - 0.5, view.size - 2 * inset)
        axes.add_collection(LineCollection([*squares], colors=colour, lw=0.8, linestyles=[dashes]))
    counts = f"{view.kept.sum()} windows kept, {(~view.kept).sum()} air"
    thinned = f"\n(drawn: 1 in {every} rows and columns)" if every > 1 else ""
    axes.set_title(f"scale {view.scale:g}\n{counts}{thinned}", loc="left")
    axes.set_xlabel("column, pixels")
    axes.set_ylabel("row, pixels")
    axes.spines[:].set_visible(False)
    axes.locator_params(nbins=5)
    return image


def _squares(corners: NDArray[np.float64], side: float) -> NDArray[np.float64]:
    """Return the closed outlines of squares, shape (n, 5, 2), from their upper left corners."""
    return corners[:, None] + side * np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
