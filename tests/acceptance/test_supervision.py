"""A machine with several devices: a node for each, looked after by one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tasks.lifeline import LIFELINE_VARIABLE
from tests.acceptance.conftest import Cluster, tree, wait_until

#: Two nodes as `workers.launch` starts them on a machine with two devices; here both are the CPU.
TWO_NODES = """
import sys
from workers.launch import _supervise
from workers.devices import Device
from workers.planning import NodePlan
sys.exit(_supervise([NodePlan(Device("cpu"), 1, 1)] * 2))
"""


@pytest.fixture
def supervisor(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of two nodes that hangs on our lifeline."""
    environment = {**cluster.shell.environment, LIFELINE_VARIABLE: "1", "PENSTOCK_MODEL": "fake"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", TWO_NODES], env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(cluster.slots()) == 2, "both nodes are ready")
    yield process
    for member in tree(process.pid):
        member.kill()
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def test_a_node_that_dies_is_started_again(cluster: Cluster, supervisor: subprocess.Popen[bytes]) -> None:
    """The other one works on meanwhile."""
    nodes = {slot["node"] for slot in cluster.slots()}
    victim, other = psutil.Process(supervisor.pid).children()
    victim.kill()
    wait_until(lambda: len({slot["node"] for slot in cluster.slots()} - nodes) == 1, "a new node is ready")
    assert other.is_running()


def test_all_nodes_end_when_the_lifeline_is_cut(cluster: Cluster, supervisor: subprocess.Popen[bytes]) -> None:
    """Nothing lives on after the command that started it, even by SIGKILL."""
    family = tree(supervisor.pid)
    assert len(family) >= 5  # the supervisor, two nodes, two slots
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    supervisor.wait(30)
    _, left = psutil.wait_procs(family[1:], timeout=20)
    assert left == []


def test_sigterm_ends_all_nodes_in_peace(cluster: Cluster, supervisor: subprocess.Popen[bytes]) -> None:
    """Exit code 0, as a service manager expects."""
    supervisor.terminate()
    assert supervisor.wait(30) == 0
    assert cluster.slots() == []
