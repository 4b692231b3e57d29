"""Runs many jobs one after another, each as the command line does: `jobs.py FILE`.

FILE holds a list of argument lists as JSON. Under mpiexec this is what `main.py` does under
mpiexec, but with one start of the interpreters for all jobs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from main import main

if __name__ == "__main__":
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        if status := main(argv):
            sys.exit(status)
