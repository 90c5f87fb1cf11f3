"""The GPUs of a machine and their MIG instances, as ``nvidia-smi`` lists them. Nothing here touches CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from tasks.errors import UsageError
from tasks.settings import MIB
from workers.machine import Memory, numa_node_of

#: Seconds that nvidia-smi may take. Without its persistence daemon it wakes up each GPU, which takes seconds.
ANSWER_S = 60.0
#: How nvidia-smi ends where no driver is loaded; its manual page lists this.
NO_DRIVER = 9

_QUERY = "--query-gpu=index,uuid,pci.bus_id,memory.total,memory.free,mig.mode.current,name"
_GPU_LINE = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
_INSTANCE_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")
#: The memory of an instance stands in its profile's name: 3g.20gb has 20 GB.
_PROFILE_GB = re.compile(r"\.(\d+)gb")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or one MIG instance of a GPU that is divided.

    Attributes:
        index: the GPU's number in nvidia-smi; an instance has that of its GPU.
        uuid: ``GPU-...`` or ``MIG-...``, by which CUDA knows it wherever it stands.
        gpu_uuid: that of the GPU, also for an instance.
        title: what the vendor calls it.
        memory: None where the driver does not tell.
        numa_node: that of its PCI slot, if known.
    """

    index: str
    uuid: str
    gpu_uuid: str
    title: str
    memory: Memory | None
    numa_node: int | None

    @property
    def name(self) -> str:
        """What penstock calls it: ``cuda:0``, or by its UUID if it is an instance."""
        return f"cuda:{self.uuid if self.uuid != self.gpu_uuid else self.index}"

    def is_called(self, name: str) -> bool:
        """Whether a number, a UUID or the beginning of one means it. A divided GPU means all of its instances."""
        if name.startswith(("GPU-", "MIG-")):
            return self.uuid.startswith(name) or self.gpu_uuid.startswith(name)
        return self.index == name


def find(gpus: list[Gpu], name: str) -> list[Gpu]:
    """Return what a name means: a GPU, or the instances of one; empty if nothing or more than one answers to it."""
    found = [gpu for gpu in gpus if gpu.is_called(name)]
    is_unique = len({gpu.gpu_uuid for gpu in found}) == 1 and (len(found) == 1 or not name.startswith("MIG-"))
    return found if is_unique else []


def visible(gpus: list[Gpu], names: str) -> list[Gpu]:
    """Return those that CUDA_VISIBLE_DEVICES names, in its order; CUDA, too, stops at the first name of nothing."""
    seen: dict[str, Gpu] = {}
    for name in names.split(","):
        found = find(gpus, name.strip())
        if not found:
            break
        seen.update({gpu.uuid: gpu for gpu in found})
    return list(seen.values())


def list_gpus(*, is_driver_needed: bool) -> list[Gpu]:
    """Return the GPUs that compute, by number. Of one in MIG mode these are its instances.

    Args:
        is_driver_needed: whether a machine without a driver is an error, and not one without GPUs.

    Raises:
        UsageError: nvidia-smi fails or hangs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    gpus: list[Gpu] = []
    instances: dict[str, list[tuple[str, str]]] | None = None
    for line in _ask(program, _QUERY, "--format=csv,noheader,nounits", is_driver_needed=is_driver_needed):
        fields = [field.strip() for field in line.split(",", 6)]
        if len(fields) < 7 or not fields[0].isdigit():  # noqa: PLR2004 - as many as are asked for
            continue
        index, uuid, address, total, free, mig, title = fields
        gpu = Gpu(index, uuid, uuid, title, _memory(total, free), numa_node_of(address))
        if mig != "Enabled":
            gpus.append(gpu)
            continue
        if instances is None:
            instances = _instances(_ask(program, "-L", is_driver_needed=is_driver_needed))
        gpus.extend(
            Gpu(index, one, uuid, f"{title} MIG {profile}", _profile_memory(profile), gpu.numa_node)
            for profile, one in instances.get(uuid, [])
        )
    return gpus


def _ask(program: str, *arguments: str, is_driver_needed: bool) -> list[str]:
    process = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        said, _ = process.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # a process that hangs in the driver does not even die
        raise UsageError(
            f"nvidia-smi has not answered for {ANSWER_S:.0f} s: the GPU driver hangs. Mend it, or use --devices cpu."
        ) from None
    if "No devices were found" in said or (process.returncode == NO_DRIVER and not is_driver_needed):
        return []
    if process.returncode:
        reason = (said.strip() or "it said nothing").splitlines()[0].rstrip(".")
        raise UsageError(
            f"nvidia-smi fails with status {process.returncode}: {reason}. Mend the driver, or use --devices cpu."
        )
    return said.splitlines()


def _instances(lines: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Return (profile, UUID) of the MIG instances of each GPU."""
    found: dict[str, list[tuple[str, str]]] = {}
    gpu = ""
    for line in lines:
        if match := _GPU_LINE.match(line):
            gpu = match[1]
        elif match := _INSTANCE_LINE.match(line):
            found.setdefault(gpu, []).append((match[1], match[2]))
    return found


def _memory(total_mib: str, free_mib: str) -> Memory | None:
    if not (total_mib.isdigit() and free_mib.isdigit()):  # memory shared with the CPU, or not ours to know
        return None
    return Memory(int(total_mib) * MIB, int(free_mib) * MIB)


def _profile_memory(profile: str) -> Memory | None:
    match = _PROFILE_GB.search(profile)
    return Memory(int(match[1]) * 10**9, int(match[1]) * 10**9) if match else None
