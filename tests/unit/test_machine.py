"""What a machine has, read from trees of files like the kernel's."""

from __future__ import annotations

import os

import pytest

from tests.machines import GIB, Machine
from workers import machine
from workers.machine import Memory


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return a machine with eight cores and 64 of 80 GiB free."""
    return Machine(monkeypatch, tmp_path)


def cores():
    """Count the cores that may be used."""
    return machine.count_cores(machine.usable_cpus())


# -- cores -------------------------------------------------------------------------------------------------------


def test_hyperthreads_are_no_cores(host):
    """Two threads of a core share its arithmetic."""
    host.has_cores(8, threads=2)
    assert len(machine.usable_cpus()) == 16
    assert cores() == 8


@pytest.mark.parametrize(("cpus", "expected"), [({0, 8}, 1), ({0, 9}, 2), ({0, 1, 2}, 3), ({15}, 1)])
def test_cores_are_those_that_the_affinity_touches(host, cpus, expected):
    """Of a core whose other thread belongs to somebody else there is still one."""
    host.has_cores(8, threads=2)
    host.may_use(cpus)
    assert cores() == expected


def test_a_system_that_tells_nothing_of_threads_is_asked_otherwise(host, monkeypatch):
    """As macOS, which has neither /sys nor affinity."""
    monkeypatch.setattr(machine, "SYS", host.sys / "nowhere")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda *, logical: 12 if logical else 6)
    assert cores() == 6
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda **_: None)
    assert cores() == 12


# -- NUMA --------------------------------------------------------------------------------------------------------


def test_numa_nodes_have_the_cpus_that_may_be_used(host):
    """Both threads of each core, and no CPU outside the affinity."""
    host.has_cores(8, threads=2, numa=2)
    assert machine.numa_nodes() == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}}
    host.may_use({0, 1, 5})
    assert machine.numa_nodes() == {0: {0, 1}, 1: {5}}


def test_numa_nodes_without_cpus_are_memory(host):
    """Such as that of a GPU or of a memory expander."""
    host.says("devices/system/node/node1/cpulist", "")
    host.says("devices/system/node/node10/cpulist", "")
    assert list(machine.numa_nodes()) == [0]


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8,10-11", {0, 1, 2, 3, 8, 10, 11}), ("5", {5}), ("", set()), ("0,2", {0, 2})]
)
def test_lists_of_cpus_are_read_as_the_kernel_writes_them(text, cpus):
    """Ranges and single ones."""
    assert machine._cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("address", "folder"),
    [("00000000:41:00.0", "0000:41:00.0"), ("00000001:C1:00.0", "0001:c1:00.0"), ("0000:07:00.0", "0000:07:00.0")],
)
def test_the_numa_node_of_a_gpu_is_that_of_its_slot(host, address, folder):
    """nvidia-smi writes addresses with a longer domain and in capitals."""
    host.says(f"bus/pci/devices/{folder}/numa_node", 1)
    assert machine.numa_node_of(address) == 1


def test_a_slot_whose_numa_node_nobody_knows_has_none(host):
    """The kernel says -1 where the firmware does not tell."""
    host.says("bus/pci/devices/0000:41:00.0/numa_node", -1)
    for address in ("00000000:41:00.0", "00000000:42:00.0", "[N/A]", ""):
        assert machine.numa_node_of(address) is None


# -- control groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("", None)],
)
def test_a_containers_quota_is_read_in_whole_cpus(host, quota, cpus):
    """One at least; no quota means no limit."""
    host.says("fs/cgroup/cpu.max", quota)
    assert machine.cpu_quota() == cpus


def test_the_narrowest_group_on_the_way_up_counts(host):
    """A service's limit may stand at its slice."""
    host.is_in_groups("0::/system.slice/penstock.service\n")
    host.says("fs/cgroup/system.slice/penstock.service/cpu.max", "400000 100000")
    assert machine.cpu_quota() == 4
    host.says("fs/cgroup/system.slice/cpu.max", "300000 100000")
    assert machine.cpu_quota() == 3
    host.says("fs/cgroup/cpu.max", "max 100000")
    assert machine.cpu_quota() == 3


def test_groups_of_version_1_count_too(host):
    """Each controller has a tree of its own; in a container the path is the host's, and its group is the root."""
    host.is_in_groups("9:name=systemd:/\n4:memory:/docker/3f2a\n2:cpu,cpuacct:/docker/3f2a\n0::/\n")
    host.says("fs/cgroup/cpu/cpu.cfs_quota_us", 250000)
    host.says("fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    host.says("fs/cgroup/memory/memory.limit_in_bytes", 4 * GIB)
    host.says("fs/cgroup/memory/memory.usage_in_bytes", 1 * GIB)
    assert machine.cpu_quota() == 2
    assert machine.host_memory() == Memory(4 * GIB, 3 * GIB)
    host.says("fs/cgroup/cpu/docker/3f2a/cpu.cfs_quota_us", -1)
    host.says("fs/cgroup/cpu/docker/3f2a/cpu.cfs_period_us", 100000)
    host.says("fs/cgroup/memory/docker/3f2a/memory.limit_in_bytes", 2 * GIB)
    host.says("fs/cgroup/memory/docker/3f2a/memory.usage_in_bytes", 2 * GIB)
    assert machine.cpu_quota() == 2
    assert machine.host_memory() == Memory(2 * GIB, 0)


@pytest.mark.parametrize("text", ["0::/../../elsewhere\n", "nonsense\n", "", "0::/gone\n"])
def test_a_group_that_cannot_be_seen_leaves_the_root(host, text):
    """What a process sees of itself from inside a namespace."""
    host.is_in_groups(text)
    host.says("fs/cgroup/cpu.max", "200000 100000")
    assert machine.cpu_quota() == 2


def test_the_memory_of_a_group_is_what_it_may_still_take(host):
    """Its limit less what it holds; files that the kernel keeps because there is room are no obstacle."""
    assert machine.host_memory() == Memory(80 * GIB, 64 * GIB)
    host.says("fs/cgroup/memory.max", 10 * GIB)
    host.says("fs/cgroup/memory.current", 6 * GIB)
    assert machine.host_memory() == Memory(10 * GIB, 4 * GIB)
    host.says("fs/cgroup/memory.stat", f"anon 1000\ninactive_file {5 * GIB}\nactive_file 7")
    assert machine.host_memory() == Memory(10 * GIB, 9 * GIB)
    host.says("fs/cgroup/memory.max", "max")
    assert machine.host_memory() == Memory(80 * GIB, 64 * GIB)


def test_a_limit_above_what_the_machine_has_free_is_none(host):
    """Version 1 writes an absurd number where there is no limit."""
    host.says("fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    host.says("fs/cgroup/memory/memory.usage_in_bytes", GIB)
    assert machine.host_memory() == Memory(80 * GIB, 64 * GIB)


# -- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "total", "free", "room"),
    [(0.8, 100, 100, 80), (0.8, 100, 50, 30), (0.8, 100, 10, 0), (1.0, 100, 10, 10), (0.5, 100, 60, 10)],
)
def test_room_ends_where_the_share_in_use_does(ratio, total, free, room):
    """Whoever uses it."""
    assert Memory(total, free).room_bytes(ratio) == room


def test_the_cpu_is_called_by_its_name(host):
    """As /proc/cpuinfo has it; not every architecture does."""
    (host.proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\n")
    assert machine.cpu_title() == "AMD EPYC 9654 96-Core Processor"
    (host.proc / "cpuinfo").unlink()
    assert machine.cpu_title()
