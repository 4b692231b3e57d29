"""What a run needs, estimated before it creates anything: `--dry-run`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping

from ctpatches.file import abbreviated
from ctpatches.files import Offset
from pipeline import filling, prefetch
from pipeline.config import Config
from pipeline.model import Plan
from pipeline.output import file_header, paths
from pipeline.output.commit import MAX_NAMES
from utils import quoted

#: Memory of a rank with all libraries loaded, before its first block, MB: measured.
BASE_MB = 160
#: What drawing the report adds, MB: measured.
REPORT_MB = 140
#: Images (float32, of the largest size) that a rank holds at most while it processes a pair, and
#: how many more for every thread that prefetches in a serial run: measured, for images of 512 x 512
#: to 4096 x 4096 pixels.
MAX_IMAGES_PER_RANK = 9
MAX_IMAGES_PER_THREAD = 11
#: Provenance of a patch while its pair is processed, bytes.
PLACE_BYTES = 32
#: Pairs that are processed to estimate the time.
TRIALS = 3


def print_needs(plans: Mapping[str, Plan], config: Config, ranks: int) -> None:
    """Print the disk space, the memory and the time that a run needs with that many ranks."""
    planned = [one for plan in plans.values() for one in plan.pairs]
    pairs = [one.pair for one in planned]
    seconds_per_pair, kept = _try_out(next(iter(plans.values())), config)
    size = kept * sum(config.bytes_of(plan.patches, plan.pixels) for plan in plans.values())
    files = abbreviated(list(map(quoted, paths.all_files(config))), MAX_NAMES)
    folder = os.path.dirname(os.path.abspath(config.output_fname))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    # Patches are cut and written a piece at a time: what counts is images and provenance.
    largest = max(one.windows.kept_windows for one in planned)
    image = 4 * max(pair.input.rows * pair.input.columns for pair in pairs)
    threads = 0 if config.mpi_run or ranks > 1 else prefetch.threads_for(pairs)
    held: float = image * (MAX_IMAGES_PER_RANK + MAX_IMAGES_PER_THREAD * threads)
    held += largest * config.orientations * PLACE_BYTES * (1 + threads)
    if config.compression != "none" and ranks > 1:  # blocks that wait on rank 0
        pixels = largest * config.orientations * config.patch_size**2
        held += filling.MAX_AHEAD * ranks * kept * config.bytes_of(0, pixels)
    memory = BASE_MB + REPORT_MB * (not config.no_report) + held / 1e6
    seconds = len(pairs) * seconds_per_pair / ranks
    in_total = " in total" if len(paths.all_files(config)) > 1 else ""
    about = "about " if config.compression != "none" else ""
    print(f"{'would write':28} {about}{size / 1e6:.1f} MB{in_total} to {files}")
    print(f"{'free there':28} {free / 1e6:.1f} MB{'' if size <= free else '  NOT ENOUGH'}")
    print(f"{'memory':28} up to {memory:.0f} MB per rank")
    print(
        f"{'time':28} about {max(1.0, seconds):.0f} s on {ranks} rank{'s' * (ranks > 1)}, "
        "if the disk keeps up"
    )


def _try_out(plan: Plan, config: Config) -> tuple[float, float]:
    """Create a few blocks, write them nowhere, and return how long one takes.

    Also return how much of their bytes is left after compression, a fraction.
    """
    few, rows = plan.pairs[:TRIALS], file_header.header(plan, config).rows
    begin, written = time.perf_counter(), 0

    def write(_: Offset, data: memoryview) -> None:
        nonlocal written
        written += data.nbytes

    for planned in few:
        block, _ = filling.prepare_block(planned, config)
        block.write(write, rows, planned.index, planned.place, config.compression)
    seconds = time.perf_counter() - begin
    whole = config.bytes_of(few[-1].patches[1], few[-1].pixels[1])
    return seconds / len(few), written / whole if whole else 1.0
