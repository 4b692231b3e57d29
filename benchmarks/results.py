"""What the benchmark shows: the machine, the table and the plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import FLOOR, HAND, PATCH_BYTES, Run, mpi_version

HEADINGS = (
    "where",
    "pairs",
    "who",
    "MB/s",
    "wall min, s",
    "wall median, s",
    "CPU, s",
    "peak a rank, MB",
    "x floor",
    "hand script / it",
    "in CPU",
)


@dataclass(frozen=True)
class Row:
    """All runs of one contestant at one job.

    Attributes
    ----------
    where, who : str
        The place written to, and the contestant.
    pairs, patches : int
        Of the job.
    runs : list of Run
        One a round.
    """

    where: str
    pairs: int
    who: str
    patches: int
    runs: list[Run]

    @property
    def best(self) -> float:
        """Shortest wall time, seconds."""
        return min(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Least CPU time of a round, seconds: it hangs less on what else the machine does."""
        return min(run.cpu for run in self.runs)

    @property
    def rate(self) -> float:
        """MB of patches a second, in the best round."""
        return self.patches * PATCH_BYTES / self.best / 1e6


def machine() -> str:
    """Return what a reader needs to know of this machine, in one line."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cpus[0] if cpus else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{mpi_version() or 'no MPI'}"
    )


def rival(rows: Sequence[Row], row: Row, who: str) -> Row:
    """Return the row of another contestant at the same job."""
    return next(r for r in rows if (r.where, r.pairs, r.who) == (row.where, row.pairs, who))


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for row in rows:
        best = min(row.runs, key=lambda run: run.wall)
        lines.append(
            (
                row.where,
                str(row.pairs),
                row.who,
                f"{row.rate:.0f}",
                f"{row.best:.2f}",
                f"{statistics.median(run.wall for run in row.runs):.2f}",
                f"{row.cpu:.2f}",
                ", ".join(f"{peak / 1e6:.0f}" for peak in best.peaks),
                f"{row.best / rival(rows, row, FLOOR).best:.2f}",
                f"{rival(rows, row, HAND).best / row.best:.2f}",
                f"{rival(rows, row, HAND).cpu / row.cpu:.2f}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_data(rows: Sequence[Row], text: str) -> dict[str, Any]:
    """Return all that was measured as plain data."""
    return {"machine": text, "rows": [asdict(row) for row in rows]}


def draw(rows: Sequence[Row], text: str, path: Path) -> None:
    """Draw the throughput of every contestant over the number of pairs, a panel a place."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(row.where for row in rows))
    # One colour for each, in every panel.
    colours = {who: f"C{i}" for i, who in enumerate(dict.fromkeys(row.who for row in rows))}
    figure = Figure(figsize=(1 + 5.5 * len(places), 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(places), squeeze=False, sharey=True)[0]
    for panel, place in zip(panels, places, strict=True):
        for who in dict.fromkeys(row.who for row in rows if row.where == place):
            line = [row for row in rows if (row.where, row.who) == (place, who)]
            rival_style = "--" if who.startswith((FLOOR, HAND)) else "-"
            rates = [row.rate for row in line]
            pairs = [row.pairs for row in line]
            panel.plot(pairs, rates, rival_style, color=colours[who], marker="o", label=who)
        panel.set(title=f"to {place}", xlabel="pairs", xscale="log", yscale="log")
        ticks = sorted({row.pairs for row in rows})
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.xaxis.minorticks_off()
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_minor_formatter("{x:.0f}")
        panel.grid(alpha=0.3)
    lines = {
        who: line for p in panels for line, who in zip(*p.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4, fontsize=8)
    panels[0].set_ylabel("patches, MB/s (best round)")
    figure.suptitle(text, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
