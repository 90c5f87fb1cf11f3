"""How the nodes of a machine are started again, or not. The nodes are small programs in their place."""

from __future__ import annotations

import signal
import subprocess
import sys

from tasks.endings import EXIT_NOT_STARTED

SUPERVISE = """
import sys
from tasks import backoff
from workers import launch
from workers.planning import NodePlan

programs = sys.argv[1:]
launch.POLL_S = backoff.FIRST_S = backoff.LONGEST_S = 0.01
launch._command = lambda plan: [sys.executable, "-c", programs[plan.slots]]
sys.exit(launch._supervise([NodePlan("cpu", number, 1) for number in range(len(programs))]))
"""
HOPELESS = f"import sys; print('tried', flush=True); sys.exit({EXIT_NOT_STARTED})"
STEADY = "import time; print('steady', flush=True); time.sleep(60)"
SHAKY = "import os; print('shaky', flush=True); os.abort()"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("steady", flush=True)
while True: time.sleep(60)
"""


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
