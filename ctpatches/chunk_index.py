"""The chunk index of a compressed dataset, written in one piece.

HDF5 needs 8 microseconds to enter a chunk into an index, a third of what a rank needs to compress
it, and one process would have to enter all of them. Its default index, a B-tree of version 1, has
no checksums: it consists of nodes of one size (HDF5 File Format Specification, section III.A.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

#: Children of a node: twice HDF5's default of its K.
CHILDREN = 64
#: Nodes that are created at once.
GROUP = 1024
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
        for first in range(0, count, GROUP):
            here = nodes[first : first + GROUP]
            table = np.zeros(len(here), NODE)
            table["signature"], table["type"], table["level"] = b"TREE", 1, level
            table["left"], table["right"] = here - NODE.itemsize, here + NODE.itemsize
            if first == 0:
                table["left"][0] = UNDEFINED
            if first + GROUP >= count:
                table["right"][-1] = UNDEFINED
            part = slice(first * CHILDREN, (first + GROUP) * CHILDREN)
            # The key after the last child is the end of all rows.
            keys = np.arange(part.start, part.start + len(here) * CHILDREN + 1)
            starts = np.minimum(keys * CHILDREN**level, n)
            table["child"]["row"] = starts[:-1].reshape(-1, CHILDREN)
            table["end"]["row"] = starts[CHILDREN::CHILDREN]
            used = len(places[part])
            for name, values in (("place", places[part]), ("bytes", sizes[part])):
                padded = np.zeros(table["child"].size, values.dtype)
                padded[:used] = values
                table["child"][name] = padded.reshape(-1, CHILDREN)
            table["used"] = np.minimum(len(places) - keys[:-1:CHILDREN], CHILDREN)
            yield int(here[0]), table.tobytes()
        places, sizes, level = nodes, sizes[::CHILDREN], level + 1
