"""The ranks of a run; the only importer of mpi4py."""
