#!/usr/bin/env bash
# Runs the tests; the first run makes the environment .venv-dev, later runs reuse it.
#
#   tests/run.sh [argument of pytest ...]
#
# Test files run at the same time, one more than there are cores and at most four; `-n 0` runs them one
# after another.
# PYTHON=/path/to/python sets the Python (see setup_env.sh).
set -euo pipefail
unset CDPATH
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup_env.sh
source "$here/setup_env.sh"
cd "$here"

choose_python .venv-dev requirements-dev.txt
choose_mpi
# So that a test that looks for mpiexec finds the one that belongs to this Python.
PATH=$(dirname "$python"):$PATH
export PATH

# Some tests wait for other programs: one process more than cores keeps the cores busy.
processes=$("$python" -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

# A file's tests run in one process, which makes its fixtures once. Files in their order: by default
# those of few tests come last, although some of these take longest.
exec "$python" -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
