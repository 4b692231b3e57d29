"""Filling the file: every block is created on any free rank and written at its offset."""

from __future__ import annotations

import contextlib
import functools
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
from utils import AIR_HU, Affine, RunError, img_pair_normalization, printable

#: A block, and the digests of its two slices.
PreparedBlock: TypeAlias = tuple[patching.Block, tuple[int, int]]


@dataclass(frozen=True)
class PairTask:
    """All that a rank needs to create and write the block of one pair."""

    file: int
    index: int
    pair: Pair
    part: PairPlan
    degradation: str
    start: int
    fixed: Affine | None


@dataclass(frozen=True)
class Filled:
    """The record of a block that is in the file, for rank 0."""

    file: int
    index: int
    record: BlockRecord


@dataclass(frozen=True)
class Filler:
    """The work of a rank on a task; the first part may be done ahead of its turn."""

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
    """Create every missing block and write it at its offset.

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
        background = threads > 0 and not ranks.parallel
        writers = ranks.writers(_open(layouts, config, ranks, stack, background))
        filler = Filler(config, layouts, writers)
        records = ranks.imap_unordered(filler.write, tasks, filler.prepare, threads)
        for filled in stack.enter_context(contextlib.closing(records)):
            writer = writers[filled.file]
            assert output
            assert writer
            writer.when_written(functools.partial(_add, output, filled, progress, config))
        for writer in writers:
            if writer:
                writer.flush()


def _add(output: Output, filled: Filled, progress: Progress, config: Config) -> None:
    """Record a block that is in its file."""
    output.add(filled.file, filled.index, filled.record)
    starts = output.files[filled.file].plan.starts
    patches = starts[filled.index + 1] - starts[filled.index]
    progress.advance(patches * config.bytes_a_patch)


def _open(
    layouts: Sequence[blocks.Layout | None],
    config: Config,
    ranks: Ranks,
    stack: contextlib.ExitStack,
    background: bool,
) -> list[blocks.Writer | None]:
    """Open the files that this rank writes to itself: the bytes for others go through rank 0."""
    out: list[blocks.Writer | None] = []
    for layout in layouts:
        file = None
        if layout and ranks.rank == 0:
            file = blocks.PartialFile(layout)
        elif layout and config.hand_over != "messages" and ranks.beside_root:
            file = blocks.PartialFile.seen(layout)
        writer: blocks.Writer | None = stack.enter_context(file) if file else None
        if file and background:
            writer = stack.enter_context(contextlib.closing(blocks.BackgroundWriter(file)))
        out.append(writer)
    return out


def prepare_block(task: PairTask, config: Config) -> PreparedBlock:
    """Read the images of a pair and create its block; its patches are not cut yet.

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
    with step("scale"):
        block = make_block(
            pair, task.part, task.degradation, read.pop(0)[0], read.pop()[0], config, task.fixed
        )
    return block, digests


def make_block(
    pair: Pair,
    part: PairPlan,
    degradation: str,
    input_image: NDArray[np.float32],
    target_image: NDArray[np.float32],
    config: Config,
    fixed: Affine | None = None,
) -> patching.Block:
    """Normalise and augment a pair, and determine where its patches are cut.

    Parameters
    ----------
    pair : Pair
    part : PairPlan
        Its windows.
    degradation : {'', 'blur', 'noise'}
        Of the input.
    input_image, target_image : ndarray of float32, shape (rows, columns)
        Stored values, or HU with `config.in_hu`.
    config : Config
    fixed : Affine, optional
        The normalisation, where it is the same for every image of the run.
    """
    input_image, target_image, *affines = img_pair_normalization(
        input_image, target_image, config.normalization_type, fixed
    )
    slices, images = (pair.input, pair.target), (input_image, target_image)
    for one, image in zip(slices, images, strict=True):
        if not np.isfinite(image).all():
            raise RunError(f"{printable(one.file)}: NaN or infinity came out of it; is it damaged?")
    fills = [air_value(*one, config) for one in zip(slices, affines, strict=True)]
    masks = part.kept_masks()
    return patching.make_block(images, affines, fills, masks, degradation, pair.identity, config)


def air_value(one: Slice, affine: Affine, config: Config) -> float:
    """Return what air (-1024 HU) is in the normalised image of a slice."""
    air = AIR_HU if config.in_hu else (AIR_HU - one.intercept) / one.slope
    if config.normalization_type == "hu_window":
        air = min(max(air, config.hu_window[0]), config.hu_window[1])
    return float(affine.apply(np.full(1, air, np.float32))[0])


def _read(one: Slice, config: Config) -> tuple[NDArray[np.float32], int]:
    """Return a slice as it is to be normalised, and its digest."""
    stored = pixels.read_pixels(config.input_folder, one)
    hu = pixels.to_hu(stored, one)
    return hu if config.in_hu else stored, pixel_digest(hu)


def missing_blocks(number: int, file: OutputFile) -> list[PairTask]:
    """Return the missing blocks of the file of that number."""
    return [] if file.complete else pair_tasks(number, file.plan, file.done)


def pair_tasks(file: int, plan: Plan, done: Container[int]) -> list[PairTask]:
    """Return the missing blocks of a file.

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
