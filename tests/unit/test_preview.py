"""What ``penstock worker --plan`` prints."""

from __future__ import annotations

import json
import re

import pytest

from tests.machines import GIB, H200, UUIDS, Machine, gpu_line
from workers import preview
from workers.preview import _ranges


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return a machine, and the settings of ``penstock worker --model fake``."""
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)
    monkeypatch.setenv("PENSTOCK_MODEL", "fake")
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return Machine(monkeypatch, tmp_path)


def test_a_person_sees_each_node_with_its_reasons(host, capsys):
    """Device, slots, threads, place, memory, environment."""
    host.has_cores(8, numa=2)
    (host.proc / "cpuinfo").write_text("model name : EPYC [red]9654\n")
    assert preview.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("fake: 2 nodes, 8 slots in all. Nothing was started.\n")
    cells = {re.sub(r"\s*│\s*", "|", line).strip("|") for line in said.splitlines()}
    assert {
        "device|EPYC [red]9654",
        "slots|4|4 physical cores / 1 thread",
        "threads of a slot|1|4 physical cores / 4 slots",
        "pinned to|CPUs 4-7|of NUMA node 1",
        "memory of a slot|0.1 GiB|no weights",
        "memory in all|0.3 GiB|24.0 GiB left below 80% of 40.0 GiB",
    } <= cells
    assert "PENSTOCK_SHOWN_DEVICE=cpu:1" in said


def test_memory_that_will_not_suffice_is_said(host, capsys, monkeypatch):
    """What was asked for counts, but not unseen."""
    host.has_memory(free=17 * GIB)
    monkeypatch.setenv("PENSTOCK_PROCESSES_PER_DEVICE", "20")
    assert preview.main([]) == 0
    assert "TOO MUCH: only 1.0 GiB left below 80% of 80.0 GiB" in capsys.readouterr().out


def test_a_machine_reads_the_same(host, capsys):
    """One JSON object, with sizes in bytes."""
    host.has_gpus(gpu_line(0))
    assert preview.main(["--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"] == "fake"
    (node,) = plan["nodes"]
    assert (node["device"], node["title"], node["uuid"]) == ("cuda:0", H200, UUIDS[0])
    assert (node["slots"], node["threads"], node["pinned_to_cpus"]) == (1, 8, None)
    assert node["room_bytes"] == node["free_bytes"] - round(0.2 * node["memory_bytes"])
    assert node["environment"]["CUDA_VISIBLE_DEVICES"] == UUIDS[0]


def test_memory_that_nobody_tells_is_no_number(host, capsys):
    """Neither for people nor for machines."""
    host.has_gpus(f"0, {UUIDS[0]}, 0000000F:01:00.0, [N/A], [N/A], [N/A], NVIDIA GB10\n")
    assert preview.main([]) == 0
    assert "the driver does not tell how much it has" in capsys.readouterr().out
    assert preview.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"][0]["room_bytes"] is None


def test_what_is_wrong_is_one_line(host, capsys, monkeypatch):
    """With the exit status of bad usage, as when the worker starts."""
    monkeypatch.setenv("PENSTOCK_DEVICES", "cuda:0")
    assert preview.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("penstock worker: --devices cuda:0: no CUDA device is usable here")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("numbers", "text"), [([0, 1, 2, 3, 8, 10, 11], "0-3,8,10-11"), ([5], "5"), ([], ""), ([0, 2], "0,2")]
)
def test_cpus_are_written_as_the_kernel_writes_them(numbers, text):
    """Ranges and single ones."""
    assert _ranges(numbers) == text
