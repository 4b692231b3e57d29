"""Filling the file: every block made, on whichever rank has time, and written at its place."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import patching
from ctpatches.checksums import pixel_digest
from pipeline import prefetch
from pipeline.config import Config
from pipeline.dicom import pixels
from pipeline.errors import naming
from pipeline.model import Pair, PairPlan, Plan, Slice
from pipeline.mpi.ranks import Ranks
from pipeline.output import blocks
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.commit import Output
from pipeline.output.output_file import OutputFile
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Affine

#: A block, and the digests of its two slices.
PreparedBlock: TypeAlias = tuple[patching.Block, tuple[int, int]]


@dataclass(frozen=True)
class PairTask:
    """All that a rank needs to make and place the block of one pair."""

    file: int
    index: int
    pair: Pair
    part: PairPlan
    degradation: str
    start: int
    fixed: Affine | None


@dataclass(frozen=True)
class Filled:
    """What rank 0 is told of a block that is in the file."""

    file: int
    index: int
    record: BlockRecord


@dataclass(frozen=True)
class Filler:
    """What a rank does with a task; the first part of it may be done before its turn."""

    config: Config
    layouts: Sequence[blocks.Layout | None]
    writers: Sequence[blocks.Writer | None]

    def prepare(self, task: PairTask) -> tuple[PairTask, PreparedBlock]:
        """Read and scale a pair."""
        with naming(task.pair.input.file):
            return task, prepare_block(task, self.config)

    def write(self, prepared: tuple[PairTask, PreparedBlock]) -> Filled:
        """Cut and write a block."""
        task, (block, digests) = prepared
        layout, writer = self.layouts[task.file], self.writers[task.file]
        assert layout
        assert writer
        with naming(task.pair.input.file):
            checksum = blocks.write_block(writer, layout, block, task.index, task.start)
        record = BlockRecord(block.input_affine, block.target_affine, checksum, digests)
        return Filled(task.file, task.index, record)


def fill(output: Output | None, config: Config, ranks: Ranks) -> None:
    """Make every block that is not there yet and write it at its place.

    Parameters
    ----------
    output : Output or None
        None on other ranks.
    config : Config
    ranks : Ranks
    """
    files = output.files if output else []
    layouts = ranks.share([file.layout for file in files])
    tasks = [task for number, file in enumerate(files) for task in missing_blocks(number, file)]
    threads = prefetch.threads_for(task.pair for task in tasks)
    with (
        contextlib.ExitStack() as stack,
        Progress("filling", len(tasks), config.quiet) as progress,
    ):
        writers = ranks.writers(_open(layouts, config, ranks, stack), stack, threads > 0)
        filler = Filler(config, layouts, writers)
        records = ranks.imap_unordered(filler.write, tasks, filler.prepare, threads)
        for filled in stack.enter_context(contextlib.closing(records)):
            assert output
            output.add(filled.file, filled.index, filled.record)
            starts = files[filled.file].plan.starts
            patches = starts[filled.index + 1] - starts[filled.index]
            progress.advance(patches * config.bytes_a_patch)
        for writer in writers:
            if writer:
                writer.flush()


def _open(
    layouts: Sequence[blocks.Layout | None],
    config: Config,
    ranks: Ranks,
    stack: contextlib.ExitStack,
) -> list[blocks.PartialFile | None]:
    """Open the files that this rank writes to itself: the bytes for others go through rank 0."""
    out: list[blocks.PartialFile | None] = []
    for layout in layouts:
        file = None
        if layout and ranks.rank == 0:
            file = blocks.PartialFile(layout)
        elif layout and config.hand_over != "messages" and ranks.beside_root:
            file = blocks.PartialFile.seen(layout)
        out.append(stack.enter_context(file) if file else None)
    return out


def prepare_block(task: PairTask, config: Config) -> PreparedBlock:
    """Read the images of a pair and make its block, the patches of which are not cut yet.

    Returns
    -------
    block : Block
    digests : tuple of int
        `ctpatches.checksums.pixel_digest` of the input and the target.
    """
    pair = task.pair
    with step("read"):
        read = [_read(one, config) for one in (pair.input, pair.target)]
    digests = read[0][1], read[1][1]
    # Handed over: the images are freed once they are normalised.
    block = patching.make_block(
        pair, task.part, task.degradation, read.pop(0)[0], read.pop()[0], config, task.fixed
    )
    return block, digests


def _read(one: Slice, config: Config) -> tuple[NDArray[np.float32], int]:
    """Return a slice as it is to be normalised, and its digest."""
    stored = pixels.read_pixels(config.input_folder, one)
    hu = pixels.to_hu(stored, one)
    return hu if config.in_hu else stored, pixel_digest(hu)


def missing_blocks(number: int, file: OutputFile) -> list[PairTask]:
    """Return the blocks that are still to be made for the file of that number."""
    return [] if file.complete else pair_tasks(number, file.plan, file.done)


def pair_tasks(file: int, plan: Plan, done: Container[int]) -> list[PairTask]:
    """Return the blocks of a file that are still to be made.

    Parameters
    ----------
    file : int
        Number of the file.
    plan : Plan
    done : container of int
        The pairs whose blocks are in the file already.
    """
    return [
        PairTask(file, i, pair, plan.parts[i], plan.degradations[i], plan.starts[i], plan.fixed)
        for i, pair in enumerate(plan.pairs)
        if i not in done
    ]
