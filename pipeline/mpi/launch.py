"""Connecting the processes that a launcher started, and agreeing on one valid call."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ctpatches.messages import CallError, RunError, ToolError
from pipeline.errors import SharedFailure, reason_of
from pipeline.mpi.ranks import Ranks


def launcher_ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and number of ranks that a launcher's variables tell; (0, 1) without a launcher.

    Known are MPICH's and Intel's mpiexec, Open MPI's, and srun. SLURM_NTASKS alone is no launcher:
    it stands in every batch script. Values that no launcher would set are ignored.
    """
    for names in (
        ("PMI_RANK", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ):
        rank, size = (_count(environ, name) for name in names)
        if 0 <= rank < size:
            return rank, size
    return 0, 1


def _count(environ: Mapping[str, str], name: str) -> int:
    """Return the number that a variable holds, -1 where it holds none."""
    value = environ.get(name, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else -1


def launcher_name(environ: Mapping[str, str]) -> str:
    """Return which command started the ranks, for messages: mpiexec or srun."""
    slurm = {name: value for name, value in environ.items() if name.startswith("SLURM_")}
    # SLURM starts mpiexec's own processes too, but then in another number.
    return "srun" if launcher_ranks(slurm) == launcher_ranks(environ) else "mpiexec"


def check_mpi_run(mpi_run: bool, environ: Mapping[str, str]) -> None:
    """Raise CallError where a launcher started several processes of a run without MPI."""
    _, launched = launcher_ranks(environ)
    if launched > 1 and not mpi_run:
        launcher = launcher_name(environ)
        raise CallError(
            f"{launcher} started {launched} processes, but without --mpi_run each would do the "
            f"whole job; add --mpi_run, or run without {launcher}"
        )


def connect(mpi_run: bool, environ: Mapping[str, str]) -> Ranks:
    """Return all ranks: with `mpi_run`, or where a launcher started several processes.

    Without either it is this process alone, and MPI is not even imported.

    Raises
    ------
    CallError
        The launcher started several processes, but MPI does not connect them.
    RunError
        There is no MPI here.
    """
    _, launched = launcher_ranks(environ)
    if not mpi_run and launched == 1:
        return Ranks()
    try:
        with warnings.catch_warnings():  # of a launcher of another MPI: reported below
            warnings.simplefilter("ignore", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        raise RunError(f"cannot load MPI (mpi4py and an MPI library): {reason_of(error)}") from None
    library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip(" \0")
    _check_size(MPI.COMM_WORLD.size, library, environ)
    return Ranks(MPI.COMM_WORLD)


def _check_size(size: int, library: str, environ: Mapping[str, str]) -> None:
    """Raise CallError where MPI connects fewer processes than were started or reserved."""
    _, launched = launcher_ranks(environ)
    plugin = "pmix" if library.startswith("Open MPI") else "pmi2"
    srun = f"srun --mpi={plugin}"
    if launched > size:
        launcher = launcher_name(environ)
        advice = f"start them with the mpiexec of the MPI that mpi4py uses ({library})"
        if launcher == "srun":
            advice = f"use {srun} for {library} (srun --mpi=list prints what there is)"
        raise CallError(
            f"{launcher} started {launched} processes, but MPI finds {size}: each would do the "
            f"whole job; {advice}, or start one process without --mpi_run for a serial run"
        )
    reserved = _count(environ, "SLURM_NTASKS")
    launchers = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    if size == 1 < reserved and not any(name in environ for name in launchers):
        raise CallError(
            f"SLURM reserved {reserved} tasks, but this is one process: put srun in front "
            f"({srun} python main.py ...), or leave out --mpi_run for a serial run"
        )


def agree(ranks: Ranks, request: Any) -> Any:
    """Return rank 0's request on every rank, once each rank has a valid one.

    Parameters
    ----------
    ranks : Ranks
    request : object or ToolError
        What the command line of this rank asks for, or why it is invalid.

    Raises
    ------
    SharedFailure
        The request of a rank is invalid: on every rank, with the same message.
    """
    valid, error = (None, request) if isinstance(request, ToolError) else (request, None)
    errors = ranks.gather(error)
    ranks.on_root(lambda: _check_requests(errors))
    return ranks.share(valid)


def _check_requests(errors: Sequence[ToolError | None]) -> None:
    invalid = [(rank, error) for rank, error in enumerate(errors) if error]
    if invalid:
        rank, error = invalid[0]
        where = "" if len(invalid) == len(errors) else f"rank {rank}: "
        raise SharedFailure(f"{where}{error}", error.status)
