"""``penstock plan-model``: thin, because the worker's room is the only one that knows models."""

from __future__ import annotations

from typing import Annotated

import typer

from producer.commands import options as shared
from tasks.errors import UsageError
from tasks.options import Operation

_EXAMPLES = """
[bold]Examples[/bold]

  penstock plan-model Qwen/Qwen3-Embedding-8B

  penstock plan-model Qwen/Qwen3-Reranker-8B --operation score --device-memory 24GiB,24GiB

  penstock plan-model /models/e5-mistral-7b --device-memory 8x80GiB --json
"""

DeviceMemory = Annotated[
    str | None,
    typer.Option(
        "--device-memory",
        metavar="LIST",
        help="Plan for GPUs that are not here, by their memory: 24GiB,24GiB or 8x80GiB.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan-model", epilog=_EXAMPLES)(plan_model)


def plan_model(  # noqa: PLR0913 - one parameter an option
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `penstock worker --model`.")],
    operation: Annotated[
        Operation | None, typer.Option(help="What to do with the model: encode texts, or score pairs. Default: encode.")
    ] = None,
    devices: shared.Devices = None,
    device_memory: DeviceMemory = None,
    memory_ratio: shared.MemoryRatio = None,
    trust_remote_code: shared.TrustRemoteCode = None,
    as_json: shared.AsJson = False,
) -> None:
    """Show what a model's weights take on each device, in all numbers and shards, and which worker to start.

    By its configuration and the sizes of its weights: nothing is loaded. Exit status 0 also if nothing fits.
    """
    if devices is not None and device_memory is not None:
        raise UsageError("--devices names those of this machine, --device-memory others: give one.")
    settings = shared.load_settings(locals())
    command = ["workers.plan_model", *(["--json"] if as_json else [])]
    if device_memory is not None:
        command.append(f"--device-memory={device_memory}")
    shared.become_worker(settings, *command)
