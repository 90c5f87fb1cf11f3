"""``penstock parked``: the messages that no node could read, and what becomes of them."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from producer.client import Client
from producer.commands import options as shared
from tasks import parking
from tasks.errors import UsageError
from tasks.settings import Settings

_EXAMPLES = """
[bold]Examples[/bold]

  penstock parked --broker redis://queue:6379/0

  penstock parked --requeue        after the nodes were upgraded
"""

Requeue = Annotated[
    bool, typer.Option("--requeue", help="Put them back into their queues, those that are whole; drop the others.")
]
Drop = Annotated[bool, typer.Option("--drop", help="Forget them. What was a ticket is issued again anyway.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("parked", epilog=_EXAMPLES)(parked)


def parked(
    requeue: Requeue = False,
    drop: Drop = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """List the messages of a cluster that no node could read: of a newer release, unsigned, or garbage."""
    if requeue and drop:
        raise UsageError("Give --requeue or --drop, not both.")
    with Client(settings=Settings.load(broker_url=broker, store_url=store)) as client:
        if requeue or drop:
            n_back, n_gone = parking.empty(client.ledger, requeue=requeue)
        else:
            _list(parking.parked(client.ledger), as_json=as_json)
            return
    if as_json:
        shared.print_json({"requeued": n_back, "dropped": n_gone})
    else:
        shared.out.print(f"{n_back} messages put back, {n_gone} dropped")


def _list(found: list[parking.Parked], *, as_json: bool) -> None:
    if as_json:
        shared.print_json([message.model_dump(exclude={"message"}) for message in found])
        return
    if not found:
        shared.err.print("no parked messages")
        return
    table = Table("parked", "queue", "bytes", "why", "node", box=None)
    for message in found:
        at = datetime.datetime.fromtimestamp(message.at_ms / 1000, datetime.UTC).isoformat(timespec="seconds")
        table.add_row(at, message.queue, f"{message.size_bytes:,}", escape(message.why), escape(message.node))
    shared.out.print(table)
