"""What goes with ``--shard``: asked before anything is loaded, so nothing here imports torch."""

from __future__ import annotations

import importlib.util

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings

#: Kinds of sharding with a process on each device.
PARTED = frozenset({"tensor", "fsdp"})


def check_shard(settings: Settings, spec: ModelSpec) -> None:
    """Refuse what cannot be sharded.

    Raises:
        UsageError: an option does not go with ``--shard``, or a package is missing.
    """
    shard = f"--shard {settings.shard}"
    several = {"--workers": settings.workers, "--processes-per-device": settings.processes_per_device}
    for option, number in several.items():
        if number is not None and number > 1:
            raise UsageError(f"{shard} makes one slot of all devices: leave {option} {number} out.")
    if spec.engine in {"fake", "laser"}:
        raise UsageError(f"{shard} is for models of transformers, and {spec} is none. Leave it out.")
    if settings.backend != "torch" or settings.compile:
        option = "--compile" if settings.compile else f"--backend {settings.backend}"
        raise UsageError(f"{shard} does not go with {option}. Leave one of them out.")
    if settings.quantize:
        raise UsageError(f"{shard} does not go with --quantize {settings.quantize}. Leave one of them out.")
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(f"{shard} needs accelerate: pip install 'penstock[shard]'.")
