"""``penstock recover``: the jobs of a store, brought back into a broker that has lost them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from producer.client import Client
from producer.commands import options as shared
from producer.submission import PATIENCE_S
from producer.terminal import say
from tasks import manifest
from tasks.errors import Permanent, UsageError
from tasks.recovery import Rebuilt, rebuild
from tasks.retrying import retry_transient
from tasks.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    example = "penstock recover s3://bucket/penstock --broker redis://queue:6379/0"
    app.command("recover", epilog=f"[bold]Example[/bold]\n\n  {example}")(recover)


def recover(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Where the jobs live: file:// s3:// gs:// az:// redis://.")
    ],
    broker: shared.Broker = None,
    as_json: shared.AsJson = False,
) -> None:
    """Bring the jobs of a store back into a broker that lost them, or into a new one.

    What is done is not done again. Jobs that the broker has, whole, stay as they are. Give it once only one broker
    is left to work on these jobs: those of another one are taken over too.
    """
    failed: list[Permanent] = []
    with Client(settings=Settings.load(broker_url=broker, store_url=store)) as client:
        found = list(_rebuild_all(client, failed))
        where = client.store.url
    if as_json:
        shared.print_json({"store": where, "jobs": [asdict(job) for job in found]})
    elif found:
        _print_table(found)
    for fault in failed[:-1]:
        say(str(fault))
    if failed:
        raise failed[-1]


def _rebuild_all(client: Client, failed: list[Permanent]) -> Iterator[Rebuilt]:
    listed = retry_transient(lambda: list(manifest.listed(client.store)), for_s=PATIENCE_S)
    if not listed:
        raise UsageError(f"{client.store.url} holds no job that could be recovered: none has a manifest.")
    # From now on they are this ledger's own, which would bring them back by itself.
    ids = {job.ledger for job in listed}
    retry_transient(lambda: client.ledger.identity.add_from(client.store_id, ids), for_s=PATIENCE_S)
    for number, job in enumerate(listed, 1):
        try:
            yield _rebuild(client, job.job, f"job {number} of {len(listed)}")
        except Permanent as exc:
            failed.append(exc)


def _rebuild(client: Client, job: str, place: str) -> Rebuilt:
    chunks = 0
    with shared.err.status(f"{place}: {job}") as shown:

        def show() -> None:
            nonlocal chunks
            chunks += 1
            shown.update(f"{place}: {job}, {chunks:,} chunks read")

        return retry_transient(lambda: rebuild(client.office, job, show), for_s=PATIENCE_S)


def _print_table(found: list[Rebuilt]) -> None:
    table = Table("job", "state", "chunks", "results", "damaged", box=None)
    for job in found:
        table.add_row(job.job, job.state, *(f"{count:,}" for count in (job.chunks, job.results, job.damaged)))
    shared.out.print(table)
