"""A real SLURM of one node on this machine's loopback interface, and jobs in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.faults import wait_for
from tests.running import environment

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
#: Seconds that a command of SLURM, or the start or the end of a daemon, may take.
SOON = 20
#: States of a job that has not ended.
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

# Numbers of jobs differ from one SLURM to the next, as MPICH takes names in /dev/shm from them.
# `config_overrides` makes the node as large as it says here, however small the machine is.
CONFIGURATION = """\
ClusterName=tests
FirstJobId={ports[0]}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=5
MailProg=/bin/true
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000
PartitionName=p Nodes=localhost Default=YES
"""


class Slurm:
    """A running SLURM.

    Attributes
    ----------
    variables : dict
        What a command needs in its environment to find it.
    """

    def __init__(self, folder: Path) -> None:
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(
        self, *words: str | Path, cwd: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> str:
        """Return what a command of SLURM prints."""
        return subprocess.run(
            words,
            cwd=cwd,
            env=environment({**self.variables, **(extra or {})}),
            check=True,
            capture_output=True,
            text=True,
            timeout=SOON,
        ).stdout.strip()

    def submit(self, cwd: Path, *words: str | Path, extra: Mapping[str, str] | None = None) -> str:
        """Call sbatch in a folder; return the number of the job."""
        return self.call("sbatch", "--parsable", *words, cwd=cwd, extra=extra)

    def state(self, job: str) -> str:
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def end_state(self, job: str) -> str:
        """Wait until a job has ended; return its state."""
        wait_for(lambda: self.state(job) not in ACTIVE, f"the end of job {job}")
        return self.state(job)

    def cancel(self, job: str) -> str:
        """Call scancel; return the state in which the job ends."""
        self.call("scancel", job)
        return self.end_state(job)

    def requeue(self, job: str) -> None:
        """Have a job started again, without the two minutes that SLURM would wait."""
        self.call("scontrol", "requeue", job)
        wait_for(lambda: self.state(job) == "PENDING", f"the requeue of job {job}", SOON)
        # Not at once: a start is refused in the second in which the job was stopped.
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def cancel_all(self) -> None:
        """Call scancel for all jobs, and wait for their end."""
        self.call("scancel", "--user=root")
        wait_for(lambda: not self.call("squeue", "--noheader"), "the end of all jobs", SOON)


def free_ports(n: int) -> list[int]:
    """Return ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def daemon(folder: Path, words: Sequence[str | Path]) -> Iterator[None]:
    """Run a daemon in the foreground of its own session until the block is left."""
    with (
        open(folder / f"{words[0]}.log", "wb") as log,
        subprocess.Popen(
            words,
            env=environment({"SLURM_CONF": str(folder / "slurm.conf")}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SOON)
            process.kill()


@contextlib.contextmanager
def running_slurm() -> Iterator[Slurm]:
    """Start a SLURM and end it, with all its jobs; skip where it is not installed."""
    missing = [name for name in (*DAEMONS, *CLIENTS) if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"starting SLURM needs root and its programs; missing: {missing}")
    # Not below pytest's folder: the name of a socket is short, and others than root must reach it.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        for sub in ("state", "spool", "key"):
            (folder / sub).mkdir(mode=0o700)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=free_ports(2)))
        (folder / "key" / "munge.key").touch(mode=0o600)
        (folder / "key" / "munge.key").write_bytes(os.urandom(128))
        files = [f"--{end}-file={folder}/key/munge.{end}" for end in ("key", "pid", "log", "seed")]
        munged = ["munged", "--foreground", *files, f"--socket={folder}/munge.socket"]
        stack.enter_context(daemon(folder, munged))
        wait_for((folder / "munge.socket").exists, "munged", SOON)
        stack.enter_context(daemon(folder, ["slurmctld", "-D", "-c"]))
        stack.enter_context(daemon(folder, ["slurmd", "-D", "-N", "localhost"]))
        slurm = Slurm(folder)
        try:
            wait_for(lambda: is_idle(slurm), "a node that takes jobs", SOON)
        except AssertionError as error:
            logs = [path.read_text(errors="replace") for path in sorted(folder.glob("*.log"))]
            raise AssertionError("\n".join([str(error), *logs])) from None
        stack.callback(slurm.cancel_all)
        yield slurm


def is_idle(slurm: Slurm) -> bool:
    """Tell whether the node waits for jobs; not so while the daemons start."""
    try:
        return slurm.call("sinfo", "--noheader", "--format=%t") == "idle"
    except subprocess.CalledProcessError:
        return False
