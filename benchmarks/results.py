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
    "pairs",
    "program",
    "file, MB",
    "MB/s",
    "wall min, s",
    "wall median, s",
    "CPU, s",
    "memory per rank, MB",
    "x floor",
    "speed-up, wall",
    "speed-up, CPU",
)


@dataclass(frozen=True)
class Row:
    """All runs of one contestant at one job.

    Attributes
    ----------
    who : str
        The contestant.
    pairs, patches : int
        Of the job.
    runs : list of Run
        One per round.
    """

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
        """Least CPU time of a round, seconds: it depends less on what else the machine does."""
        return min(run.cpu for run in self.runs)

    @property
    def rate(self) -> float:
        """MB of float32 patches per second, in the best round, however they are stored."""
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
    return next(r for r in rows if (r.pairs, r.who) == (row.pairs, who))


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for row in rows:
        best = min(row.runs, key=lambda run: run.wall)
        lines.append(
            (
                str(row.pairs),
                row.who,
                f"{best.size / 1e6:.0f}",
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


def slopes(rows: Sequence[Row]) -> str:
    """Return the marginal cost per pair between the smallest and the largest job, as Markdown."""
    fewest, most = (pick(row.pairs for row in rows) for pick in (min, max))
    lines = [
        "| who | wall, ms per further pair | CPU, ms per further pair |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        if row.pairs == fewest < most:
            large = next(r for r in rows if (r.pairs, r.who) == (most, row.who))
            costs = (large.best - row.best, large.cpu - row.cpu)
            wall, cpu = (f"{1000 * cost / (most - fewest):.2f}" for cost in costs)
            lines.append(f"| {row.who} | {wall} | {cpu} |")
    return "\n".join(lines)


def as_data(rows: Sequence[Row], text: str) -> dict[str, Any]:
    """Return all that was measured as plain data."""
    return {"machine": text, "rows": [asdict(row) for row in rows]}


def draw(rows: Sequence[Row], text: str, path: Path) -> None:
    """Draw the throughput of every contestant over the number of pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for who in dict.fromkeys(row.who for row in rows):
        line = [row for row in rows if row.who == who]
        style = "--" if who in (FLOOR, HAND) else "-"
        rates, pairs = [row.rate for row in line], [row.pairs for row in line]
        axes.plot(pairs, rates, style, marker="o", label=who)
    axes.set(xlabel="pairs", ylabel="patches, MB/s (best round)", xscale="log", yscale="log")
    ticks = sorted({row.pairs for row in rows})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(text, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
