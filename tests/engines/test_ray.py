"""Studies on a Ray cluster of two nodes, both on this machine, one of which is killed."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import MINUTES, Study, wait_for

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUIET = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
"""What all commands of the cluster are given; without a token of its own, Ray would ask for the user's in some of them."""
NODE = "PQUANT_TESTS_RAY_NODE"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(deeper for child in found for deeper in descendants(int(child)))]


def kill(pid: int) -> None:
    """Kill a process and all that it has started, at once, as a machine that fails does."""
    for one in descendants(pid):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass


@contextmanager
def node(name: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node with one core and one pretended GPU."""
    command = [*RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=1", "--object-store-memory=100000000", *arguments]
    with (folder / name).open("w") as said:
        process = subprocess.Popen(
            command, env=os.environ | QUIET | {NODE: name, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        kill(process.pid)
        process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """Return the address of a cluster, and its nodes by name."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = [
        "--head",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir=/tmp/ray-{port}",
    ]
    with ExitStack() as held:
        nodes = {"head": held.enter_context(node("head", tmp_path, *head))}
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head").read_text(), "the head node")
        nodes["second"] = held.enter_context(node("second", tmp_path, f"--address={address}"))
        wait_for(lambda: "2.0 CPU" in status(address), "the second node")
        yield address, nodes
    shutil.rmtree(f"/tmp/ray-{port}")


def status(address: str) -> str:
    """Return what ``ray status`` says of a cluster."""
    return subprocess.run([*RAY, "status", f"--address={address}"], env=os.environ | QUIET, capture_output=True, text=True, timeout=60).stdout


def node_of(study: Study, trial: int) -> str | None:
    """Return the node of the process that holds a trial's lock."""
    inode = str((study.folder / "locks" / f"trial-{trial}.lock").stat().st_ino)
    pids = [line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if line.split()[5].rpartition(":")[2] == inode]
    variables = [one for pid in pids for one in Path("/proc", pid, "environ").read_text().split("\0") if one.startswith(NODE)]
    return variables[0].partition("=")[2] if variables else None


def test_a_study_over_two_nodes_goes_on_when_one_of_them_dies(cluster: tuple[str, dict[str, subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    address, nodes = cluster
    study = Study(tmp_path / "study", 60, QUIET)
    launcher = [
        "hydra/launcher=ray",
        "hydra.sweeper.n_jobs=2",
        f"+hydra.launcher.ray.init.address={address}",
        "+hydra.launcher.ray.remote.num_gpus=0.5",
    ]
    with study.started(*launcher, "finetuning.num_trials=4") as process:
        study.wait_for_epoch(0, 5)
        study.wait_for_epoch(1, 5)
        places = {node_of(study, trial): trial for trial in (0, 1)}
        assert places.keys() == {"head", "second"}
        assert "1.0/2.0 GPU" in status(address), "each of two trials takes half a GPU"
        done = study.trained(places["second"])
        kill(nodes["second"].pid)
        assert process.wait(timeout=15 * MINUTES) == 0, study.said
    study.check_complete(4)
    assert "trials: 4 complete, 0 stopped early, 0 failed" in study.said
    assert any(f"resuming after epoch {epoch}" in study.said for epoch in (done - 1, done, done + 1))
