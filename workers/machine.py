"""What a machine has, as far as this process may use it: cores, NUMA nodes, memory. Read anew at each call."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Where the kernel tells. Tests put trees of their own here.
SYS = Path("/sys")
PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """How much memory a device has, and how much of it nobody uses."""

    total_bytes: int
    free_bytes: int

    def room_bytes(self, ratio: float) -> int:
        """Return what may still be taken until this share of the whole is in use, other processes' included."""
        return max(0, self.free_bytes - round((1 - ratio) * self.total_bytes))


def usable_cpus() -> frozenset[int]:
    """Return the logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def count_cores(cpus: frozenset[int]) -> int:
    """Return how many physical cores these logical CPUs are on: a second hyperthread computes nothing more."""
    topologies = [_read(SYS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    if all(topologies):
        return len(set(topologies))
    return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))  # no such tree: macOS, some sandboxes


def numa_nodes() -> dict[int, frozenset[int]]:
    """Return the usable CPUs of each NUMA node that has some; empty if the kernel does not tell."""
    usable, found = usable_cpus(), {}
    for folder in (SYS / "devices/system/node").glob("node[0-9]*"):
        cpus = _cpu_list(_read(folder / "cpulist")) & usable
        if cpus:
            found[int(folder.name.removeprefix("node"))] = cpus
    return dict(sorted(found.items()))


def numa_node_of(pci_address: str) -> int | None:
    """Return the NUMA node that a PCI device hangs on, if it is known. The address may have a long domain."""
    domain, _, rest = pci_address.lower().partition(":")
    try:
        node = int(_read(SYS / f"bus/pci/devices/{int(domain, 16):04x}:{rest}/numa_node"))
    except ValueError:
        return None
    return node if node >= 0 else None


def cpu_quota() -> int | None:
    """Return the whole CPUs that the control groups of this process grant, one at least, or None without a limit."""
    grants = []
    for group in _control_groups():
        quota, _, period = _read(group / "cpu.max").partition(" ")
        for granted, per in (
            (quota, period),
            (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")),  # version 1; -1 is no limit
        ):
            if granted.isdigit() and per.isdigit() and int(per):
                grants.append(max(1, int(granted) // int(per)))
    return min(grants, default=None)


def host_memory(ratio: float = 1.0) -> Memory:
    """Return the machine's memory or that of the control group with the least room below a share in use."""
    machine = psutil.virtual_memory()
    memory = Memory(int(machine.total), int(machine.available))
    for group in _control_groups():
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit_bytes, used_bytes = _read(group / limit), _read(group / used)
            if limit_bytes.isdigit() and used_bytes.isdigit():
                # Files that were read lately count as used, but the kernel drops them when somebody needs the memory.
                held_bytes = int(used_bytes) - _statistic(group / "memory.stat", cached)
                limited = Memory(int(limit_bytes), max(0, int(limit_bytes) - held_bytes))
                memory = min(memory, limited, key=lambda one: one.room_bytes(ratio))
    return memory


def cpu_title() -> str:
    """Return what the CPU calls itself."""
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Return who made the CPU, as it says itself: ``GenuineIntel``, ``AuthenticAMD``, ... or nothing."""
    return _cpu_fact("vendor_id")


def _cpu_fact(fact: str) -> str:
    for line in _read(PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == fact:
            return value.strip()
    return ""


def _control_groups() -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all above them, of both versions.

    A limit may stand at any of them. A container often shows its own group as the root, under a path of the host.
    """
    top = SYS / "fs/cgroup"
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = Path(path.lstrip("/"))
        for controller in controllers.split(","):
            root = top / controller if controller else top
            if controller in {"", "cpu", "memory"} and ".." not in inside.parts:
                yield from (root / folder for folder in (inside, *inside.parents))
    yield from (top, top / "cpu", top / "memory")


def _cpu_list(text: str) -> frozenset[int]:
    """Read what the kernel writes as ``0-3,8,10-11``."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _statistic(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
