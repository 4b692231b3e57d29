#!/usr/bin/env python3
"""The floor of the benchmark: reads the input bytes, writes as many output bytes from memory.

No program that turns these inputs into that output can be much faster. One process, no parsing, no
arithmetic; the standard library only, so that it starts fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

#: About the patches of one pair: what the tool, too, has in hand when it writes.
BUFFER_BYTES = 16 << 20


def read_all(folder: str, buffer: memoryview) -> int:
    """Read every file below a folder into the buffer, piece by piece; return how many bytes."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total


def write(path: str, total: int, buffer: memoryview) -> None:
    """Write that many bytes, from the buffer over and over, and have them on the disk."""
    with open(path, "wb", buffering=0) as file:
        while total:
            total -= file.write(buffer[: min(total, len(buffer))])
        os.fsync(file.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", help="read every file below it")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("bytes", type=int, help="how many bytes to write")
    options = parser.parse_args(argv)
    # Written to, not only asked for: the machine hands out memory at the first touch.
    buffer = memoryview(bytearray(b"\1") * BUFFER_BYTES)
    read_all(options.folder, buffer)
    write(options.output, options.bytes, buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
