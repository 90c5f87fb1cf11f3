"""The devices of a plan: those of this machine, or others of which only the memory is known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.errors import UsageError
from tasks.settings import GIB, MIB, Settings
from workers.devices import find_devices
from workers.machine import Memory
from workers.planning import CUDA_SLOT_BYTES, SLOT_BYTES

_UNITS = {"MiB": MIB, "GiB": GIB, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(?:(\d{1,9})x)?(\d{1,9}(?:\.\d{1,9})?) ?(MiB|GiB|MB|GB)")
#: Devices of one slot that a plan may have.
MOST_DEVICES = 64


@dataclass(frozen=True)
class Room:
    """What a device has for a model.

    Attributes:
        name: of the device.
        is_cpu: whether it is one, or a GPU.
        total_bytes: its memory.
        limit_bytes: what may still be taken of it below the memory ratio.
    """

    name: str
    is_cpu: bool
    total_bytes: int
    limit_bytes: int

    @property
    def beside_bytes(self) -> int:
        """What a slot takes beside weights and batches."""
        return SLOT_BYTES if self.is_cpu else CUDA_SLOT_BYTES

    @property
    def spare_bytes(self) -> int:
        """What there is for weights and batches; less than nothing if not even a slot without them fits."""
        return self.limit_bytes - self.beside_bytes


def find_rooms(settings: Settings, device_memory: str | None) -> list[Room]:
    """Return the devices to plan for.

    Args:
        settings: name the devices of this machine, and how full they may be.
        device_memory: ``24GiB,24GiB`` or ``8x80GiB`` for GPUs that are not here.

    Raises:
        UsageError: a device is not there, or its memory is not known; or a size is none.
    """
    if device_memory is not None:
        sizes = parse_sizes(device_memory)
        return [
            Room(f"cuda:{i}", False, size, Memory(size, size).room_bytes(settings.memory_ratio))
            for i, size in enumerate(sizes)
        ]
    rooms = []
    for device in find_devices(settings.model_copy(update={"workers": None})):  # which would leave devices out
        if device.memory is None:
            raise UsageError(
                f"The driver does not tell how much memory {device} has: name it with --device-memory, as 24GiB."
            )
        limit_bytes = device.memory.room_bytes(settings.memory_ratio)
        rooms.append(Room(device.name, device.is_cpu, device.memory.total_bytes, limit_bytes))
    return rooms


def parse_sizes(text: str) -> list[int]:
    """Return the bytes of each device that a text like ``24GiB,2x80GB`` names.

    Raises:
        UsageError: it is not of that form.
    """
    sizes: list[int] = []
    for part in text.split(","):
        match = _SIZE.fullmatch(part.strip())
        size = round(float(match[2]) * _UNITS[match[3]]) if match else 0
        if match is None or not size:
            raise UsageError(
                f"--device-memory {text[:80]}: {part.strip()[:40]!r} is no size. Write 24GiB for each device, as in "
                "24GiB,24GiB, or 8x80GiB for eight alike."
            )
        n = int(match[1] or 1)
        if not 1 <= n <= MOST_DEVICES - len(sizes):
            raise UsageError(f"--device-memory {text[:80]}: a plan has 1 to {MOST_DEVICES} devices.")
        sizes += [size] * n
    return sizes
