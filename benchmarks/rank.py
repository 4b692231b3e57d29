#!/usr/bin/env python3
"""Runs main.py in this process, one rank of many, and leaves what it used in a file of its own.

mpiexec -n 2 python benchmarks/rank.py FOLDER [argument of main.py ...]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main as tool
from ctpatches import streams


def main(argv: Sequence[str]) -> int:
    """Run the tool; return its exit status."""
    began = time.monotonic()
    try:
        return tool.main(argv[1:])
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "wall": time.monotonic() - began,
            "cpu": used.ru_utime + used.ru_stime,
            "peak": used.ru_maxrss * 1024,
        }
        Path(argv[0], f"rank_{os.getpid()}.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    sys.exit(streams.run(lambda: main(sys.argv[1:])))
