"""A plan as a person reads it, and as a machine does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.messages import ModelSpec
from tasks.settings import CONFIG_FILE, GIB, Settings
from workers.sizing.blueprint import Blueprint
from workers.sizing.choices import Choice, nearest, suggest
from workers.sizing.rooms import Room

#: What a worker takes by itself, which need not be named.
_AUTOMATIC = {True: "fp32", False: "bf16"}


@dataclass(frozen=True)
class ModelPlan:
    """All that was found out of one model."""

    spec: ModelSpec
    settings: Settings
    blueprint: Blueprint
    rooms: Sequence[Room]
    choices: Sequence[Choice]

    def command(self, choice: Choice) -> str:
        """Return what to type for a choice."""
        numbers = choice.numbers
        words = ["penstock", "worker", "--model", str(self.spec)]
        if self.settings.operation != "encode":
            words += ["--operation", self.settings.operation]
        words += ["--devices", ",".join(room.name for room in choice.fitting)]
        if numbers.precision != _AUTOMATIC[self.rooms[0].is_cpu] or self.settings.precision != "auto":
            words += ["--precision", numbers.precision]
        if choice.shard != "none":
            words += ["--shard", choice.shard]
        if numbers.quantize:
            words += ["--quantize", numbers.quantize]
        if self.settings.memory_ratio != Settings.model_fields["memory_ratio"].default:
            words += ["--memory-ratio", f"{self.settings.memory_ratio:g}"]
        if self.settings.trust_remote_code:
            words.append("--trust-remote-code")
        return shlex.join(words)

    def hindrances(self, choice: Choice) -> list[str]:
        """Return the settings that are set here, and would make of the command something else: it cannot undo them."""
        wanted = {"shard": None if choice.shard == "none" else choice.shard, "quantize": choice.numbers.quantize}
        found = [name for name, value in wanted.items() if value is None and getattr(self.settings, name) is not None]
        return found + ["workers"] * (self.settings.workers is not None)


def describe(plan: ModelPlan) -> dict[str, Any]:
    """Return a plan as plain values."""
    best = suggest(plan.choices)
    return {
        "model": str(plan.spec),
        "operation": plan.settings.operation,
        "parameters": plan.blueprint.numbers,
        "memory_ratio": plan.settings.memory_ratio,
        "devices": [
            {
                "device": room.name,
                "memory_bytes": room.total_bytes,
                "room_bytes": room.limit_bytes,
                "beside_bytes": room.beside_bytes,
            }
            for room in plan.rooms
        ],
        "choices": [_described(choice, is_suggested=choice is best) for choice in plan.choices],
        "command": best and plan.command(best),
        "unset": plan.hindrances(best) if best else [],
    }


def _described(choice: Choice, *, is_suggested: bool) -> dict[str, Any]:
    return {
        "numbers": str(choice.numbers),
        "shard": None if choice.shard == "none" else choice.shard,
        "weights_bytes": [share.weights_bytes for share in choice.shares],
        "gathered_bytes": [share.gathered_bytes for share in choice.shares],
        "left_bytes": choice.left_bytes,
        "fits_on": [room.name for room in choice.fitting],
        "suggested": is_suggested,
        "reason": choice.reason or None,
    }


def show(plan: ModelPlan) -> None:
    """Print a plan on stdout."""
    out, best = Console(highlight=False, markup=False), suggest(plan.choices)
    out.print(f"{plan.spec}: {plan.blueprint.numbers / 1e6:,.1f} million parameters. Nothing was loaded.")
    out.print(_devices(plan))
    table = Table("weights in", "shard", "a device holds", "left for batches", "fits")
    for before, choice in zip([None, *plan.choices], plan.choices, strict=False):
        if before is not None and before.numbers != choice.numbers:
            table.add_section()
        table.add_row(*_row(choice), style="bold" if choice is best else None)
    out.print(table)
    if any(share.gathered_bytes for choice in plan.choices for share in choice.shares):
        out.print("(+): of other devices' weights, while the model computes.")
    out.print(_conclusion(plan, best), soft_wrap=True)
    if best is not None:
        for name in plan.hindrances(best):
            where = f"unset PENSTOCK_{name.upper()}, or take {name} out of {CONFIG_FILE}"
            out.print(f"First {where}: it is {getattr(plan.settings, name)}.", soft_wrap=True)
        out.print(plan.command(best), soft_wrap=True)


def _devices(plan: ModelPlan) -> str:
    ratio = f"below {plan.settings.memory_ratio:.0%} of"
    beside = f"{_gib(plan.rooms[0].beside_bytes)} beside weights and batches"
    each = [f"{room.name}: {_gib(room.limit_bytes)} {ratio} {_gib(room.total_bytes)}" for room in plan.rooms]
    alike = {(room.limit_bytes, room.total_bytes) for room in plan.rooms}
    if len(plan.rooms) > 1 and len(alike) == 1:
        each = [f"{len(plan.rooms)} devices, each {each[0].partition(': ')[2]}"]
    return f"{'; '.join(each)}. A slot takes {beside}."


def _row(choice: Choice) -> tuple[str, ...]:
    name = str(choice.numbers)
    if choice.reason:
        return name, choice.shard, "-", "-", f"no: {choice.reason}"
    held = _range([share.weights_bytes for share in choice.shares])
    if gathered := max(share.gathered_bytes for share in choice.shares):
        held += f" (+ {_number(gathered)})"
    return name, choice.shard, held, _range([max(0, left) for left in choice.left_bytes]), _verdict(choice)


def _verdict(choice: Choice) -> str:
    if not choice.fitting:
        return f"no: {_gib(choice.lacking_bytes)} too much{' to load' if choice.loads_beyond else ''}"
    if len(choice.fitting) < len(choice.rooms):
        return f"on {', '.join(room.name for room in choice.fitting)}"
    return "yes" if choice.shard != "none" or len(choice.rooms) == 1 else "yes, on each"


def _conclusion(plan: ModelPlan, best: Choice | None) -> str:
    if best is not None:
        how = f"on {best.fitting[0].name}" if len(best.fitting) == 1 else "on each device alone"
        if best.shard != "none":
            how = f"with --shard {best.shard} over {len(best.rooms)} devices"
        return f"Suggested: {best.numbers} {how}, which leaves {_gib(best.least_left_bytes)} for batches."
    closest = nearest(plan.choices)
    if closest is None:
        return "Nothing fits."
    how = "on one device" if closest.shard == "none" else f"with --shard {closest.shard}"
    return (
        f"Nothing fits: {closest.numbers} {how} comes closest and lacks {_gib(closest.lacking_bytes)} on a device. "
        "Take more or larger devices, or a smaller model."
    )


def _range(sizes: Sequence[int]) -> str:
    least, most = _number(min(sizes)), _number(max(sizes))
    return f"{least} GiB" if least == most else f"{least} to {most} GiB"


def _gib(size_bytes: int) -> str:
    return f"{_number(size_bytes)} GiB"


def _number(size_bytes: int) -> str:
    """Write GiB with two digits at least: the weights of small models are far below one."""
    size = size_bytes / GIB
    return f"{size:.1f}" if size >= 1 or not size else f"{size:.2f}"
