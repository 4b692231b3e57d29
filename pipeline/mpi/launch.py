"""Connecting the processes that a launcher started."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctpatches.messages import CallError, RunError
from pipeline.errors import reason_of
from pipeline.mpi.ranks import Ranks

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipeline.mpi.task_farm import TaskFarm

#: Variables with rank and number of ranks, of MPICH's and Intel's mpiexec, Open MPI's, and srun.
LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launcher_ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and number of ranks by a launcher's variables; (0, 1) without a launcher.

    Values that no launcher would set are ignored. SLURM_NTASKS alone does not tell of a launcher:
    it is set in every batch script.
    """
    for names in LAUNCHERS:
        rank, size = (_count(environ, name) for name in names)
        if 0 <= rank < size:
            return rank, size
    return 0, 1


def _count(environ: Mapping[str, str], name: str) -> int:
    """Return the number that a variable holds, or -1."""
    value = environ.get(name, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else -1


def _launcher_name(environ: Mapping[str, str]) -> str:
    slurm = {name: value for name, value in environ.items() if name.startswith("SLURM_")}
    # SLURM starts mpiexec's own processes too, but then in another number.
    return "srun" if launcher_ranks(slurm) == launcher_ranks(environ) else "mpiexec"


def check_mpi_run(mpi_run: bool, environ: Mapping[str, str]) -> None:
    """Raise CallError where a launcher started several processes of a run without MPI."""
    _, launched = launcher_ranks(environ)
    if launched > 1 and not mpi_run:
        launcher = _launcher_name(environ)
        raise CallError(
            f"{launcher} started {launched} processes, but without --mpi_run each would do the "
            f"whole job; add --mpi_run, or run without {launcher}"
        )


def load_farm(comm: MPI.Intracomm | None = None) -> TaskFarm:
    """Load MPI; return the task farm of a communicator, by default of all processes.

    Raises RunError where there is no MPI.
    """
    # Open MPI's transport "ofi" sleeps for a second at every start (mca_btl_ofi_component_close).
    # It is for one-sided communication; messages through libfabric use another one (mtl).
    os.environ.setdefault("OMPI_MCA_btl", "^ofi")
    try:
        with warnings.catch_warnings():  # of a launcher of another MPI: reported below
            warnings.simplefilter("ignore", RuntimeWarning)
            from pipeline.mpi.task_farm import TaskFarm
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        raise RunError(f"cannot load MPI (mpi4py and an MPI library): {reason_of(error)}") from None
    return TaskFarm(comm)


def connect(mpi_run: bool, environ: Mapping[str, str]) -> Ranks:
    """Return all ranks: with `mpi_run`, or where a launcher started several processes.

    Without either it is this process alone, and MPI is not even imported. Raises CallError where
    MPI connects fewer processes than were started or reserved, and RunError where there is no MPI.
    """
    _, launched = launcher_ranks(environ)
    if not mpi_run and launched == 1:
        return Ranks()
    farm = load_farm()
    size, library = farm.comm.size, farm.library
    srun = f"srun --mpi={'pmix' if library.startswith('Open MPI') else 'pmi2'}"
    if launched > size:
        launcher = _launcher_name(environ)
        advice = f"start them with the mpiexec of the MPI that mpi4py uses ({library})"
        if launcher == "srun":
            advice = f"use {srun} for {library} (srun --mpi=list prints what there is)"
        raise CallError(
            f"{launcher} started {launched} processes, but MPI finds {size}: each would do the "
            f"whole job; {advice}, or start one process without --mpi_run for a serial run"
        )
    reserved = _count(environ, "SLURM_NTASKS")
    if size == 1 < reserved and not {"PMIX_RANK", *dict(LAUNCHERS).values()} & set(environ):
        raise CallError(
            f"SLURM reserved {reserved} tasks, but this is one process: put srun in front "
            f"({srun} python main.py ...), or leave out --mpi_run for a serial run"
        )
    return Ranks(farm)
