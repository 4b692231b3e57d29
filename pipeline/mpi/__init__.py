"""The ranks of a run; only `task_farm` imports mpi4py."""
