"""``penstock jobs``, ``status``, ``wait``, ``collect``, ``cancel``, ``retry`` and ``workers``."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from producer.client import Client
from producer.columns import LAYOUTS
from producer.commands import options as shared
from producer.commands.options import INTERRUPTED
from producer.job import Job, troubles
from producer.runs import runs
from producer.summary import print_summary, summary
from tasks.errors import JobFailed, UsageError
from tasks.records import JobStatus
from tasks.settings import GIB, Settings
from tasks.workforce import SlotStatus

#: Failed rows that `penstock status` names.
SHOWN_ERRORS = 10

Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FILE",
        help=".npy .parquet .arrow .jsonl, of scores also .trec and .run; or a folder or URL ending in /.",
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="K", help="Scores: best documents of a query. Default: all.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command, example in (
        ("jobs", jobs, "penstock jobs --json"),
        ("status", status, "penstock status encode-3f9a1c02de"),
        ("wait", wait, "penstock wait encode-3f9a1c02de"),
        ("collect", collect, "penstock collect encode-3f9a1c02de --out vectors.parquet"),
        ("cancel", cancel, "penstock cancel encode-3f9a1c02de"),
        ("retry", retry, "penstock retry encode-3f9a1c02de && penstock wait encode-3f9a1c02de"),
        ("workers", workers, "penstock workers --broker redis://queue:6379/0"),
    ):
        app.command(name, epilog=f"[bold]Example[/bold]\n\n  {example}")(command)


def jobs(broker: shared.Broker = None, store: shared.Store = None, as_json: shared.AsJson = False) -> None:
    """List the jobs of the cluster, or of this machine's embedded runs."""
    settings = Settings.load(broker_url=broker, store_url=store)
    found = [(where, _described(job)) for where, client in open_clients(settings) for job in client.jobs()]
    if as_json:
        shared.print_json([{**job, "where": where} for where, job in found])
        return
    if not found:
        shared.err.print("no jobs")
        return
    table = Table("job", "state", "rows", "done", "failed", "model", "created", "where", box=None)
    for where, job in found:
        numbers = (f"{job['rows']:,}", f"{job['rows_done']:,}", f"{job['failed_rows']:,}")
        table.add_row(job["job"], job["state"], *numbers, escape(job["model"]), job["created"], escape(where))
    shared.out.print(table)


def status(
    job: shared.JobId,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Show how far a job is, which rows failed and why, and what keeps its workers from it."""
    with shared.client_of(job, broker, store) as client:
        found = client.job(job)
        result = {**_described(found), "errors": found.errors(SHOWN_ERRORS)}
        result["refusals"] = client.ledger.refusals(job)
        result["troubles"] = {text: sorted(names) for text, names in troubles(found.slots()).items()}
    if as_json:
        shared.print_json(result)
        return
    print_summary(result, shared.out)
    for error in result["errors"]:
        ids = ", ".join(f"{name} {error[name]}" for name in LAYOUTS[result["operation"]].ids)
        shared.out.print(f"row {error['row']} ({ids}): {error['error']}", markup=False)
    for slot, why in result["refusals"].items():
        shared.out.print(f"{slot} refuses: {why}", markup=False)
    for trouble, names in result["troubles"].items():
        shared.out.print(f"{', '.join(names)}: {trouble}", markup=False)


def wait(
    job: shared.JobId,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Follow a job to its end. Ctrl-C leaves it running."""
    started = time.monotonic()
    with shared.client_of(job, broker, store) as client:
        found = client.job(job)
        _work_on(client, found)
        final = _follow(found)
        result = summary(final, out=[], seconds=time.monotonic() - started, workers=len(found.slots()))
    _print(result, as_json=as_json)
    if final.failed_rows:
        raise typer.Exit(JobFailed.exit_code)


def collect(  # noqa: PLR0913 - one parameter an option
    job: shared.JobId,
    out: Out,
    top_k: TopK = None,
    overwrite: Overwrite = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Write the results of a finished job. An embedded run's state folder goes when that succeeded."""
    started = time.monotonic()
    with shared.client_of(job, broker, store) as client:
        found = client.job(job)
        written = found.collect(out, top_k=top_k, overwrite=overwrite)
        result = summary(found.status(), out=written, seconds=time.monotonic() - started, workers=0)
    _print(result, as_json=as_json)
    if result["failed_rows"]:
        raise typer.Exit(JobFailed.exit_code)


def cancel(
    job: shared.JobId,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """End a job; it stays ended."""
    with shared.client_of(job, broker, store) as client:
        state = client.job(job).cancel()  # whoever runs the server of an embedded job drops its state folder then
    if as_json:
        shared.print_json({"job": job, "state": state})
    else:
        shared.out.print(f"{job} is {state}", markup=False)


def retry(
    job: shared.JobId,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Run the chunks with failed rows again; an embedded run does so at once."""
    with shared.client_of(job, broker, store) as client:
        found = client.job(job)
        is_running = found.status().state == "running"
        if is_running and not client.is_embedded:
            raise UsageError(f"Job {job} is running already: `penstock wait {job}` follows it.")
        chunks = 0 if is_running else found.retry()
        status = found.status()
        if client.is_embedded and status.state == "running":
            _work_on(client, found)
            status = _follow(found)
    if as_json:
        shared.print_json({"job": job, "state": status.state, "chunks_retried": chunks})
    else:
        what = "followed" if is_running else f"{chunks} chunks run again" if chunks else "nothing failed"
        shared.out.print(f"{job}: {what}; it is {status.state}", markup=False)
    if status.failed_rows:
        raise typer.Exit(JobFailed.exit_code)


def workers(broker: shared.Broker = None, store: shared.Store = None, as_json: shared.AsJson = False) -> None:
    """List the live workers: host, slot, device, memory, model, state, chunks done, tokens/s, last seen, and troubles.

    Of a slot on several devices, balance is the share in use of the emptiest by that of the fullest.
    """
    settings = Settings.load(broker_url=broker, store_url=store)
    found = [slot for _, client in open_clients(settings) for slot in client.live_slots()]
    if as_json:
        shared.print_json([{**asdict(slot), "balance": slot.balance} for slot in found])
        return
    if not found:
        shared.err.print("no live workers; start one with `penstock worker --model MODEL`", markup=False)
        return
    table = Table("host", "slot", "device", "memory", "model", "state", "chunks", "tokens/s", "last seen", box=None)
    for slot in found:
        rates = (f"{slot.chunks:,}", f"{slot.tokens_per_s:,.0f}", f"{slot.seen_s:.0f} s ago")
        table.add_row(slot.host, slot.slot, slot.device, _memory(slot), escape(slot.model), slot.state, *rates)
    shared.out.print(table)
    for trouble, names in troubles(found).items():
        shared.out.print(f"{', '.join(names)}: {trouble}", markup=False)


def _memory(slot: SlotStatus) -> str:
    """Write how full a slot's devices are: ``17.2 + 16.8 of 24.0 GiB, balance 98%``."""
    if not slot.memory:
        return ""
    used = " + ".join(f"{one.used_bytes / GIB:.1f}" for one in slot.memory)
    totals = [f"{one.total_bytes / GIB:.1f}" for one in slot.memory]
    total = totals[0] if len(set(totals)) == 1 else " + ".join(totals)
    return f"{used} of {total} GiB" + ("" if slot.balance is None else f", balance {slot.balance:.0%}")


def open_clients(settings: Settings) -> Iterator[tuple[str, Client]]:
    """Yield the cluster's client, or one of each embedded run."""
    if settings.broker_url is not None:
        with Client(settings=settings) as client:
            yield client.ledger.where, client
        return
    for run in runs(settings.state_dir):
        if (run.jobs() or run.has_lost_note) and (opened := shared.open_run(run, settings)):
            with opened:
                yield str(run.folder), opened


def _work_on(client: Client, job: Job) -> None:
    """Start the workers of an embedded job that nobody works on."""
    if not client.is_embedded or job.status().is_over:
        return
    if not client.ledger.is_sealed(job.id):
        raise UsageError(
            f"Job {job.id} was interrupted before its corpus was read to the end; run the same `penstock "
            f"{job.spec.operation}` command again to go on."
        )
    client.start_workers(str(job.spec.model), operation=job.spec.operation)


def _follow(job: Job) -> JobStatus:
    """Wait for the end of a job; Ctrl-C leaves it."""
    try:
        return job.wait(progress=True)
    except KeyboardInterrupt:
        shared.err.print(f"penstock: `penstock wait {job.id}` comes back to this job.", markup=False)
        raise typer.Exit(INTERRUPTED) from None


def _described(job: Job) -> dict[str, Any]:
    status = job.status()
    created = datetime.datetime.fromtimestamp(status.created_ms / 1000, datetime.UTC)
    return {
        **summary(status, out=[], seconds=None, workers=len(job.slots())),
        "created": created.isoformat(timespec="seconds"),
    }


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        shared.print_json(result)
    else:
        print_summary(result, shared.err)
