"""``python -m workers.preview [--json]``: what ``workers.launch`` would start, and why, without starting it."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.errors import PenstockError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.planning import NodePlan, plan_nodes
from workers.serving import model_spec

GIB = 1024**3


def main(arguments: list[str]) -> int:
    """Plan, and print the plan on stdout. Returns the exit status."""
    try:
        settings = Settings.load()
        spec = model_spec(settings)
        plans = plan_nodes(settings, spec)
    except PenstockError as exc:
        print(f"penstock worker: {exc}", file=sys.stderr)  # noqa: T201 - what a person sees
        return exc.exit_code
    if arguments == ["--json"]:
        described = {"model": str(spec), "nodes": [describe(plan, settings.memory_ratio) for plan in plans]}
        print(json.dumps(described))  # noqa: T201 - what was asked for
        return 0
    _show(spec, plans, settings.memory_ratio)
    return 0


def describe(plan: NodePlan, memory_ratio: float) -> dict[str, Any]:
    """Return a node's plan as plain values."""
    device, memory = plan.device, plan.device.memory
    return {
        "device": device.name,
        "title": device.title,
        "uuid": device.uuid or None,
        "numa_node": device.numa_node,
        "cores": device.cores,
        "pinned_to_cpus": sorted(device.cpus) or None,
        "slots": plan.slots,
        "ranks": plan.ranks,
        "slots_why": plan.slots_why,
        "threads": plan.threads,
        "threads_why": plan.threads_why,
        "memory_bytes": memory and memory.total_bytes,
        "free_bytes": memory and memory.free_bytes,
        "memory_ratio": memory_ratio,
        "room_bytes": memory and memory.room_bytes(memory_ratio),
        "slot_bytes": plan.slot_bytes,
        "slot_bytes_why": plan.slot_bytes_why,
        "all_slots_bytes": plan.slots * plan.slot_bytes,
        "environment": plan.environment(),
    }


def _show(spec: ModelSpec, plans: list[NodePlan], memory_ratio: float) -> None:
    out = Console(highlight=False, markup=False)
    number = f"{len(plans)} node{'s' * (len(plans) > 1)}"
    out.print(f"{spec}: {number}, {sum(plan.slots for plan in plans)} slots in all. Nothing was started.")
    for plan in plans:
        table = Table(title=plan.device.name, title_justify="left", show_header=False)
        for row in _rows(plan, memory_ratio):
            table.add_row(*row)
        out.print(table)
        out.print("environment:", *(f"{name}={value}" for name, value in plan.environment().items()))


def _rows(plan: NodePlan, memory_ratio: float) -> list[tuple[str, str, str]]:
    """Return what a person reads of a node: what, how much, why."""
    device, memory, needed = plan.device, plan.device.memory, plan.slots * plan.slot_bytes
    pinned = f"CPUs {_ranges(sorted(device.cpus))}" if device.cpus else "nothing"
    reason = f"of NUMA node {device.numa_node}" if device.cpus else "the kernel places its processes"
    if memory is None:
        room = "the driver does not tell how much it has"
    else:
        left_bytes = memory.room_bytes(memory_ratio)
        room = f"{_gib(left_bytes)} left below {memory_ratio:.0%} of {_gib(memory.total_bytes)}"
        if needed > left_bytes:
            room = f"TOO MUCH: only {room}"
    return [
        ("device", device.title, device.uuid),
        ("slots", str(plan.slots), plan.slots_why),
        ("threads of a slot", str(plan.threads), plan.threads_why),
        ("pinned to", pinned, reason),
        ("memory of a slot", _gib(plan.slot_bytes), plan.slot_bytes_why),
        ("memory in all", _gib(needed), room),
    ]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _ranges(numbers: list[int]) -> str:
    """Write numbers as the kernel does: ``0-3,8``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
