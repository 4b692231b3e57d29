"""Filling the file: every block is created on any free rank and written at its offset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

import patching
from ctpatches.blocks import Place
from ctpatches.checksums import pixel_digest
from ctpatches.dicom.pixels import read_pixels, to_hu
from ctpatches.dtypes import cast
from ctpatches.normalisation import normalised_air
from pipeline import difference, prefetch
from pipeline.config import Config
from pipeline.errors import naming
from pipeline.model import Difference, Pair, PairPlan, Plan
from pipeline.mpi.ranks import Ranks
from pipeline.output import blocks
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.commit import Output
from pipeline.output.writer import Writer
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Affine, Image, RunError, img_pair_normalization, printable

#: With compression, blocks per rank that may be begun before the oldest one is finished.
MAX_AHEAD = 4


@dataclass(frozen=True)
class PairTask:
    """All that a rank needs to create and write the block of one pair."""

    file: int  # number of the output file
    index: int  # of the pair in the plan of that file
    pair: Pair
    part: PairPlan
    degradation: str
    place: Place  # of its block in the file
    fixed: Affine | None


#: A task, its block, `ctpatches.checksums.pixel_digest` of the input and the target, and what
#: `difference.measure` returns.
PreparedBlock: TypeAlias = tuple[PairTask, patching.Block, tuple[int, int], Difference]


def pair_tasks(file: int, plan: Plan, done: Container[int]) -> list[PairTask]:
    """Return the tasks of the file of that number, without the pairs that are done."""
    return [
        PairTask(file, i, pair, plan.parts[i], plan.degradations[i], plan.place(i), plan.fixed)
        for i, pair in enumerate(plan.pairs)
        if i not in done
    ]


def fill(output: Output | None, config: Config, ranks: Ranks) -> None:
    """Create every missing block and write it at its offset; `output` is None on other ranks."""
    files = output.files if output else []
    layouts = ranks.share([file.layout for file in files])
    tasks = [
        task
        for number, file in enumerate(files)
        if not file.complete
        for task in pair_tasks(number, file.plan, file.done)
    ]
    threads = prefetch.threads_for(task.pair for task in tasks)

    def write(prepared: PreparedBlock) -> tuple[int, int, BlockRecord]:
        task, block, digests, measured = prepared
        writer, layout = writers[task.file], layouts[task.file]
        assert writer
        assert layout
        with naming(task.pair.input.file):
            checksum = blocks.write_block(writer, layout, block, task.index, task.place)
        affines = block.input_affine, block.target_affine
        record = BlockRecord(*affines, checksum, digests, measured, block.rounding)
        return task.file, task.index, record

    def add(file: int, index: int, record: BlockRecord) -> None:
        assert output
        output.add(file, index, record)
        rows = output.files[file].plan.place(index)
        size = config.bytes_of(*(stop - start for start, stop in rows.values()))
        progress.advance(size=size)

    def flush() -> None:
        for writer in filter(None, writers):
            writer.flush()

    with contextlib.ExitStack() as stack:
        # A thread that writes row by row would wait for the interpreter's lock after each of them.
        background = threads > 0 and not ranks.parallel and not config.shuffle_patches
        first = [len(file.done) for file in files]
        opened = ranks.on_all(lambda: _open(layouts, first, config, ranks, stack, background))
        writers = ranks.writers(opened)
        progress = Progress("filling", len(tasks), config.quiet)
        stack.callback(progress.close)
        prepare = functools.partial(prepare_block, config=config)
        max_ahead = math.inf
        if config.compression != "none":  # blocks that are finished early wait for the others
            max_ahead = MAX_AHEAD * ranks.size
        results = ranks.imap_unordered(write, tasks, prepare, threads, max_ahead)
        for filled in stack.enter_context(contextlib.closing(results)):
            writer = writers[filled[0]]
            assert writer
            writer.when_written(filled[1], functools.partial(add, *filled))
        # On all ranks before rank 0 commits: its fsync does not reach the caches of other hosts.
        ranks.on_all(flush)


def _open(
    layouts: Sequence[blocks.Layout | None],
    first_blocks: Sequence[int],
    config: Config,
    ranks: Ranks,
    stack: contextlib.ExitStack,
    background: bool,
) -> list[Writer | None]:
    """Open the files that this rank writes to itself: the bytes for others go through rank 0."""
    out: list[Writer | None] = []
    compressed = config.compression != "none"
    for number, layout in enumerate(layouts):
        file = None
        if layout and config.hand_over == "direct":
            file = blocks.PartialFile.direct(layout, ranks.one_host)
        elif layout and ranks.rank == 0:
            file = blocks.PartialFile(layout)
        elif layout and config.hand_over == "auto" and ranks.beside_root and not compressed:
            file = blocks.PartialFile.seen(layout)
        writer: Writer | None = file
        if file:
            stack.callback(file.close)
        if file and compressed:
            writer = blocks.PackedFile(file, first_blocks[number])
        if writer and background:
            writer = stack.enter_context(contextlib.closing(blocks.BackgroundWriter(writer)))
        out.append(writer)
    return out


def prepare_block(task: PairTask, config: Config) -> PreparedBlock:
    """Read the images of a pair and create its block, without cutting patches."""
    with naming(task.pair.input.file):
        slices = task.pair.input, task.pair.target
        with step("read"):
            stored = [read_pixels(config.input_folder, one) for one in slices]
            in_hu = [to_hu(image, one) for image, one in zip(stored, slices, strict=True)]
            digests = pixel_digest(in_hu[0]), pixel_digest(in_hu[1])
        with step("noise"):
            measured = measure_pair(task, in_hu[0], in_hu[1], config)
        with step("scale"):  # the images are handed over, and freed once they are normalised
            images = in_hu if config.in_hu else stored
            del stored, in_hu
            block = make_block(task, images.pop(0), images.pop(), config)
    return task, block, digests, measured


def measure_pair(task: PairTask, input_hu: Image, target_hu: Image, config: Config) -> Difference:
    """Measure the difference of a pair on its kept windows at scale 1."""
    shape = target_hu.shape
    grid = patching.Grid.of(shape, config.patch_size, config.overlap, config.edge)
    window = config.hu_window if config.normalization_type == "hu_window" else None
    return difference.measure(input_hu, target_hu, grid, task.part.kept_masks()[0], window)


def make_block(
    task: PairTask, input_image: Image, target_image: Image, config: Config
) -> patching.Block:
    """Normalise and augment a pair, and determine where its patches are cut.

    The images are stored values, or HU with `config.in_hu`.
    """
    input_image, target_image, *affines = img_pair_normalization(
        input_image, target_image, config.normalization_type, task.fixed
    )
    slices, images = (task.pair.input, task.pair.target), (input_image, target_image)
    unit = "hu" if config.in_hu else "stored"
    window = config.hu_window if config.normalization_type == "hu_window" else None
    fills = []
    for one, image, affine in zip(slices, images, affines, strict=True):
        if not np.isfinite(image).all():
            raise RunError(f"{printable(one.file)}: NaN or infinity came out of it; is it damaged?")
        fills.append(normalised_air(affine, one.slope, one.intercept, unit, window))
    block = patching.make_block(
        images,
        affines,
        fills,
        task.part.kept_masks(),
        task.degradation,
        affines[0].divisor * (1.0 if config.in_hu else task.pair.input.slope),
        task.pair.identity,
        config,
    )
    rounding = []
    for one, views in zip(slices, block.views.values(), strict=True):
        try:
            both = [cast(view, config.dtype) for view in views]
        except ValueError as error:
            raise RunError(f"{printable(one.file)}: {error}; choose another --dtype") from error
        views[:] = [view for view, _ in both]
        rounding.append(max((largest for _, largest in both), default=0.0))
    return dataclasses.replace(block, rounding=(rounding[0], rounding[1]))
