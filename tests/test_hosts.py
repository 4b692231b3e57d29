"""Ranks on several hosts, made from network namespaces on this machine, joined by TCP."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Tree
from tests.running import REPO, mpiexec, run

HOSTS = 3
OPTIONS = ("--patch-size", "p12", "--rot_augment", "--ds_augment", "--air_threshold", "--no-report")

#: Starts MPICH's proxy on a host: `mpiexec` calls it as it would call ssh. Each host has its own
#: name, and all but the first see nothing in the folder of the output.
LAUNCHER = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=${{1##*.}}
shift
hide=":"
[ "$host" = 1 ] || hide="mount -t tmpfs none {results}"
exec ip netns exec "{prefix}$host" unshare --uts --mount \\
    sh -c "$hide && hostname host$host && exec $*"
"""


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[str]]:
    """Make hosts with an address each, on one switch; return what mpiexec needs to use them."""
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
    results = tmp_path / "results"
    results.mkdir()
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(prefix=prefix, results=results))
    launcher.chmod(0o755)
    addresses = ",".join(f"10.77.0.{i}" for i in range(1, HOSTS + 1))
    yield [
        *("ip", "netns", "exec", f"{prefix}1", mpiexec(), "-launcher", "ssh", "-launcher-exec"),
        *(str(launcher), "-iface", "eth0", "-hosts", addresses, "-n", "4"),
    ]
    for undo in reversed(made):
        _ip(undo)


def test_three_hosts_give_the_bytes_of_a_serial_run_and_one_needs_the_output_folder(
    hosts: list[str], tree: Tree, tmp_path: Path
) -> None:
    job = [sys.executable, str(REPO / "main.py"), "--input-folder", str(tree.root), *OPTIONS]
    job.append("--output-fname")
    many = tmp_path / "results" / "many.h5"
    ended = run([*hosts, *job, many, "--mpi_run"], tmp_path)
    assert ended.status == 0, ended.err
    one = tmp_path / "one.h5"
    assert run([*job, one], tmp_path).status == 0
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, many)]
    assert sums[0] == sums[1]
