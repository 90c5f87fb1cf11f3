"""How full a slot's devices are, told to the ledger with its pulse."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import psutil

from tasks.pulse import Pulse
from tasks.workforce import DeviceUse
from workers import gpus, machine

log = logging.getLogger(__name__)

#: Seconds between two measurements. To ask nvidia-smi costs a process, and to sum up a process's pages 0.06 s a GB.
EVERY_S = 30.0
#: In the command of a rank, before its number.
RANK_MODULE = "workers.sharding.rank"


def tell_memory(pulse: Pulse) -> None:
    """Measure from now on, in a thread of its own: a driver that hangs must not keep the pulse from beating."""
    threading.Thread(target=_tell, args=(pulse,), name="memory", daemon=True).start()


def _tell(pulse: Pulse) -> None:
    while True:
        try:
            pulse.change(memory=tuple(measure(pulse.status.device)))
        except Exception as exc:  # noqa: BLE001 - a thread's boundary; the slot works without
            log.debug("Memory not measured: %s", exc, extra={"action": "measure"})
            pulse.change(memory=())
        if pulse.is_stopped_within(EVERY_S):
            return


def measure(device: str) -> list[DeviceUse]:
    """Return how full the devices of this process's slot are.

    Args:
        device: its name, ``+`` between those of several: ``cpu``, ``cuda:0+cuda:1``.
    """
    names = device.split("+")
    uuids = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    return list(_of_host(names) if not uuids else _of_gpus(uuids))


def _of_gpus(uuids: list[str]) -> Iterator[DeviceUse]:
    """Yield the GPUs with these UUIDs, by nvidia-smi: to ask CUDA would take memory on devices of other processes.

    Of MIG instances it tells the size alone, so they are left out. Not yet run on a GPU.
    """
    found = {gpu.uuid: gpu for gpu in gpus.list_gpus(is_driver_needed=True)}
    for uuid in uuids:
        gpu = found.get(uuid)
        if gpu is not None and gpu.memory is not None and gpu.uuid == gpu.gpu_uuid:
            yield DeviceUse(gpu.name, gpu.memory.total_bytes - gpu.memory.free_bytes, gpu.memory.total_bytes)


def _of_host(names: list[str]) -> Iterator[DeviceUse]:
    """Yield what this process has of the host's memory, with all that it started; its ranks stand for themselves.

    Without ranks there is one entry, whatever the devices are.
    """
    total_bytes, own = machine.host_memory().total_bytes, psutil.Process()
    started = [(process, _held_bytes(process)) for process in own.children(recursive=True)]
    ranks = sorted((rank, held) for process, held in started if (rank := _rank_of(process)))
    used = [_held_bytes(own) + sum(held for process, held in started if not _rank_of(process))]
    used += [held for _, held in ranks]
    for name, held in zip(names if ranks else ["+".join(names)], used, strict=False):
        yield DeviceUse(name, held, total_bytes)


def _rank_of(process: psutil.Process) -> int:
    """Return which of this slot's other ranks a process is; 0 if it is none, or has ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return 0
    numbers = words[words.index(RANK_MODULE) + 1 :] if RANK_MODULE in words else []
    return int(numbers[0]) if numbers and numbers[0].isdigit() else 0


def _held_bytes(process: psutil.Process) -> int:
    """Return the memory that a process has: of pages that several share, its part. 0 if it has ended."""
    try:
        for line in (machine.PROC / str(process.pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass  # no such file: macOS, an old kernel, or another user's process
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
