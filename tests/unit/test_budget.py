"""Token budgets: found by probing, kept, lowered and raised."""

import json
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from workers import budget
from workers.budget import CALM_BATCHES, FIRST_PROBE, LEAST, Probed, TokenBudget, find, probe

NAME = {"weights": "w1", "device": "a device"}


class Device:
    """A device of which a test says how fast batches go and how much memory they take."""

    ratio = 0.8

    def __init__(self, *, knee=1024, room_bytes=10**9, bytes_per_token=1000, s_per_token=1e-6):
        self.knee, self.room_bytes, self.bytes_per_token = knee, room_bytes, bytes_per_token
        self.s_per_token = s_per_token
        self.peak_bytes = 0
        self.released = 0
        self.ran = []
        self.now = 0.0

    def reset_peak(self):
        """As of a GPU."""
        self.peak_bytes = 0

    def release(self):
        """Count."""
        self.released += 1

    def run(self, tokens):
        """Run a batch: as fast as the knee allows, if there is memory."""
        self.ran.append(tokens)
        if tokens * self.bytes_per_token > self.room_bytes:
            raise MemoryError
        self.peak_bytes = max(self.peak_bytes, tokens * self.bytes_per_token)
        self.now += max(tokens, self.knee) * self.s_per_token


@pytest.fixture
def probed(monkeypatch):
    """Probe a device by its own clock."""

    def run(device):
        monkeypatch.setattr(budget.time, "perf_counter", lambda: device.now)
        return probe(device.run, device)

    return run


def test_probing_stops_behind_the_knee(probed):
    """Beyond it a larger batch is no faster; two such tries are enough."""
    device = Device(knee=4096)
    assert probed(device).tokens == 4096
    assert max(device.ran) == 4 * 4096


def test_probing_takes_no_more_memory_than_it_may(probed):
    """A batch that would not fit by what the smaller ones took is not tried."""
    device = Device(knee=2**30, room_bytes=5_000_000, s_per_token=1e-12)
    assert probed(device).tokens == 4096
    assert max(device.ran) == 4096


def test_running_out_of_memory_ends_probing(probed):
    """Here nothing could be foretold: the host does not say what a batch takes."""
    device = Device(knee=2**30, room_bytes=5_000_000, s_per_token=1e-12)
    device.__class__ = type("Blind", (Device,), {"peak_bytes": property(lambda _: 0, lambda *_: None)})
    found = probed(device)
    assert (found.tokens, max(device.ran), found.bytes_per_token) == (4096, 8192, 0)


def test_a_slow_model_is_not_probed_for_long(probed):
    """A model that takes a second for the smallest batch gets what was seen."""
    device = Device(knee=1, s_per_token=1 / 256)
    assert probed(device).tokens == FIRST_PROBE
    assert device.now < 10


@pytest.mark.parametrize("most", [LEAST, 300, 1024])
def test_probing_tries_no_more_than_the_most(most):
    """A process that ran out of memory with more would do so again."""
    device = Device(knee=2**30, s_per_token=1e-12)
    assert probe(device.run, device, most).tokens <= most
    assert max(device.ran) <= most


def test_a_model_that_cannot_run_is_a_fault(probed):
    """No budget would help it."""
    with pytest.raises(MemoryError):
        probed(Device(room_bytes=10))


def test_any_other_fault_of_a_probe_is_not_hidden():
    """Only a shortage of memory ends probing in peace."""

    def run(tokens):
        if tokens > FIRST_PROBE:
            raise RuntimeError("an illegal instruction")

    with pytest.raises(RuntimeError, match="illegal"):
        probe(run, Device())


def test_a_budget_is_found_once(tmp_path):
    """The second slot reads it; another device, model or version probes anew."""
    device = Device(knee=512)
    first = find(tmp_path, NAME, device.run, device)
    n_ran = len(device.ran)
    assert find(tmp_path, NAME, device.run, device) == first
    assert len(device.ran) == n_ran
    find(tmp_path, {**NAME, "torch": "3"}, device.run, device)
    assert len(device.ran) > n_ran


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"found": {"tokens": 0}}', '{"found": 3}'])
def test_a_damaged_file_is_written_anew(tmp_path, text):
    """A budget that cannot be believed is none."""
    device = Device()
    find(tmp_path, NAME, device.run, device)
    (file,) = tmp_path.glob("budget-*.json")
    file.write_text(text)
    device.ran.clear()
    found = find(tmp_path, NAME, device.run, device)
    assert device.ran
    assert Probed.model_validate(json.loads(file.read_text())["found"]) == found


def test_an_old_budget_is_found_anew(tmp_path):
    """Drivers and neighbours change."""
    device = Device()
    find(tmp_path, NAME, device.run, device)
    (file,) = tmp_path.glob("budget-*.json")
    kept = json.loads(file.read_text())
    kept["found"]["probed_s"] = time.time() - budget.STALE_S - 60
    file.write_text(json.dumps(kept))
    device.ran.clear()
    find(tmp_path, NAME, device.run, device)
    assert device.ran


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path):
    """The process probes for itself."""
    (tmp_path / "file").write_text("")
    device = Device()
    assert find(tmp_path / "file" / "devices", NAME, device.run, device).tokens >= FIRST_PROBE


@pytest.mark.parametrize("fault", [OSError("no locks here"), BlockingIOError()])
def test_without_locks_slots_take_no_turns(tmp_path, monkeypatch, fault):
    """Some NFS has none, and whoever holds one may hang."""

    def refuse(*_):
        raise fault

    monkeypatch.setattr(budget.fcntl, "flock", refuse)
    monkeypatch.setattr(budget, "TURN_S", 0.2)
    device = Device(knee=512)
    find(tmp_path, NAME, device.run, device)
    assert device.ran


def _probe_and_log(folder: Path, log: Path):
    """Probe in a process of its own, and note when each batch began and ended."""
    device = Device(knee=512)

    def run(tokens):
        started = time.monotonic()
        time.sleep(0.01)
        device.run(tokens)
        with log.open("a") as file:
            file.write(f"{started} {time.monotonic()}\n")

    find(folder, NAME, run, device)


def test_slots_take_turns_at_probing(tmp_path):
    """Two processes at once: one probes, the other finds what it wrote."""
    context = get_context("spawn")
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    processes = [context.Process(target=_probe_and_log, args=(tmp_path, log)) for log in logs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(log.exists() for log in logs) == 1


def test_a_shortage_halves_the_budget_and_calm_raises_it_slowly():
    """Never above what probing found."""
    device = Device()
    held = TokenBudget(1000, device)
    held.lower()
    assert (held.tokens, held.shortages, device.released) == (500, 1, 1)
    for _ in range(CALM_BATCHES):
        held.passed(400)
    assert 500 < held.tokens <= 500 * 1.2
    for _ in range(100 * CALM_BATCHES):
        held.passed(held.tokens)
    assert held.tokens == 1000


def test_small_batches_prove_nothing():
    """The last batch of a chunk is no sign that more memory is there."""
    held = TokenBudget(1000, Device())
    held.lower()
    for _ in range(10 * CALM_BATCHES):
        held.passed(10)
    assert held.tokens == 500


def test_the_budget_never_falls_to_nothing():
    """A row more than it is a batch of its own."""
    held = TokenBudget(1000, Device())
    for _ in range(30):
        held.lower()
    assert held.tokens == LEAST


def test_what_others_take_of_the_memory_lowers_the_budget_at_once():
    """And it is back when they go."""
    device = Device(room_bytes=10**9)
    held = TokenBudget(1000, device, bytes_per_token=10_000)
    assert held.tokens == 1000
    device.room_bytes = 2_000_000
    assert held.tokens == 200
    device.room_bytes = 0
    assert held.tokens == LEAST
    device.room_bytes = 10**9
    assert held.tokens == 1000
