"""The block of a pair: its patches, cut from views on demand, and its bytes in a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from ctpatches.chunks import Chunks
from ctpatches.compression import compress
from ctpatches.files import Offset, Write
from ctpatches.orientations import orient
from ctpatches.permutation import Permutation
from ctpatches.schema import CHUNK_COLUMNS, ORIENTATIONS, PATCH_COLUMNS, ROLES, SCHEMA
from ctpatches.views import strips

#: Bytes of patches that are cut at once: with their view they fit into the second-level cache of a
#: core, where their checksum and the write find them.
PIECE_BYTES = 512 << 10
#: Chunks are written at `CHUNKS` + pair x `CHUNKS_STRIDE`, beyond the end of any file: their place
#: depends on the size of those before them, which only the process that packs the file knows.
CHUNKS, CHUNKS_STRIDE = 1 << 63, 1 << 40
#: First byte, and bytes per row, of every dataset that blocks are written to, in their order.
ByteRows = Mapping[str, tuple[int, int]]
#: First and end row of a block, in datasets with a row per "patch" and per "pixel".
Place = Mapping[str, tuple[int, int]]


class Piece(NamedTuple):
    """Consecutive patches of a block, all of one view: its number, first patch, end."""

    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """All n patches of one pair, in their final order: view, window, orientation.

    The patches are cut on demand, a piece at a time: memory stays small, and a piece is still in
    the processor's cache when it is written.
    """

    #: 'input' and 'target': the padded views that patches are cut from, shape (rows, columns), of
    #: the type of the file.
    views: dict[str, list[NDArray[Any]]]
    #: The first patch of each of these views, and n.
    starts: list[int]
    #: Pixels per side of a patch.
    size: int
    #: Of every patch, shape (n,): the scale of its view, the first row and column of its window
    #: there, and its orientation.
    scale: NDArray[np.float32]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    orientation: NDArray[np.uint8]

    #: By orientation: what writes an image into an array, called with (image, argument, array), and
    #: the argument.
    operations: ClassVar[Sequence[tuple[Callable[..., Any], Any]]] = [
        (orient, code) for code in range(len(ORIENTATIONS))
    ]

    def __len__(self) -> int:
        return self.starts[-1]

    def pieces(self) -> Iterator[Piece]:
        """Yield pieces of at most `PIECE_BYTES`, but of at least one patch, in order."""
        many = max(1, PIECE_BYTES // (4 * self.size**2))
        for view, (begin, end) in enumerate(itertools.pairwise(self.starts)):
            for start in range(begin, end, many):
                yield Piece(view, start, min(start + many, end))

    def cut(self, role: str, piece: Piece) -> NDArray[Any]:
        """Return a piece of the input or the target, shape (n, p, p), of the type of the file."""
        view, size = self.views[role][piece.view], self.size
        out = np.empty((piece.stop - piece.start, size, size), view.dtype)
        # OpenCV moves pixels of float16 as those of int16.
        bits = np.dtype(np.int16) if view.itemsize == 2 else view.dtype
        view = view.view(bits)
        part = slice(piece.start, piece.stop)
        rows, cols = self.row[part].tolist(), self.col[part].tolist()
        codes = self.orientation[part].tolist()
        place, operations = None, self.operations
        for row, col, code, patch in zip(rows, cols, codes, out.view(bits), strict=True):
            if place != (row, col):  # the orientations of a window follow one another
                place = row, col
                window = view[row : row + size, col : col + size]
            call, argument = operations[code]
            call(window, argument, patch)
        return out

    def write(
        self,
        write: Write,
        rows: ByteRows,
        index: int,
        place: Place,
        compression: str = "none",
        shuffle: Permutation | None = None,
        lap: Callable[[str], None] = lambda _: None,
    ) -> int:
        """Write the block of pair `index` at its place; return its checksum.

        `write` is called with a byte offset, or with several for equal parts of the data, and the
        data; `lap` after every step, with its name.
        """
        digest = xxhash.xxh3_64()
        patch_rows = shuffle.forward(np.arange(*place["patch"])) if shuffle else None
        sizes: dict[str, list[int]] = {name: [] for name in CHUNK_COLUMNS}

        def add(offset: Offset, data: memoryview) -> None:
            digest.update(data)
            lap("sum")
            write(offset, data)
            lap("write")

        def add_rows(name: str, row: int, data: memoryview) -> None:
            first, size = rows[name]
            kind = SCHEMA[name].row_of
            if patch_rows is not None and kind == "patch":
                chosen = patch_rows[row : row + data.nbytes // size]
                add((first + chosen * size).tolist(), data)
            else:
                add(first + (place[kind][0] + row) * size, data)

        for role in ROLES:
            if f"views/{role}" in rows:
                pixel = 0
                for view in self.views[role]:
                    add_rows(f"views/{role}", pixel, strips(view).data)
                    pixel += view.size
                continue
            for piece in self.pieces():
                patches = self.cut(role, piece)
                lap("cut")
                if compression == "none":
                    add_rows(role, piece.start, patches.data)
                    del patches  # the next piece gets its memory, which is in the cache
                    continue
                chunks = compress(patches, compression)
                sizes[f"{role}_bytes"] += map(len, chunks)
                lap("compress")
                add(CHUNKS + index * CHUNKS_STRIDE, memoryview(b"".join(chunks)))
        columns: dict[str, Any] = {name: getattr(self, name, index) for name in PATCH_COLUMNS}
        columns |= sizes if compression != "none" else {}
        for name, values in columns.items() if len(self) else ():
            column = np.empty(len(self), SCHEMA[f"patch/{name}"].dtype)
            column[:] = values
            add_rows(f"patch/{name}", 0, column.data)
        return int(digest.intdigest())


def block_ranges(
    rows: ByteRows, place: Place, shuffle: Permutation | None, chunks: Chunks | None, index: int
) -> Iterator[tuple[int, int]]:
    """Yield first byte and length of every part of a block, in the order of its checksum."""
    if chunks:
        first, end = chunks.blocks[index : index + 2].tolist()
        yield first, end - first
    for name, (first, size) in rows.items():
        start, stop = place[SCHEMA[name].row_of]
        if shuffle and SCHEMA[name].row_of == "patch":
            for row in shuffle.forward(np.arange(start, stop)).tolist():
                yield first + row * size, size
        else:
            yield first + start * size, (stop - start) * size
