"""How the nodes of a machine are started again, or not. The nodes are small programs in their place."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tasks.endings import EXIT_NOT_STARTED
from workers import launch
from workers.devices import Device
from workers.planning import NodePlan

SUPERVISE = """
import sys
from tasks import backoff
from workers import launch
from workers.devices import Device
from workers.planning import NodePlan

programs = sys.argv[1:]
launch.POLL_S = backoff.FIRST_S = backoff.LONGEST_S = 0.01
launch._command = lambda plan: [sys.executable, "-c", programs[plan.slots]]
sys.exit(launch._supervise([NodePlan(Device("cpu"), number, 1) for number in range(len(programs))]))
"""
# Lines are written at once: those of several processes meet in one pipe.
HOPELESS = f"import os, sys; os.write(1, b'tried\\n'); sys.exit({EXIT_NOT_STARTED})"
STEADY = "import os, time; os.write(1, b'steady\\n'); time.sleep(60)"
SHAKY = "import os; os.write(1, b'shaky\\n'); os.abort()"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("steady", flush=True)
while True: time.sleep(60)
"""
#: A node on one CPU, and one that is not pinned; the device's number tells them apart.
PINNED = """
import os, sys
from workers import launch
from workers.devices import Device
from workers.planning import NodePlan

cpus = os.sched_getaffinity(0)
program = "import os, sys; where = os.environ['PENSTOCK_SHOWN_DEVICE'], *sorted(os.sched_getaffinity(0)); "
program += "os.write(1, f'{where}\\\\n'.encode()); sys.exit(EXIT)"
launch._command = lambda plan: [sys.executable, "-c", program]
launch._supervise([NodePlan(Device("cpu:7", cpus=frozenset([max(cpus)])), 1, 1), NodePlan(Device("cpu"), 1, 1)])
""".replace("EXIT", str(EXIT_NOT_STARTED))


def supervise(*programs) -> subprocess.Popen[str]:
    """Start a supervisor of programs that stand in for nodes."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SUPERVISE, *programs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nodes_that_cannot_start_are_left_alone_and_end_the_supervisor_when_all_are_so():
    """Each is tried once: starting it again would end in the same way."""
    process = supervise(HOPELESS, HOPELESS)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == EXIT_NOT_STARTED
    assert out.count("tried") == 2


def test_a_node_that_cannot_start_leaves_the_others_alone():
    """SIGTERM ends them, and the supervisor with 0."""
    process = supervise(HOPELESS, STEADY)
    assert process.stdout is not None
    assert sorted(process.stdout.readline().strip() for _ in range(2)) == ["steady", "tried"]
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")


def test_a_node_that_dies_is_started_again_with_a_line_that_says_how():
    """As often as it takes."""
    process = supervise(SHAKY)
    assert process.stdout is not None
    assert process.stderr is not None
    assert [process.stdout.readline().strip() for _ in range(3)] == ["shaky"] * 3
    assert "the node on cpu ended: its process was killed by SIGABRT; starting it again" in process.stderr.readline()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_second_ctrl_c_ends_nodes_at_once():
    """They get SIGQUIT, which here nobody handles."""
    process = supervise(STUBBORN)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "steady"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().strip() == "asked"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_node_runs_on_the_cpus_of_its_device_and_those_after_it_do_not():
    """Its slots inherit them, before they load weights, which therefore lie in the memory next to them."""
    done = subprocess.run([sys.executable, "-P", "-c", PINNED], capture_output=True, text=True, check=True, timeout=60)
    cpus = sorted(os.sched_getaffinity(0))
    assert set(done.stdout.splitlines()) == {str(("cpu:7", cpus[-1])), str(("cpu", *cpus))}


def test_cpus_that_went_away_are_said_and_the_node_runs_all_the_same(capsys):
    """Slower, but it does."""
    launch._pin(Device("cpu:7", cpus=frozenset([1023])))
    assert "penstock worker: the node on cpu:7 is not pinned to its CPUs: Invalid argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("cpu", "cpu"),
        ("cpu:1", "cpu1"),
        ("cuda:0", "cuda0"),
        ("cuda:MIG-c7384736-a75d-5afc-978f-x", "cudaMIG-c7384736"),
    ],
)
def test_a_node_is_called_by_its_device(device, name):
    """By the beginning of a UUID; the random part keeps nodes apart."""
    assert re.fullmatch(rf"{name}-[0-9a-f]{{6}}@%h", launch._name(NodePlan(Device(device), 1, 1)))
