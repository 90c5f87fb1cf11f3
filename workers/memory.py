"""The memory of a device: what there is, what may still be taken, and which errors mean that it is not enough."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from workers import machine

#: How torch's CPU allocator, oneDNN, CUDA with its libraries, and ONNX Runtime say that there is no memory; only some
#: have a class of their own for it.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|CUDA.*out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
    r"|Failed to allocate memory|bad_alloc"
    r"|could not create a (primitive|memory)"  # oneDNN, of a kernel that worked when the model was loaded
)
#: What else these errors are: ONNX Runtime's own derive from Exception alone.
_RUNTIMES = ("onnxruntime", "openvino")


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error says that the device has no memory left; any other error is somebody's fault."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    is_device_s = isinstance(exc, RuntimeError) or type(exc).__module__.startswith(_RUNTIMES)
    return is_device_s and _OUT_OF_MEMORY.search(str(exc)) is not None


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of one device, of which a share may be in use.

    Args:
        device: ``cpu``, ``cuda`` for the one in use, or ``cuda:1``.
        ratio: share of the whole that may be in use, by this process and all others together.
        slots: that share a GPU's part fairly.
    """

    device: str
    ratio: float
    slots: int = 1

    @property
    def _index(self) -> int | None:
        return torch.device(self.device).index

    @property
    def room_bytes(self) -> int:
        """Bytes that may still be taken below the ratio; what torch keeps for itself and uses again counts as free."""
        if self.device == "cpu":
            return machine.host_memory(self.ratio).room_bytes(self.ratio)
        free, total = torch.cuda.mem_get_info(self._index)
        used = torch.cuda.memory_allocated(self._index)
        free += torch.cuda.memory_reserved(self._index) - used
        own = int(self.ratio * total / self.slots) - used
        return max(0, min(own, machine.Memory(int(total), int(free)).room_bytes(self.ratio)))

    def reset_peak(self) -> None:
        """Begin to measure ``peak_bytes`` anew, where the system can."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats(self._index)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def peak_bytes(self) -> int:
        """The most bytes that this process has had since ``reset_peak``; on systems without /proc, ever."""
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated(self._index))
        with suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS

    def release(self) -> None:
        """Give back what torch and malloc keep for themselves: others may need it, and a retry may too."""
        if self.device != "cpu":
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            with suppress(AttributeError):  # musl has no such function
                ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class SpreadMemory(DeviceMemory):
    """The memory of all GPUs that this process sees, over which the layers of a model are spread.

    A batch goes through all of them, so what the fullest one has is all that there is. Not yet run on a GPU.
    """

    _bases: list[int] = field(default_factory=list, repr=False, compare=False)

    @property
    def _members(self) -> list[DeviceMemory]:
        return [DeviceMemory(f"cuda:{i}", self.ratio, self.slots) for i in range(torch.cuda.device_count())]

    @property
    def room_bytes(self) -> int:
        """Bytes that may still be taken of each device."""
        return min(member.room_bytes for member in self._members)

    def reset_peak(self) -> None:
        """Begin to measure ``peak_bytes`` anew."""
        for member in self._members:
            member.reset_peak()
        self._bases[:] = [member.peak_bytes for member in self._members]

    @property
    def peak_bytes(self) -> int:
        """The most bytes by which this process has grown on one device since ``reset_peak``.

        Not the most that it has had: the device with most of the weights need not be the one that batches fill.
        """
        peaks = [member.peak_bytes for member in self._members]
        return max(peak - base for peak, base in zip(peaks, self._bases or [0] * len(peaks), strict=True))


def device_name(device: str) -> str:
    """Return what kind of device this is: what is measured on one holds for all of its kind."""
    return machine.cpu_title() if device == "cpu" else torch.cuda.get_device_name()
