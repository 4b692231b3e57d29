"""Ranks on several hosts, made from network namespaces on this machine, joined by TCP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Tree
from tests.faults import Fault, command, finished_blocks, left, one_error, run
from tests.running import REPO, Ended, called, mpiexec

HOSTS = 3
#: Hosts that are namespaces have one memory, which MPICH would use in place of the network.
BY_TCP = {"UCX_TLS": "self,tcp"}
#: So many patches that their bytes stand out from what the launcher and MPI itself send.
OPTIONS = ("--patch-size", "p24", "--overlap", "18", "--rot_augment", "--no-report", "--quiet")

#: Starts MPICH's proxy on a host: `mpiexec` calls it as it would call ssh. Each host has its own
#: name, and all but the first have a disk of their own at `local`, with what is in `copies`.
LAUNCHER = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=${{1##*.}}
shift
hide=":"
[ "$host" = 1 ] || hide="mount -t tmpfs none {local} && cp -r {copies}/. {local}"
exec ip netns exec "{prefix}$host" unshare --uts --mount \\
    sh -c "$hide && hostname host$host && exec $*"
"""

#: `main.py` where the file system of the tests is one that loses neighbouring writes.
INCOHERENT = """
import sys, main
from pipeline.output import partial_file
partial_file.INCOHERENT += (partial_file.file_system(sys.argv.pop(1)),)
sys.exit(main.main())
"""


@dataclass(frozen=True)
class Hosts:
    """Hosts that share all folders but `local`; those but the first have `copies` there."""

    switch: str
    launcher: list[str]
    local: Path
    copies: Path

    def run(self, job: list[str], fault: Fault | None = None) -> Ended:
        """Run a job with four ranks, of which 0 and 3 are on the first host."""
        words = command(0, [*job, "--mpi_run"], fault)
        return run([*self.launcher, *words], self.local.parent, BY_TCP)

    def sent_bytes(self) -> int:
        """Return how many bytes the other hosts have sent so far, all of them to the first."""
        links = (f"/sys/class/net/{self.switch}{i}" for i in range(2, HOSTS + 1))
        return sum(int(Path(link, "statistics/rx_bytes").read_text()) for link in links)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Make hosts with an address each, on one switch."""
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("making network namespaces needs root and iproute2")
    version = subprocess.run([mpiexec(), "--version"], capture_output=True, text=True, check=True)
    if "HYDRA" not in version.stdout:
        pytest.skip("the launcher's options are MPICH's")
    mark = f"{os.getpid() % 10000}"
    prefix, switch = f"pp{mark}h", f"pp{mark}s"
    made = []
    try:
        _ip(f"link add name {switch} type bridge")
        made.append(f"link del {switch}")
        _ip(f"link set {switch} up")
        for i in range(1, HOSTS + 1):
            _ip(f"netns add {prefix}{i}")
            made.append(f"netns del {prefix}{i}")
            _ip(f"link add {switch}{i} type veth peer name eth0 netns {prefix}{i}")
            _ip(f"link set {switch}{i} master {switch} up")
            _ip(f"-n {prefix}{i} addr add 10.77.0.{i}/24 dev eth0")
            _ip(f"-n {prefix}{i} link set eth0 up")
            _ip(f"-n {prefix}{i} link set lo up")
    except subprocess.CalledProcessError as error:
        for undo in reversed(made):
            _ip(undo)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("hosts")
    local, copies, launcher = folder / "local", folder / "copies", folder / "launcher"
    local.mkdir()
    copies.mkdir()
    launcher.write_text(LAUNCHER.format(prefix=prefix, local=local, copies=copies))
    launcher.chmod(0o755)
    addresses = ",".join(f"10.77.0.{i}" for i in range(1, HOSTS + 1))
    words = [
        *("ip", "netns", "exec", f"{prefix}1", mpiexec(), "-launcher", "ssh", "-launcher-exec"),
        *(str(launcher), "-iface", "eth0", "-hosts", addresses, "-n", "4"),
    ]
    yield Hosts(switch, words, local, copies)
    for undo in reversed(made):
        _ip(undo)


@pytest.fixture(scope="module")
def serial(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of the serial run."""
    output = tmp_path_factory.mktemp("serial") / "one.h5"
    assert called(output.parent, *job_of(tree, output)).status == 0
    return output.read_bytes()


def job_of(tree: Tree, output: Path, *options: str) -> list[str]:
    return ["--input-folder", str(tree.root), "--output-fname", str(output), *OPTIONS, *options]


def test_three_hosts_give_the_bytes_of_a_serial_run_and_one_needs_the_output_folder(
    hosts: Hosts, tree: Tree, serial: bytes
) -> None:
    output, before = hosts.local / "sent.h5", hosts.sent_bytes()
    ended = hosts.run(job_of(tree, output))
    assert (ended.status, ended.err) == (0, "")
    assert output.read_bytes() == serial
    assert hosts.sent_bytes() - before > len(serial) / 4


def test_hosts_that_share_the_output_folder_write_directly(
    hosts: Hosts, tree: Tree, serial: bytes, tmp_path: Path
) -> None:
    output, before = tmp_path / "direct.h5", hosts.sent_bytes()
    ended = hosts.run(job_of(tree, output, "--hand_over", "direct"))
    assert (ended.status, ended.err) == (0, "")
    assert output.read_bytes() == serial
    assert 0 < hosts.sent_bytes() - before < len(serial) / 20


def test_a_host_without_the_output_folder_cannot_write_directly(hosts: Hosts, tree: Tree) -> None:
    output = hosts.local / "hidden.h5"
    ended = hosts.run(job_of(tree, output, "--hand_over", "direct"))
    one_error(ended, "rank 1: ", f"{output}.partial", "--hand-over auto", status=1)
    assert not [name for name in left(hosts.local) if name.startswith("hidden")]


def test_a_host_with_a_copy_of_the_interrupted_run_cannot_write_directly(
    hosts: Hosts, tree: Tree
) -> None:
    job = job_of(tree, hosts.local / "copied.h5")
    one_error(hosts.run(job, Fault("raise", "syncing")), "--resume continues", status=1)
    partial = hosts.local / "copied.h5.partial"
    shutil.copy2(partial, hosts.copies)
    ended = hosts.run([*job, "--hand_over", "direct", "--resume"])
    one_error(ended, "rank 1: ", str(partial), "--hand-over auto", status=1)


def test_direct_is_refused_on_a_file_system_that_loses_writes_of_several_hosts(
    hosts: Hosts, tree: Tree, tmp_path: Path
) -> None:
    job = [*job_of(tree, tmp_path / "nfs.h5", "--hand_over", "direct"), "--mpi_run"]
    words = [sys.executable, "-c", INCOHERENT, str(tmp_path), *job]
    one_error(run([*hosts.launcher, *words], REPO), "is on ", "--hand-over auto", status=1)
    assert left(tmp_path) == set()
    alone = run(words, REPO)  # one host sees its own writes on any file system
    assert (alone.status, alone.err) == (0, "")


def test_the_output_is_complete_only_when_every_host_has_synced_its_part(
    hosts: Hosts, tree: Tree, serial: bytes, tmp_path: Path
) -> None:
    job = job_of(tree, tmp_path / "mine.h5", "--hand_over", "direct")
    ended = hosts.run(job, Fault("raise", "syncing", rank=1))
    message = one_error(ended, "rank 1: ", "made to fail", status=1)
    assert "--resume continues" in message
    assert "mine.h5" not in left(tmp_path)
    assert finished_blocks(tmp_path / "mine.h5.checkpoint") == len(tree.pairs)
    ended = hosts.run([*job, "--resume"])
    assert (ended.status, ended.err) == (0, "")
    assert (tmp_path / "mine.h5").read_bytes() == serial
