"""One slot over two devices, both of them the CPU: real processes, and nothing left of any of them."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from tests.acceptance.conftest import Cluster, Shell, Started, texts, tree, wait_until

ROWS, CHUNK_ROWS = 240, 8
SHARDED = ("--devices", "cpu,cpu", "--shard")
#: Seconds for a slot that starts again and again: each time two processes import torch, one after the other.
SEVERAL_STARTS_S = 200
#: So that a slot does not probe what nobody here measures.
BUDGET = ("--max-batch-tokens", 512)

MAKE = """
import sys
from pathlib import Path
from tests.tiny_models import tiny_decoder
tiny_decoder(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a tiny Qwen2 embedding model, in a process of its own: this one needs no torch."""
    folder = tmp_path_factory.mktemp("models") / "decoder"
    subprocess.run([sys.executable, "-c", MAKE, folder], check=True, capture_output=True)
    return str(folder)


def is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank other than 0."""
    try:
        return "workers.sharding.rank" in process.cmdline()
    except psutil.Error:
        return False


def ranks_below(started: Started) -> list[psutil.Process]:
    """Return the ranks, other than 0, of all slots that a command has started."""
    return [process for process in tree(started.pid) if is_rank(process)]


def check_gone(process: psutil.Process) -> None:
    """Wait until a process is gone."""
    wait_until(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, f"process {process.pid} is gone"
    )


def done_chunks(shell: Shell) -> int:
    """Return how many result objects the embedded runs have written."""
    return sum(1 for _ in (shell.folder / "state").rglob("result/*.arrow"))


def vectors(shell: Shell, name: str) -> np.ndarray:
    """Return what a run wrote."""
    return np.load(shell.folder / name)


def encode(shell: Shell, model: str, name: str, *options: object) -> Started:
    """Start an embedded run."""
    rows = ("--chunk-rows", CHUNK_ROWS, *BUDGET)
    return shell.start("encode", "corpus.txt", "--model", model, *rows, "--out", name, *options)


def test_a_killed_rank_costs_a_restart_and_no_row(shell: Shell, model: str) -> None:
    """All ranks die and come back together, and the vectors are those of a slot on one device."""
    shell.write("corpus.txt", texts(ROWS))
    sharded = encode(shell, model, "sharded.npy", *SHARDED, "tensor")
    wait_until(lambda: done_chunks(shell) >= 3, "the job is under way")
    (rank,) = ranks_below(sharded)
    slot = rank.parent()
    assert slot is not None
    rank.kill()
    check_gone(slot)
    (new,) = wait_until(lambda: ranks_below(sharded), "new ranks are there")
    sharded.wait(SEVERAL_STARTS_S)
    said = sharded.finish()
    assert sharded.returncode == 0, said
    check_gone(new)
    whole = encode(shell, model, "whole.npy", "--workers", 1, "--devices", "cpu")
    assert whole.finish()
    assert whole.returncode == 0
    np.testing.assert_allclose(vectors(shell, "sharded.npy"), vectors(shell, "whole.npy"), atol=1e-5, rtol=0)


def test_no_rank_outlives_its_slot_or_its_node(cluster: Cluster, model: str) -> None:
    """However rank 0 or the node's parent dies, the other ranks go too; and the worker starts them again."""
    worker = start_worker(cluster, model)
    (rank,) = ranks_below(worker)
    slot = rank.parent()
    assert slot is not None
    slot.kill()
    check_gone(rank)
    wait_until(lambda: ranks_below(worker), "new ranks are there")
    (rank,) = ranks_below(worker)
    worker.kill()  # the node's parent itself, as one node needs no supervisor
    check_gone(rank)


def test_a_sharded_worker_stops_in_peace(cluster: Cluster, model: str) -> None:
    """SIGTERM to all of its processes, as a container's stop may send it, is no death of a rank."""
    worker = start_worker(cluster, model)
    (rank,) = ranks_below(worker)
    rank.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    said = worker.finish()
    assert worker.returncode == 0, said
    check_gone(rank)
    assert "Slot ends" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "tensor", "--devices", "cpu"), "there is cpu alone"),
        ((*SHARDED, "fsdp", "--processes-per-device", "2"), "leave --processes-per-device 2 out"),
        ((*SHARDED, "tensor", "--compile"), "does not go with --compile"),
        ((*SHARDED, "tensor", "--quantize", "int8"), "does not go with --quantize int8"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(shell: Shell, model: str, options: tuple, said: str) -> None:
    """Before anything is loaded."""
    done = shell.run("worker", "--model", model, *options, "--plan", code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_plan_shows_one_slot_with_all_its_devices(shell: Shell, model: str) -> None:
    """Processes, threads and memory of each of them."""
    (node,) = shell.json("worker", "--model", model, *SHARDED, "tensor", "--plan")["nodes"]
    assert (node["device"], node["slots"], node["ranks"]) == ("cpu+cpu", 1, 2)


def start_worker(cluster: Cluster, model: str) -> Started:
    """Start a sharded worker and wait until its slot is ready."""
    worker = cluster.shell.start("worker", "--model", model, *SHARDED, "tensor", *BUDGET)
    wait_until(cluster.slots, "the slot is ready")
    return worker


#: Python runs a file of this name at its start. Rank 1 fails when rank 0 has begun to wait for it.
NO_DEVICE = """
import sys
if any("sharding.rank" in word for word in sys.orig_argv):
    import time
    from tasks.errors import UsageError
    from workers.sharding import group

    def fail(rank, n_ranks, meeting, device):
        while not meeting.exists():
            time.sleep(0.05)
        raise UsageError("there is no such device")

    group.join_group = fail
"""


def test_a_rank_that_cannot_start_ends_the_worker_with_its_reason(cluster: Cluster, model: str) -> None:
    """Though rank 0 waits for it, and would for hours; and no new slot is tried in vain."""
    (cluster.shell.folder / "sitecustomize.py").write_text(NO_DEVICE)
    worker = cluster.shell.start(
        "worker", "--model", model, *SHARDED, "tensor", *BUDGET, PYTHONPATH=str(cluster.shell.folder)
    )
    worker.wait(SEVERAL_STARTS_S)
    said = worker.finish()
    assert worker.returncode not in {0, None}, said
    assert "failed: there is no such device" in said
    assert "died" not in said


#: Python runs a file of this name at its start. In ranks other than 0 a batch of many tokens then finds no memory.
SHORTAGE = """
import sys
if any("sharding.rank" in word for word in sys.orig_argv):
    import torch
    from workers.sharding import parts

    run = parts.ForwardPart._run

    def run_or_fail(part, features):
        if features["input_ids"].numel() > {most}:
            raise torch.OutOfMemoryError("CUDA out of memory, as this test wants it")
        return run(part, features)

    parts.ForwardPart._run = run_or_fail
"""


@pytest.mark.parametrize(("budget", "most"), [(BUDGET, 256), ((), 512)], ids=["at work", "while probing"])
def test_a_shortage_on_one_rank_makes_the_batches_smaller_and_spares_the_rows(
    shell: Shell, model: str, budget: tuple, most: int
) -> None:
    """The group ends, as its ranks are out of step; the next one keeps to half as much, and no row is blamed."""
    (shell.folder / "sitecustomize.py").write_text(SHORTAGE.format(most=most))
    shell.write("corpus.txt", texts(40))
    options = ("--chunk-rows", 40, *budget, *SHARDED, "tensor")
    started = shell.start(
        "encode", "corpus.txt", "--model", model, *options, "--out", "v.npy", PYTHONPATH=str(shell.folder)
    )
    started.wait(SEVERAL_STARTS_S)
    said = started.finish()
    assert started.returncode == 0, said
    assert not np.isnan(vectors(shell, "v.npy")).any()
    assert list((shell.folder / "state").rglob("shortage-*.json")), "there was no shortage"
