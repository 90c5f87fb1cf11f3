"""How full a slot's devices are."""

from __future__ import annotations

import os
import threading
from functools import partial
from types import SimpleNamespace

import pytest

from producer.commands import jobs
from tasks.settings import GIB, MIB
from tasks.workforce import DeviceUse
from tests.contracts.ledger import slot_status
from tests.machines import MIG_UUIDS, UUIDS, Machine, gpu_line
from workers import occupancy


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return a machine with eight cores and 80 GiB."""
    return Machine(monkeypatch, tmp_path)


@pytest.fixture
def processes(host, monkeypatch):
    """Return a function that gives this process children, by the MiB of each process; some are ranks by number."""

    def give(own, *others, nobody=(), ranks=None):
        started = [
            SimpleNamespace(pid=os.getpid() + 1 + i, cmdline=partial(_command, i, ranks)) for i in range(len(others))
        ]
        gone = [SimpleNamespace(pid=10**7 + i, memory_info=_raise, cmdline=_raise) for i, _ in enumerate(nobody)]
        for pid, mib in zip([os.getpid(), *(one.pid for one in started)], [own, *others], strict=True):
            folder = host.proc / str(pid)
            folder.mkdir(parents=True)
            (folder / "smaps_rollup").write_text(f"Rss: 999999 kB\nPss:  {mib * 1024} kB\nPss_Anon: 1 kB\n")
        me = SimpleNamespace(pid=os.getpid(), children=lambda **_: [*reversed(started), *gone])
        monkeypatch.setattr(occupancy.psutil, "Process", lambda: me)

    return give


def _command(place, ranks):
    rank = (ranks or {}).get(place)
    return ["python", "-P", "-m", "workers.sharding.rank", str(rank), "3", "/m"] if rank else ["python", "x.py"]


def _raise():
    raise occupancy.psutil.NoSuchProcess(1)


def test_a_slot_on_the_cpu_has_what_its_processes_have(processes):
    """Of pages that several processes share, their part; a child that ended meanwhile has nothing."""
    processes(500, 20, 30, nobody=[1])
    assert occupancy.measure("cpu") == [DeviceUse("cpu", 550 * MIB, 80 * GIB)]


def test_each_rank_of_a_slot_on_the_cpu_is_told(processes):
    """In their order; what else was started counts with the slot's own process, however large it is."""
    processes(400, 450, 100, 400, nobody=[1], ranks={0: 2, 2: 1})
    found = occupancy.measure("cpu+cpu+cpu")
    assert [one.used_bytes // MIB for one in found] == [500, 400, 450]
    assert {one.device for one in found} == {"cpu"}


def test_a_slot_without_ranks_is_told_once(processes):
    """Its layers lie on several devices, but one process computes; a child is no rank."""
    processes(500, 20)
    assert occupancy.measure("cpu:0+cpu:1") == [DeviceUse("cpu:0+cpu:1", 520 * MIB, 80 * GIB)]


def test_a_system_without_pss_tells_the_resident_size(host):
    """As macOS has none."""
    (found,) = occupancy.measure("cpu")
    assert 10 * MIB < found.used_bytes < found.total_bytes


def test_a_gpu_has_what_all_its_processes_have(host, monkeypatch):
    """By the UUIDs that CUDA sees, in their order."""
    host.has_gpus(gpu_line(0, free_mib=100_000) + gpu_line(1) + gpu_line(2, free_mib=771))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{UUIDS[2]},{UUIDS[0]}")
    assert occupancy.measure("cuda:2+cuda:0") == [
        DeviceUse("cuda:2", 143_000 * MIB, 143_771 * MIB),
        DeviceUse("cuda:0", 43_771 * MIB, 143_771 * MIB),
    ]


def test_a_mig_instance_is_left_out(host, monkeypatch):
    """nvidia-smi tells its size alone, and a use of nothing would be wrong."""
    listed = f"GPU 0: NVIDIA (UUID: {UUIDS[0]})\n  MIG 3g.20gb     Device  0: (UUID: {MIG_UUIDS[0]})\n"
    host.has_gpus(gpu_line(0, mig="Enabled"), listed=listed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG_UUIDS[0])
    assert occupancy.measure(f"cuda:{MIG_UUIDS[0]}") == []


class _Pulse:
    """A pulse that counts, and stops after some measurements."""

    def __init__(self, rounds):
        self.status, self.told, self._rounds = slot_status(), [], rounds

    def change(self, memory):
        self.told.append(memory)

    def is_stopped_within(self, seconds):
        assert seconds == occupancy.EVERY_S
        return len(self.told) >= self._rounds


def test_a_measurement_that_fails_tells_nothing_and_is_tried_again(monkeypatch):
    """What was told before would be old."""
    use = DeviceUse("cpu", 1, 2)
    answers = iter([[use], None, [use]])

    def measure(device):
        found = next(answers)
        if found is None:
            raise OSError("the driver hangs")
        return found

    monkeypatch.setattr(occupancy, "measure", measure)
    pulse = _Pulse(rounds=3)
    occupancy._tell(pulse)
    assert pulse.told == [(use,), (), (use,)]


def test_measuring_keeps_nobody_waiting(monkeypatch):
    """Not even a driver that hangs."""
    go_on, pulse = threading.Event(), _Pulse(rounds=1)
    monkeypatch.setattr(occupancy, "measure", lambda _: [] if go_on.wait(60) else None)
    occupancy.tell_memory(pulse)
    assert pulse.told == []
    go_on.set()


@pytest.mark.parametrize(
    ("memory", "shown"),
    [
        ([], ""),
        ([("cpu", 0.5, 23.5)], "0.5 of 23.5 GiB"),
        ([("cuda:0", 18, 24), ("cuda:1", 12, 24)], "18.0 + 12.0 of 24.0 GiB, balance 67%"),
        ([("cuda:0", 18, 24), ("cuda:1", 60, 80)], "18.0 + 60.0 of 24.0 + 80.0 GiB, balance 100%"),
        ([("cuda:0", 0, 24), ("cuda:1", 0, 24)], "0.0 + 0.0 of 24.0 GiB"),
    ],
)
def test_a_person_reads_how_full_and_how_even(memory, shown):
    """In GiB."""
    uses = tuple(DeviceUse(name, round(used * GIB), round(total * GIB)) for name, used, total in memory)
    assert jobs._memory(slot_status(memory=uses)) == shown
