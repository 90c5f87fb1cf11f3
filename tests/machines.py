"""Made-up machines: a tree of what the kernel tells, and an ``nvidia-smi`` that prints what a real one does."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from tasks.settings import MIB
from workers import devices, machine

GIB = 1024 * MIB

H200 = "NVIDIA H200"
A100 = "NVIDIA A100-SXM4-40GB"
UUIDS = [
    "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c",
    "GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c",
    "GPU-79a2ba02-a537-ccbf-2965-8e9d90c0bd54",
    "GPU-662077db-fa3f-0d8f-9502-21ab0ef058a2",
]
MIG_UUIDS = ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"]

_SMI = """#!{python} -S
import json, sys, time
answers = json.load(open({answers!r}))
if answers["hangs"]:
    time.sleep(60)
print(answers["list" if sys.argv[1] == "-L" else "query"], end="")
sys.exit(answers["status"])
"""


def gpu_line(index: int, *, title: str = H200, free_mib: int = 143_000, mig: str = "Disabled") -> str:
    """Return what nvidia-smi prints of a GPU; of one without MIG it says [N/A]."""
    return f"{index}, {UUIDS[index]}, 00000000:{index + 1:02X}:00.0, 143771, {free_mib}, {mig}, {title}\n"


class Machine:
    """A machine as a test wants it. It begins with eight cores, 64 GiB free of 80 and no GPU."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self._patch = monkeypatch
        self.sys, self.proc, self._bin = folder / "sys", folder / "proc", folder / "bin"
        for place in (self.sys, self.proc, self._bin):
            place.mkdir()
        monkeypatch.setattr(machine, "SYS", self.sys)
        monkeypatch.setattr(machine, "PROC", self.proc)
        monkeypatch.setenv("PATH", str(self._bin))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.has_torch("2.13.0")
        self.has_cores(8)
        self.has_memory(free=64 * GIB, total=80 * GIB)

    def has_cores(self, cores: int, *, threads: int = 1, numa: int = 1) -> None:
        """Give it physical cores with hyperthreads, in NUMA nodes; second threads are numbered last."""
        per_node = cores // numa
        for core in range(cores):
            siblings = [core + thread * cores for thread in range(threads)]
            for cpu in siblings:
                self.says(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", ",".join(map(str, siblings)))
        for node in range(numa):
            first, last = node * per_node, (node + 1) * per_node - 1
            ranges = [f"{first + thread * cores}-{last + thread * cores}" for thread in range(threads)]
            self.says(f"devices/system/node/node{node}/cpulist", ",".join(ranges))
        self.may_use(set(range(cores * threads)))

    def may_use(self, cpus: set[int]) -> None:
        """Set the affinity of the process."""
        self._patch.setattr(os, "sched_getaffinity", lambda _: cpus, raising=False)

    def has_memory(self, *, free: int, total: int = 80 * GIB) -> None:
        """Set the machine's memory."""
        memory = SimpleNamespace(total=total, available=free)
        self._patch.setattr(machine.psutil, "virtual_memory", lambda: memory)

    def has_torch(self, version: str | None) -> None:
        """Install that build of torch, or none."""

        def find(name: str) -> str:
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        self._patch.setattr(devices.importlib.metadata, "version", find)

    def has_gpus(self, query: str, *, listed: str = "", status: int = 0, hangs: bool = False) -> None:
        """Install an nvidia-smi with these answers to a query and to -L."""
        answers = self._bin / "answers.json"
        answers.write_text(json.dumps({"query": query, "list": listed, "status": status, "hangs": hangs}))
        program = self._bin / "nvidia-smi"
        program.write_text(_SMI.format(python=sys.executable, answers=str(answers)))
        program.chmod(0o755)

    def says(self, path: str, text: str | int) -> None:
        """Write a file of /sys."""
        (self.sys / path).parent.mkdir(parents=True, exist_ok=True)
        (self.sys / path).write_text(f"{text}\n")

    def is_in_groups(self, text: str) -> None:
        """Write /proc/self/cgroup."""
        (self.proc / "self").mkdir(exist_ok=True)
        (self.proc / "self" / "cgroup").write_text(text)
