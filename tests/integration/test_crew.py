"""What becomes of a sharded slot when one of its ranks fails, without a model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.endings import EXIT_NOT_STARTED, EXIT_RANK_FULL, EXIT_RANK_LOST, EXIT_ROW_FULL
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.causal_checks import Example
from workers.sharding import crew as crews
from workers.sharding.crew import Crew, environment_of
from workers.sharding.orders import Order
from workers.sharding.start import Start

PATIENCE_S = 120
ORDER = Order("forward")


class Left(BaseException):
    """This process would have ended, with this status."""


class Rank:
    """Another rank, of which a test says what it says."""

    def __init__(self, rank, arguments, environment, on_end):
        self.rank, self.state, self.error, self.status, self.on_end = rank, "ready", "", None, on_end
        self.sent = 0

    def fail(self, state, error=""):
        """End in this state."""
        self.state, self.error, self.status = state, error, 1

    def send(self, data):
        """Count."""
        self.sent += 1

    def ends_within(self, timeout_s):
        """As of a process."""
        return self.status is not None

    def kill(self):
        """End."""
        self.status = -9


@pytest.fixture
def crew(monkeypatch, tmp_path):
    """Return a crew of two, in a process that raises instead of ending."""

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(crews, "Member", Rank)
    monkeypatch.setattr(crews, "START", Start())
    monkeypatch.setattr(crews.os, "_exit", leave)
    monkeypatch.setattr(crews.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    return Crew("embedding", ModelSpec.parse("org/model"), "cpu", Settings(shard="tensor"), 2)


def other(crew):
    """Return its other rank."""
    (rank,) = crew._members
    return rank


def raising(exc):
    """Return what raises this."""

    def run():
        raise exc

    return run


def no_memory():
    """Raise as a device does."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_before_the_start_the_words_of_the_rank_that_failed_are_raised(crew):
    """Not those of the group, which is torn for want of it; and nothing is run without that rank afterwards."""
    other(crew).fail("failed", "--shard tensor: no such kernel")
    with pytest.raises(UsageError, match="no such kernel"):
        crew.perform(ORDER, 4, raising(RuntimeError("Connection closed by peer")))
    with pytest.raises(UsageError, match="no such kernel"):
        crew.perform(ORDER, 4, lambda: pytest.fail("this ran without the other rank"))
    assert other(crew).sent == 1


def test_before_the_start_an_error_of_rank_0_stays_its_own(crew):
    """Whoever catches it cannot go on."""
    with pytest.raises(KeyError, match="a"):
        crew.perform(ORDER, 4, raising(KeyError("a")))
    with pytest.raises(UsageError, match="rank 0 failed: KeyError in run"):
        crew.perform(ORDER, 4, lambda: None)


def test_before_the_start_a_shortage_that_nothing_helps_is_no_shortage(crew):
    """Else probing would take it for its end, and go on without ranks."""
    with pytest.raises(UsageError, match="a device has no memory for 4 rows") as caught:
        crew.perform(ORDER, 4, no_memory)
    assert not isinstance(caught.value, torch.OutOfMemoryError)


@pytest.mark.parametrize(("n_rows", "status", "kept"), [(4, EXIT_RANK_FULL, 1), (1, EXIT_ROW_FULL, 0)])
def test_a_row_alone_leaves_the_budget_as_it_is(crew, n_rows, status, kept):
    """It is the row that is too long, and not the batch."""
    crews.START.is_over = True
    told = []
    crew.on_shortage = lambda: not told.append(None)
    with pytest.raises(Left, match=str(status)):
        crew.perform(ORDER, n_rows, no_memory)
    assert len(told) == kept


def test_what_belongs_to_a_batch_is_no_row_alone(crew):
    """The output layer's rows are gathered for all of them."""
    crews.START.is_over, crew.on_shortage = True, lambda: True
    crew.perform(ORDER, 4, lambda: None)
    with pytest.raises(Left, match=str(EXIT_RANK_FULL)):
        crew.perform(ORDER, None, no_memory)


def test_of_two_threads_that_notice_a_shortage_one_decides(crew):
    """The second one would find the note being written, and blame the rows."""
    crews.START.is_over = True
    told, has_entered, may_go_on = [], threading.Event(), threading.Event()

    def keep_less():
        told.append(None)
        has_entered.set()
        assert may_go_on.wait(PATIENCE_S)
        return True

    crew.on_shortage = keep_less
    crew._n_rows = 4

    def notice():
        with pytest.raises(Left):
            crew._run_out("rank 1")

    first = threading.Thread(target=notice)
    first.start()
    assert has_entered.wait(PATIENCE_S)
    assert not crew._running_out.acquire(blocking=False)
    may_go_on.set()
    first.join()
    assert len(told) == 1


def test_rank_0_that_hangs_is_spoken_for(crew, monkeypatch):
    """Whoever started the slot hears the rank's reason, and the process is not replaced for ever."""
    monkeypatch.setattr(crews, "LOAD_GRACE_S", 0)
    told = []
    crews.START.on_failure = told.append
    other(crew).fail("failed", "--shard tensor: no such device")
    crew._note_end(other(crew))
    assert told == ["--shard tensor: no such device"]


def test_rank_0_that_says_it_itself_is_not_spoken_for(crew, monkeypatch):
    """Nor after the start, when a lost rank ends this process."""
    told = []
    crews.START.on_failure = told.append
    other(crew).fail("failed", "RuntimeError")
    threading.Timer(0, crew.end).start()
    crew._note_end(other(crew))
    assert told == []
    crew._over.clear()
    crews.START.is_over = True
    with pytest.raises(Left, match=str(EXIT_RANK_LOST)):
        crew._note_end(other(crew))


def test_a_rank_is_told_no_secret(monkeypatch, tmp_path):
    """Neither by variables nor by the settings file, and it reads what it is told."""
    (tmp_path / "penstock.yaml").write_text("broker_url: redis://:hunter2@host/0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)
    for name in ("PENSTOCK_STORE_URL", "PENSTOCK_CACHE_URL", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, "redis://:hunter2@host/1")
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.setenv(f"PENSTOCK_BROKER_TLS_{name}", "")
    monkeypatch.setenv("PENSTOCK_SIGNING_KEY_FILE", "/keys/hunter2")
    folder = tmp_path / "ranks"
    folder.mkdir()
    environment = environment_of(Settings(shard="fsdp", precision="bf16", memory_ratio=0.5), folder)
    assert not [name for name, value in environment.items() if "hunter2" in value]
    assert not [name for name in environment if name.startswith("PENSTOCK_BROKER")]
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    loaded = Settings.load()
    assert (loaded.shard, loaded.precision, loaded.memory_ratio) == ("fsdp", "bf16", 0.5)
    assert loaded.broker_url is None


def test_a_rank_that_cannot_start_ends_in_peace(tmp_path):
    """It says why; and no abort of Python's, one thread of which waits for orders."""
    environment = {**os.environ, "PENSTOCK_SHARD": "nonsense", "PENSTOCK_CONFIG": ""}
    command = [sys.executable, "-m", "workers.sharding.rank", "1", "2", str(tmp_path / "ranks" / "m"), "embedding"]
    with subprocess.Popen(
        [*command, "cpu", "{}"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as rank:
        assert rank.wait(PATIENCE_S) == 1
        assert "shard" in rank.stdout.read()


#: Python runs a file of this name at its start. Rank 1 fails before it meets the others, of whom rank 0 waits for ever.
HANG = """
import sys, threading
print("a line that is no word of a rank")
if any("sharding.rank" in word for word in sys.orig_argv):
    from workers.sharding import group
    from tasks.errors import UsageError

    def fail(*_):
        raise UsageError("there is no such device")

    group.join_group = fail
elif any("tests.sharded" in word for word in sys.orig_argv):
    from workers.sharding import crew

    crew.LOAD_GRACE_S = 0.1
    crew.Crew.meet = lambda _: threading.Event().wait()
"""


def test_a_rank_that_fails_while_rank_0_waits_ends_the_slot_with_its_reason(monkeypatch, tmp_path):
    """With the status of what is not started again."""
    (tmp_path / "sitecustomize.py").write_text(HANG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    command = [sys.executable, "-m", "tests.sharded", "tensor", "org/model", "encode", str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == EXIT_NOT_STARTED, done.stderr
    assert "Slot failed to start: there is no such device" in done.stderr


def test_a_model_that_cannot_reuse_prefixes_among_ranks_is_refused():
    """A rank that failed does not come back; one process goes on without reuse."""
    example = Example.__new__(Example)
    example._spec = ModelSpec.parse("org/model")
    example._read_behind_prefixes = raising(TypeError("no such argument"))
    example._causal = SimpleNamespace(recovers=True)
    assert "TypeError" in example._fault_of_reuse(np.zeros((1, 2)))
    example._causal.recovers = False
    with pytest.raises(UsageError, match=r"cannot be reused with it \(TypeError in run"):
        example._fault_of_reuse(np.zeros((1, 2)))
