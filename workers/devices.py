"""Which devices a worker uses, of those that there are: each gets a node of its own."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tasks.errors import UsageError
from tasks.settings import Settings
from workers import gpus, machine
from workers.machine import Memory


@dataclass(frozen=True)
class Device:
    """A GPU, one MIG instance of one, the CPU, or that part of it that belongs to one NUMA node.

    Attributes:
        name: ``cuda:0``, ``cuda:MIG-...``, ``cpu``, ``cpu:1``.
        title: what its maker calls it.
        uuid: by which CUDA finds it; empty for a CPU.
        memory: None where the driver does not tell.
        cores: physical cores that serve it.
        numa_node: that it belongs to, if known.
        cpus: the logical CPUs that its node is pinned to; empty if it is not pinned.
    """

    name: str
    title: str = ""
    uuid: str = ""
    memory: Memory | None = None
    cores: int = 1
    numa_node: int | None = None
    cpus: frozenset[int] = frozenset()

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU or a part of it, or several of these."""
        return not self.uuid

    def __str__(self) -> str:
        return self.name


def find_devices(settings: Settings) -> list[Device]:
    """Return the devices to use, in the order in which they were asked for.

    Raises:
        UsageError: a device that is not there, or not of a known form; or a driver that fails.
    """
    asked = [name.strip() for name in settings.devices.split(",")]
    if all(name == "cpu" or name.startswith("cpu:") for name in asked):
        return _cpus(asked, settings.workers)
    found = _gpus(is_driver_needed=asked != ["auto"])
    if asked == ["auto"] and not found:
        return _cpus(["cpu"], settings.workers)
    if not found:
        raise UsageError(
            f"--devices {settings.devices}: no CUDA device is usable here (nvidia-smi is missing or lists none, "
            "CUDA_VISIBLE_DEVICES hides them, or torch is a CPU build)."
        )
    if asked not in (["auto"], ["cuda"]):
        found = _named(asked, found)
    return _with_cores(found[: settings.workers])


def find_joined(settings: Settings) -> list[Device]:
    """Return the devices that one slot is sharded over, in the order in which they were asked for.

    A CPU that is named several times counts as often, and what it has is shared out: for trying it.

    Raises:
        UsageError: as for ``find_devices``.
    """
    asked = [name.strip() for name in settings.devices.split(",")]
    if set(asked) != {"cpu"}:
        return find_devices(settings)
    (cpu,) = _cpus(["cpu"], workers=1)
    part = _part(machine.host_memory(), len(asked))
    return [replace(cpu, memory=part, cores=max(1, cpu.cores // len(asked)))] * len(asked)


def join(devices: Sequence[Device]) -> Device:
    """Return several devices as one. Its memory is that of the fullest of them: each takes the same share.

    Raises:
        UsageError: a process cannot use all of them.
    """
    if any(device.uuid.startswith("MIG-") for device in devices):
        names = ",".join(device.name for device in devices)
        raise UsageError(f"--shard over {names}: CUDA shows a process one MIG instance alone. Name whole GPUs.")
    memories = [device.memory for device in devices if device.memory is not None]
    pins = [device.cpus for device in devices]
    titles = list(dict.fromkeys(device.title for device in devices))
    return Device(
        name="+".join(device.name for device in devices),
        title=f"{len(devices)} x {' and '.join(titles)}",
        uuid=",".join(filter(None, (device.uuid for device in devices))),
        memory=min(memories, key=lambda memory: memory.free_bytes, default=None),
        cores=sum(device.cores for device in devices),
        cpus=frozenset(chain.from_iterable(pins)) if all(pins) else frozenset(),
    )


def _gpus(*, is_driver_needed: bool) -> list[gpus.Gpu]:
    """Return the GPUs that torch can use and that a scheduler, by CUDA_VISIBLE_DEVICES, has not given to others."""
    if _torch_is_cpu_build():
        return []
    found = gpus.list_gpus(is_driver_needed=is_driver_needed)
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if names is None else gpus.visible(found, names)


def _named(asked: list[str], found: list[gpus.Gpu]) -> list[gpus.Gpu]:
    chosen: dict[str, gpus.Gpu] = {}  # one node a device, however often it is named
    for name in asked:
        meant = gpus.find(found, name.removeprefix("cuda:")) if name.startswith("cuda:") else []
        if not meant:
            there = ", ".join(gpu.name for gpu in found)
            raise UsageError(f"--devices {name}: not here; there are {there}, or cpu alone.")
        chosen.update({gpu.name: gpu for gpu in meant})
    return list(chosen.values())


def _with_cores(found: list[gpus.Gpu]) -> list[Device]:
    """Pin GPUs to the CPUs of their NUMA node, where there are several, and share these out."""
    numa = machine.numa_nodes()
    pins = [numa.get(-1 if gpu.numa_node is None else gpu.numa_node, frozenset()) for gpu in found]
    if len(numa) == 1:
        pins = [frozenset()] * len(found)
    return [
        Device(
            name=gpu.name,
            title=gpu.title,
            uuid=gpu.uuid,
            memory=gpu.memory,
            cores=max(1, _granted(pin) // pins.count(pin) if pin else _granted(machine.usable_cpus()) // len(found)),
            numa_node=gpu.numa_node,
            cpus=pin,
        )
        for gpu, pin in zip(found, pins, strict=True)
    ]


def _cpus(asked: list[str], workers: int | None) -> list[Device]:
    numa = machine.numa_nodes()
    names = {f"cpu:{node}": node for node in numa}
    for name in asked:
        if name != "cpu" and name not in names:
            raise UsageError(f"--devices {name}: not here; there are {', '.join(['cpu', *names])}.")
    if "cpu" in asked:
        usable = machine.usable_cpus()
        widest = max(map(machine.count_cores, numa.values()), default=0)
        if len(numa) < 2 or _granted(usable) <= widest or (workers or len(numa)) < len(numa):  # noqa: PLR2004
            # The kernel keeps so few processes together by itself, and knows who else is busy where.
            return [Device("cpu", machine.cpu_title(), memory=machine.host_memory(), cores=_granted(usable))]
        asked = list(names)
    chosen = [names[name] for name in dict.fromkeys(asked)][:workers]
    part = _part(machine.host_memory(), len(chosen))
    return [
        Device(
            name=f"cpu:{node}",
            title=machine.cpu_title(),
            memory=part,
            cores=_granted(numa[node]),
            numa_node=node,
            cpus=numa[node],
        )
        for node in chosen
    ]


def _part(memory: Memory, parts: int) -> Memory:
    return Memory(memory.total_bytes // parts, memory.free_bytes // parts)


def _granted(cpus: frozenset[int]) -> int:
    """Return the physical cores of these CPUs, or their part of what the container's quota grants."""
    cores, quota = machine.count_cores(cpus), machine.cpu_quota()
    everything = machine.count_cores(machine.usable_cpus())
    if quota is None or quota >= everything:
        return cores
    return max(1, quota * cores // everything)


def _torch_is_cpu_build() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return True
