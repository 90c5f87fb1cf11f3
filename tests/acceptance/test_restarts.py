"""Processes of an embedded run that are killed one by one: the command goes on, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.acceptance.conftest import Shell, fake_vectors, texts, tree, wait_until

SLOW = "fake:ms_per_row=5"
COMMAND = ("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 10, "--workers", 2)


def victims(pid: int) -> dict[str, psutil.Process]:
    """Return the processes of a command by their parts."""
    found = {}
    for process in filter(is_alive, tree(pid)[1:]):
        line = " ".join(process.cmdline())
        if "tasks.lifeline" in line:
            found["guard"] = process
        elif "valkey-server" in line:
            found["server"] = process
        elif "workers.launch" in line and process.ppid() == pid:
            found["node"] = process
    return found


def results_of(shell: Shell) -> list[Path]:
    """Return the chunk results that are in the store."""
    return list(shell.folder.glob("state/penstock/runs/*/store/jobs/*/result/*.arrow"))


def is_alive(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("victim", "says", "loads"),
    [
        ("server", "The embedded server ended. Starting it again", 2),
        ("guard", "The embedded server ended. Starting it again", 2),
        ("node", "The embedded workers ended: its process was killed by SIGKILL", 4),
    ],
)
def test_a_part_that_is_killed_is_started_again(shell: Shell, victim: str, says: str, loads: int) -> None:
    """The job goes on without a person; models are loaded again only if their own processes died."""
    shell.write("corpus.txt", texts(600))
    command = shell.start(*COMMAND)
    wait_until(lambda: len(results_of(shell)) >= 3, "a few chunks have results")
    victims(command.pid)[victim].kill()
    said = command.finish()
    assert command.returncode == 0, said
    assert said.count(says) == 1
    (log,) = shell.folder.glob("state/penstock/runs/*/worker.log")
    assert log.read_text().count(" ready: ") == loads
    shell.run("collect", said.partition("job: ")[2].split()[0], "--out", "v.npy")
    np.testing.assert_array_equal(np.load(shell.folder / "v.npy"), fake_vectors(texts(600)))


@pytest.mark.parametrize("victim", ["guard", "node"])
def test_nothing_outlives_a_command_that_is_killed_after_one_of_its_parts(shell: Shell, victim: str) -> None:
    """Neither what it started first, nor what it started again."""
    shell.write("corpus.txt", texts(3000))
    command = shell.start(*COMMAND)
    wait_until(lambda: len(results_of(shell)) >= 3, "a few chunks have results")
    family = tree(command.pid)
    first = victims(command.pid)[victim]
    first.kill()
    wait_until(lambda: victims(command.pid).get(victim, first).pid != first.pid, "it is started again")
    family += tree(command.pid)
    command.kill()
    wait_until(lambda: not any(is_alive(process) for process in family), "all its processes are gone")
