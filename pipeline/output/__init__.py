"""The output files: created, written by all ranks, committed."""
