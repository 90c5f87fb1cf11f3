"""Which nodes and slots a machine gets: devices, processes on each, threads of each process.

Nothing here imports torch: the plan is made before the libraries load, because they read their thread counts and
visible devices when they do.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks import weights
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import MIB, Settings

#: Memory of a slot beside its weights: Python, torch, transformers and buffers (510 MB measured with MiniLM's 90).
SLOT_BYTES = 420 * MIB
#: The same for the fake engine, which imports no torch.
FAKE_SLOT_BYTES = 80 * MIB
#: Share of the free memory that slots on a CPU may plan with.
MEMORY_SHARE = 0.8

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class NodePlan:
    """One node: its device, slots and threads per slot."""

    device: str
    slots: int
    threads: int

    def environment(self) -> dict[str, str]:
        """Return what must stand in the environment before Python starts."""
        threads = str(self.threads)
        variables = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            # Otherwise tokenizers warns and turns itself off when a process forks.
            "TOKENIZERS_PARALLELISM": "false" if self.threads == 1 else "true",
            "PENSTOCK_SHOWN_DEVICE": self.device,
        }
        if self.device == "cpu":
            return {**variables, "CUDA_VISIBLE_DEVICES": ""}
        return {**variables, "CUDA_VISIBLE_DEVICES": self.device.removeprefix("cuda:")}


def plan_nodes(settings: Settings, spec: ModelSpec) -> list[NodePlan]:
    """Return one node per device.

    Raises:
        UsageError: a device that is not there, or not of a known form.
        ModelNotFound: the model's folder or package is not there.
    """
    slot_bytes = _slot_bytes(spec)
    devices = _devices(settings.devices)
    if settings.workers is not None:
        devices = devices[: settings.workers]
    cores = max(1, _cores() // len(devices))
    plans = []
    for index, device in enumerate(devices):
        share = None if settings.workers is None else len(range(index, settings.workers, len(devices)))
        plans.append(_plan_node(device, settings, cores, slot_bytes, share))
    return plans


def _plan_node(device: str, settings: Settings, cores: int, slot_bytes: int, share: int | None) -> NodePlan:
    if share is not None:
        slots = share
    elif settings.processes_per_device is not None:
        slots = settings.processes_per_device
    elif device == "cpu":
        slots = max(1, min(cores, int(_free_bytes() * MEMORY_SHARE) // slot_bytes))
    else:
        slots = 1
    return NodePlan(device, slots, settings.threads_per_process or max(1, cores // slots))


def _devices(wanted: str) -> list[str]:
    if wanted == "cpu":
        return ["cpu"]
    found = _gpus()
    if wanted == "auto":
        return found or ["cpu"]
    if not found:
        raise UsageError(
            f"--devices {wanted}: no CUDA device is usable here (nvidia-smi lists none, or torch is a CPU build)."
        )
    if wanted == "cuda":
        return found
    asked = [device.strip() for device in wanted.split(",")]
    for device in asked:
        if device not in found:
            raise UsageError(f"--devices {device}: not here; there are {', '.join(found)}, or cpu alone.")
    return list(dict.fromkeys(asked))  # one node a device, however often it is named


def _gpus() -> list[str]:
    """Return ``cuda:N`` for each GPU that the driver lists, if torch is built for CUDA.

    A scheduler that gives a process some of a machine's GPUs names them in CUDA_VISIBLE_DEVICES, by number or UUID; the
    driver lists all the same.
    """
    program = shutil.which("nvidia-smi")
    if program is None or _torch_is_cpu_build():
        return []
    listed = subprocess.run(
        [program, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    gpus = [line.strip() for line in listed.stdout.splitlines() if line.strip().isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        given = [name.strip() for name in visible.split(",")]
        gpus = [name for name in given if name in gpus or name.startswith(("GPU-", "MIG-"))]
    return [f"cuda:{gpu}" for gpu in gpus]


def _torch_is_cpu_build() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return True


def _slot_bytes(spec: ModelSpec) -> int:
    if spec.engine == "fake":
        return FAKE_SLOT_BYTES
    place = Path(weights.locate(spec))
    if not place.is_dir():
        return SLOT_BYTES  # on the hub: its size is not known before it is loaded
    size = sum(file.stat().st_size for file in place.rglob("*") if file.suffix in {".safetensors", ".bin"})
    if not any(place.iterdir()):
        raise ModelNotFound(f"--model {spec}: the folder is empty.", model=str(spec))
    return SLOT_BYTES + size


def _cores() -> int:
    """Return the cores that this process may use: affinity and the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _free_bytes() -> int:
    """Return the memory that may still be taken: the machine's and the container's limit."""
    free = psutil.virtual_memory().available
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(0, int(free))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
