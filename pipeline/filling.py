"""Filling the file: every block made, on whichever rank has time, and written at its place."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

import patching
from ctpatches.patchfile import pixel_digest
from pipeline import prefetch
from pipeline.dicom import dicom_io
from pipeline.mpi.parallel import World, Writer, about
from pipeline.output import blocks
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.commit import Output
from pipeline.profile import step
from pipeline.progress import Progress
from utils import Affine, Config, Pair, PairPlan, Plan, Slice, shown

if TYPE_CHECKING:
    from report_pictures import Coverage

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
class DrawTask:
    """All that a rank needs to draw slices with their windows: as pictures, or for the page.

    `slices` has the index of each pair, the pair, its plan, and what its target is called.
    """

    file: int
    for_page: bool
    slices: tuple[tuple[int, Pair, PairPlan, str], ...]


@dataclass(frozen=True)
class Filled:
    """What rank 0 is told of a block that is in the file."""

    file: int
    index: int
    record: BlockRecord


@dataclass(frozen=True)
class Drawn:
    """Slices with their windows, by index of their pair: PNG, or for the page."""

    file: int
    pictures: dict[int, bytes | Coverage]


@dataclass
class Drawings:
    """The slices of a file with their windows, by number of their pair: PNG, and for the page."""

    pictures: dict[int, bytes] = field(default_factory=dict)
    page: dict[int, Coverage] = field(default_factory=dict)

    def put(self, drawn: Drawn) -> None:
        """Take some of them."""
        for index, picture in drawn.pictures.items():
            if isinstance(picture, bytes):
                self.pictures[index] = picture
            else:
                self.page[index] = picture


@dataclass(frozen=True)
class Filler:
    """What a rank does with a task; the first part of it may be done before its turn."""

    config: Config
    layouts: Sequence[blocks.Layout | None]
    writers: Sequence[Writer | None]

    def prepare(self, task: PairTask | DrawTask) -> Drawn | tuple[PairTask, PreparedBlock]:
        """Draw what is to be drawn, or read and scale a pair."""
        if isinstance(task, DrawTask):
            return draw(task, self.config)
        return task, prepare_block(task, self.config)

    def work(self, prepared: Drawn | tuple[PairTask, PreparedBlock]) -> Filled | Drawn:
        """Cut and write a block."""
        if isinstance(prepared, Drawn):
            return prepared
        task, (block, digests) = prepared
        layout, writer = self.layouts[task.file], self.writers[task.file]
        assert layout
        assert writer
        checksum = blocks.write_block(writer, layout, block, task.index, task.start)
        record = BlockRecord(block.input_affine, block.target_affine, checksum, digests)
        return Filled(task.file, task.index, record)


def fill(
    plans: dict[str, Plan], output: Output | None, config: Config, world: World
) -> list[Drawings]:
    """Make every block that is not there yet and write it at its place; draw the slices to show.

    Parameters
    ----------
    plans : dict of str to Plan
        By side; on rank 0.
    output : Output or None
        None on other ranks.
    config : Config
    world : World

    Returns
    -------
    list of Drawings
        One for each file, on rank 0.
    """
    out_files = output.files if output else []
    layouts = world.share([file.layout for file in out_files])
    direct = config.hand_over != "messages" and world.beside_root
    files = [_open(layout, world.rank, direct) if layout else None for layout in layouts]
    pairs = [
        task
        for number, file in enumerate(out_files)
        if not file.complete
        for task in pair_tasks(number, file.plan, file.done)
    ]
    drawing = to_draw(plans, config, together=world.size > 1)
    # Long tasks first, small ones last: they leave no rank waiting for long.
    long = [task for task in drawing if len(task.slices) > 1]
    short = [task for task in drawing if len(task.slices) == 1]
    tasks: list[PairTask | DrawTask] = [*long, *pairs, *short]
    drawn = [pair for task in drawing for _, pair, *_ in task.slices]
    threads = prefetch.threads_for([*drawn, *(task.pair for task in pairs)])
    filler = Filler(config, layouts, world.open_writers(files, threads))
    drawings = [Drawings() for _ in plans]
    with Progress("filling", len(pairs), config.quiet) as progress:

        def take(result: Filled | Drawn) -> None:
            if isinstance(result, Drawn):
                drawings[result.file].put(result)
                return
            assert output
            output.add(result.file, result.index, result.record)
            starts = output.files[result.file].plan.starts
            patches = starts[result.index + 1] - starts[result.index]
            progress.advance(patches * config.bytes_a_patch)

        world.run(tasks, filler.work, take, _name, filler.prepare, threads)
    for one in files:
        if one:
            one.close()
    return drawings


def _name(task: PairTask | DrawTask) -> str:
    return "" if isinstance(task, DrawTask) else _named(task.pair)


def _named(pair: Pair) -> str:
    return f"{shown(pair.input.file)}: "


def prepare_block(task: PairTask, config: Config) -> PreparedBlock:
    """Read the images of a pair and make its block, the patches of which are not cut yet.

    Returns
    -------
    block : Block
    digests : tuple of int
        `h5_read.pixel_digest` of the input and the target.
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


def to_draw(plans: dict[str, Plan], config: Config, together: bool) -> list[DrawTask]:
    """Return which slices are to be drawn with their windows; rank 0 alone has plans.

    Parameters
    ----------
    plans : dict of str to Plan
    config : Config
    together : bool
        Make one task of all pictures of a file: OpenCV takes longer to load its letters than to
        draw a picture, so one rank alone shall need them.
    """
    if not plans:
        return []
    import report_pictures
    import sanity

    out = []
    for file, plan in enumerate(plans.values()):
        pictures, page = (
            [(i, plan.pairs[i], plan.parts[i], plan.names[i].target_file) for i in chosen]
            for chosen in (
                sanity.coverage_pairs(plan, config),
                report_pictures.coverage_pairs(plan, config),
            )
        )
        some = [tuple(pictures)] if together else [(one,) for one in pictures]
        out += [DrawTask(file, False, slices) for slices in some]
        out += [DrawTask(file, True, (one,)) for one in page]
    return out


def draw(task: DrawTask, config: Config) -> Drawn:
    """Draw slices."""
    import report_pictures
    import sanity

    with step("draw"):
        make = report_pictures.coverage if task.for_page else sanity.coverage
        pictures: dict[int, bytes | Coverage] = {}
        for i, pair, part, name in task.slices:
            with about(_named(pair)):
                pictures[i] = make(pair, part, name, config)
        return Drawn(task.file, pictures)


def _open(layout: blocks.Layout, rank: int, direct: bool) -> blocks.PartialFile | None:
    """Open a file for writing, or return None where its bytes have to go through rank 0."""
    if rank == 0:
        return blocks.PartialFile(layout)
    return blocks.PartialFile.seen(layout) if direct else None
