"""Filling the file: every block is created on any free rank and written at its offset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from typing import TypeAlias

import numpy as np

import patching
from ctpatches.checksums import pixel_digest
from ctpatches.dicom.pixels import read_pixels, to_hu
from ctpatches.dtypes import cast
from ctpatches.files import Write
from ctpatches.normalisation import normalised_air
from pipeline import difference, prefetch
from pipeline.config import Config
from pipeline.errors import naming
from pipeline.model import PairPlan
from pipeline.mpi.ranks import Ranks
from pipeline.output.checkpoint import BlockRecord
from pipeline.output.commit import Output
from pipeline.output.partial_file import PartialFile, open_partial
from pipeline.profile import laps, step
from pipeline.progress import Progress
from utils import Affine, Image, RunError, img_pair_normalization, printable

#: With compression, blocks per rank that may be begun before the oldest one is finished.
MAX_AHEAD = 4
#: Number of an output file, and a pair of it.
Task: TypeAlias = tuple[int, PairPlan]
#: What `prepare_block` returns for a task.
Prepared: TypeAlias = tuple[Task, patching.Block, BlockRecord]


def fill(output: Output | None, config: Config, ranks: Ranks) -> None:
    """Create every missing block and write it at its offset; `output` is None on other ranks."""
    files = output.files if output else []
    layouts = ranks.share(lambda: [file.layout for file in files])
    tasks = [
        (number, planned)
        for number, file in enumerate(files)
        if not file.complete
        for planned in file.plan.pairs
        if planned.index not in file.done
    ]
    threads = prefetch.threads_for(planned.pair for _, planned in tasks)

    def prepare(task: Task) -> Prepared:
        return task, *prepare_block(task[1], config)

    def write(prepared: Prepared) -> tuple[int, int, BlockRecord]:
        (file, planned), block, record = prepared
        layout = layouts[file]
        assert layout
        rows, shuffle, compression = layout.rows, layout.shuffle, config.compression
        with naming(planned.pair.input.file):
            checksum = block.write(
                writes[file], rows, planned.index, planned.place, compression, shuffle, laps()
            )
        return file, planned.index, dataclasses.replace(record, checksum=checksum)

    def open_files() -> None:
        for layout in layouts:
            partial.append(open_partial(layout, config, ranks) if layout else None)
            if partial[-1]:
                stack.callback(partial[-1].close)

    def sync() -> None:
        for file in filter(None, () if ranks.one_host else partial):
            file.sync()

    with contextlib.ExitStack() as stack:
        partial: list[PartialFile | None] = []
        ranks.on_all(open_files)
        writes: list[Write] = [file.write for file in files]
        for number, own in enumerate(partial if ranks.rank else ()):
            writes.append(own.write if own else functools.partial(ranks.send, number))
        progress = Progress("filling", len(tasks), config.quiet)
        stack.callback(progress.close)
        max_ahead = math.inf
        if config.compression != "none":  # blocks that are finished early wait for the others
            max_ahead = MAX_AHEAD * ranks.size
        results = ranks.imap_unordered(write, tasks, prepare, threads, max_ahead, writes)
        for file, index, record in stack.enter_context(contextlib.closing(results)):
            assert output
            output.add(file, index, record)
            place = files[file].plan.pairs[index].place
            size = config.bytes_of(*(stop - start for start, stop in place.values()))
            progress.advance(size=size)
        # On all ranks before rank 0 commits: its fsync does not reach the caches of other hosts.
        ranks.on_all(sync)


def prepare_block(planned: PairPlan, config: Config) -> tuple[patching.Block, BlockRecord]:
    """Read the images of a pair and create its block, without cutting patches.

    The record lacks the checksum of the bytes, which are not written yet.
    """
    with naming(planned.pair.input.file):
        slices = planned.pair.input, planned.pair.target
        with step("read"):
            stored = [read_pixels(config.input_folder, one) for one in slices]
            in_hu = [to_hu(image, one) for image, one in zip(stored, slices, strict=True)]
            digests = pixel_digest(in_hu[0]), pixel_digest(in_hu[1])
        with step("noise"):
            kept = planned.windows.kept_masks()[0]
            measured = difference.measure(in_hu[0], in_hu[1], kept, config)
        with step("scale"):  # the images are handed over, and freed once they are normalised
            images = in_hu if config.in_hu else stored
            del stored, in_hu
            block, affines, rounding = make_block(planned, images.pop(0), images.pop(), config)
    return block, BlockRecord(affines[0], affines[1], 0, digests, measured, rounding)


def make_block(
    planned: PairPlan, input_image: Image, target_image: Image, config: Config
) -> tuple[patching.Block, list[Affine], tuple[float, float]]:
    """Normalise and augment a pair, and determine where its patches are cut.

    The images are stored values, or HU with `config.in_hu`. Also returns, of the input and the
    target, the normalisation and the largest difference of a pixel due to `--dtype`.
    """
    input_image, target_image, *affines = img_pair_normalization(
        input_image, target_image, config.normalization_type, planned.fixed
    )
    slices, images = (planned.pair.input, planned.pair.target), (input_image, target_image)
    unit = "hu" if config.in_hu else "stored"
    fills = []
    for one, image, affine in zip(slices, images, affines, strict=True):
        if not np.isfinite(image).all():
            raise RunError(f"{printable(one.file)}: NaN or infinity came out of it; is it damaged?")
        fills.append(normalised_air(affine, one.slope, one.intercept, unit, config.clip_window))
    block = patching.make_block(
        images,
        fills,
        planned.windows.kept_masks(),
        planned.degradation,
        affines[0].divisor * (1.0 if config.in_hu else planned.pair.input.slope),
        planned.pair.identity,
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
    return block, affines, (rounding[0], rounding[1])
