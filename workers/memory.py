"""The memory of a device: what there is, what may still be taken, and which errors mean that it is not enough."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from workers import machine

#: How torch's CPU allocator and CUDA's libraries say that there is no memory. They have no class of their own.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error says that the device has no memory left; any other error is somebody's fault."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(exc, RuntimeError) and any(line in str(exc) for line in _OUT_OF_MEMORY)


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of one device, of which a share may be in use.

    Args:
        device: ``cpu`` or ``cuda``.
        ratio: share of the whole that may be in use, by this process and all others together.
    """

    device: str
    ratio: float

    @property
    def room_bytes(self) -> int:
        """Bytes that may still be taken below the ratio; what torch keeps for itself and uses again counts as free."""
        if self.device == "cpu":
            return machine.host_memory().room_bytes(self.ratio)
        free, total = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return machine.Memory(int(total), int(free)).room_bytes(self.ratio)

    def reset_peak(self) -> None:
        """Begin to measure ``peak_bytes`` anew, where the device can."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak_bytes(self) -> int:
        """The most bytes that this process has had: of the device since ``reset_peak``, of the host ever."""
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated())
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def release(self) -> None:
        """Give back what torch keeps for itself: others on the device may need it, and a retry may too."""
        if self.device != "cpu":
            torch.cuda.empty_cache()


def device_name(device: str) -> str:
    """Return what kind of device this is: what is measured on one holds for all of its kind."""
    return machine.cpu_title() if device == "cpu" else torch.cuda.get_device_name()
