"""The chunks of a compressed file: their places, and the index in which HDF5 finds them.

The chunks of a block, first those of the inputs, follow those of the block before it. Their bytes
are columns of `patch/`, so that their places are known without the index.

HDF5 needs 8 microseconds to enter a chunk into an index, a third of what a rank needs to compress
it, and one process would have to enter all of them: the index is written in one piece. HDF5's
default index, a B-tree of version 1, has no checksums: it consists of nodes of one size (HDF5 File
Format Specification, section III.A.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ctpatches.permutation import Permutation
from ctpatches.schema import ROLES

#: Children of a node: twice HDF5's default of its K.
CHILDREN = 64
#: The address of something that does not exist.
UNDEFINED = 2**64 - 1
#: A key: the first chunk of a child. `rest` is its place along the axes of a patch, and in a pixel.
_KEY = [("bytes", "<u4"), ("filters", "<u4"), ("row", "<u8"), ("rest", "<u8", 4)]
NODE = np.dtype(
    [
        ("signature", "S4"),
        ("type", "u1"),
        ("level", "u1"),
        ("used", "<u2"),
        ("left", "<u8"),
        ("right", "<u8"),
        ("child", [*_KEY, ("place", "<u8")], CHILDREN),
        ("end", _KEY),
    ]
)


class Chunks:
    """Where the chunks of a compressed file lie: by their sizes, from the byte `first` on.

    `starts` are the first patch of every block, and the end of the last, `shuffle` is that of the
    rows of patches.
    """

    def __init__(
        self,
        sizes: Mapping[str, NDArray[np.uint32]],
        starts: Sequence[int],
        first: int,
        shuffle: Permutation | None,
    ) -> None:
        rows = shuffle.forward(np.arange(starts[-1])) if shuffle else slice(None)
        low, full = (np.append(0, np.cumsum(sizes[role][rows], dtype=np.int64)) for role in ROLES)
        counts = np.diff(starts)
        # Before a chunk lie those of its own role, and of the other role those of earlier blocks;
        # before a target also those of its own block.
        others = np.repeat(full[starts[:-1]], counts), np.repeat(low[starts[1:]], counts)
        #: By role, in the order of the rows: bytes, and first byte of every chunk.
        self.sizes = sizes
        self.places: dict[str, NDArray[np.int64]] = {}
        for role, own, other in zip(ROLES, (low, full), others, strict=True):
            self.places[role] = np.empty_like(other)
            self.places[role][rows] = first + own[:-1] + other
        #: First byte of every block, and the end of the last.
        self.blocks = first + low[starts] + full[starts]


def root_of(writes: Sequence[tuple[int, bytes]], chunk: int) -> int:
    """Return where HDF5 has written the index whose only chunk is at that byte."""
    for place, data in writes:
        if data.startswith(b"TREE\1") and len(data) == NODE.itemsize:
            node = np.frombuffer(data, NODE)[0]
            if node["used"] == 1 and node["child"]["place"][0] == chunk:
                return place
    raise RuntimeError("HDF5 has created no B-tree of version 1")


def index_nodes(
    places: NDArray[np.int64], sizes: NDArray[np.uint32], root: int, end: int
) -> Iterator[tuple[int, bytes]]:
    """Yield the nodes of an index, with their places in the file.

    The chunks, one per row of the dataset, are at `places` and have `sizes` bytes. The root
    replaces the one at `root`; all other nodes follow the byte `end`, without gaps.
    """
    n, level = len(places), 0
    while level == 0 or len(places) > 1:
        count = -(-len(places) // CHILDREN)
        nodes = end + NODE.itemsize * np.arange(count)
        end += NODE.itemsize * count
        if count == 1:
            nodes[0] = root
        neighbours = [UNDEFINED, *nodes.tolist(), UNDEFINED]
        for number, place in enumerate(nodes.tolist()):
            children = slice(number * CHILDREN, (number + 1) * CHILDREN)
            used = len(places[children])
            node = np.zeros((), NODE)
            node["signature"], node["type"], node["level"], node["used"] = b"TREE", 1, level, used
            node["left"], node["right"] = neighbours[number], neighbours[number + 2]
            node["child"]["place"][:used] = places[children]
            node["child"]["bytes"][:used] = sizes[children]
            # The key after the last child is the end of all rows.
            keys = np.arange(children.start, children.stop + 1) * CHILDREN**level
            node["child"]["row"] = np.minimum(keys[:-1], n)
            node["end"]["row"] = min(keys[-1], n)
            yield place, node.tobytes()
        places, sizes, level = nodes, sizes[::CHILDREN], level + 1
