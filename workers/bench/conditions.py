"""On what a bench ran: the machine, the versions, the date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from typing import Any

import psutil

from workers import machine
from workers.bench.plan import cores
from workers.devices import Device

PACKAGES = ("penstock", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "celery", "ray")


def describe(gpus: list[Device]) -> dict[str, Any]:
    """Return what a reader must know of where the figures come from.

    Args:
        gpus: those that are used; without any it is the CPU.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": machine.cpu_title(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": os.getloadavg()[0],
        "devices": [f"{gpu.name} {gpu.title}" for gpu in gpus] or ["cpu"],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
