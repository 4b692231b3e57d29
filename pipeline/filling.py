"""Filling the file: every block made, on whichever rank has time, and written at its place."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import patching
from ctpatches.patchfile import pixel_digest
from pipeline import prefetch
from pipeline.dicom import dicom_io
from pipeline.mpi.parallel import World, Writer
from pipeline.output import blocks
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.commit import Output
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Affine, Config, Pair, PairPlan, Plan, Slice, shown

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
    writers: Sequence[Writer | None]

    def prepare(self, task: PairTask) -> tuple[PairTask, PreparedBlock]:
        """Read and scale a pair."""
        return task, prepare_block(task, self.config)

    def work(self, prepared: tuple[PairTask, PreparedBlock]) -> Filled:
        """Cut and write a block."""
        task, (block, digests) = prepared
        layout, writer = self.layouts[task.file], self.writers[task.file]
        assert layout
        assert writer
        checksum = blocks.write_block(writer, layout, block, task.index, task.start)
        record = BlockRecord(block.input_affine, block.target_affine, checksum, digests)
        return Filled(task.file, task.index, record)


def fill(output: Output | None, config: Config, world: World) -> None:
    """Make every block that is not there yet and write it at its place.

    Parameters
    ----------
    output : Output or None
        None on other ranks.
    config : Config
    world : World
    """
    out_files = output.files if output else []
    layouts = world.share([file.layout for file in out_files])
    direct = config.hand_over != "messages" and world.beside_root
    files = [_open(layout, world.rank, direct) if layout else None for layout in layouts]
    tasks = [
        task
        for number, file in enumerate(out_files)
        if not file.complete
        for task in pair_tasks(number, file.plan, file.done)
    ]
    threads = prefetch.threads_for(task.pair for task in tasks)
    filler = Filler(config, layouts, world.open_writers(files, threads))
    with Progress("filling", len(tasks), config.quiet) as progress:

        def take(result: Filled) -> None:
            assert output
            output.add(result.file, result.index, result.record)
            starts = output.files[result.file].plan.starts
            patches = starts[result.index + 1] - starts[result.index]
            progress.advance(patches * config.bytes_a_patch)

        world.run(tasks, filler.work, take, _name, filler.prepare, threads)
    for one in files:
        if one:
            one.close()


def _name(task: PairTask) -> str:
    return f"{shown(task.pair.input.file)}: "


def prepare_block(task: PairTask, config: Config) -> PreparedBlock:
    """Read the images of a pair and make its block, the patches of which are not cut yet.

    Returns
    -------
    block : Block
    digests : tuple of int
        `ctpatches.patchfile.pixel_digest` of the input and the target.
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
    stored = dicom_io.read_pixels(config.input_folder, one)
    hu = dicom_io.to_hu(stored, one)
    return hu if config.in_hu else stored, pixel_digest(hu)


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


def _open(layout: blocks.Layout, rank: int, direct: bool) -> blocks.PartialFile | None:
    """Open a file for writing, or return None where its bytes have to go through rank 0."""
    if rank == 0:
        return blocks.PartialFile(layout)
    return blocks.PartialFile.seen(layout) if direct else None
