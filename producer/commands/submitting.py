"""From a command line to results: what ``penstock encode`` and ``penstock score`` do once they know what is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from producer.chunking import Chunk, PairChunk
from producer.client import Client
from producer.commands import options as shared
from producer.commands.options import INTERRUPTED
from producer.commands.report import check_report, write_report
from producer.corpus import Opened, job_key
from producer.job import Job
from producer.progress import Progress
from producer.runs import Run
from producer.summary import print_summary, summary
from tasks.errors import JobFailed, PenstockError, Transient, UnknownJob, UsageError
from tasks.messages import JobSpec, ModelSpec, OnError
from tasks.options import EncodeOptions, ScoreOptions
from tasks.settings import Settings


@dataclass(frozen=True)
class Order:
    """A job as a command line asks for it.

    Attributes:
        settings: its model is set.
        options: how; they say which operation it is.
        corpus: what is sent.
        keep_fields: fields that are carried to the results.
        missing_id: what to call the ids that records lack, if the command names where they are.
        out: where results go; None leaves them in the store.
        top_k: best documents of a query that are written; all if None.
        page: where the job's report goes.
        started: when the command began, by ``time.monotonic``.
    """

    settings: Settings
    options: EncodeOptions | ScoreOptions
    corpus: Opened
    keep_fields: tuple[str, ...]
    missing_id: str | None
    on_error: OnError
    name: str
    new: bool
    out: str | None
    top_k: int | None
    overwrite: bool
    page: Path | None
    detach: bool
    as_json: bool
    started: float

    @property
    def model(self) -> str:
        """What is loaded."""
        return str(self.settings.model)


def check_order(
    settings: Settings, *, out: str | None, report: str | None, overwrite: bool, detach: bool
) -> Path | None:
    """Find out before anything is read what cannot be. Returns where the job's page goes, if one is wanted.

    Raises:
        UsageError: no model is named, or options do not go together.
    """
    if settings.model is None:
        raise UsageError("No model is named: give --model MODEL or set PENSTOCK_MODEL.")
    if detach and (out is not None or report is not None):
        raise UsageError("--detach leaves before there are results: see `penstock collect` and `penstock report`.")
    if detach and settings.broker_url is None:
        raise UsageError("--detach needs a cluster: name its broker with --broker. Embedded workers end with us.")
    return _check_page(report, out, overwrite=overwrite)


def run_order(order: Order) -> None:
    """Submit a job, follow it, collect it and say what it was; or leave it to the workers."""
    with _open(order.settings, _run_name(order)) as client:
        spec = client.spec(
            order.model,
            order.options,
            new=order.new,
            key=order.corpus.key,
            on_error=order.on_error,
            name=order.name,
            keep_fields=order.keep_fields,
        )
        if not _is_done(client, spec):
            client.start_workers(order.model)
        job = _submit_and_wait(client, spec, order)
        if job is None:
            _report_detached(client, spec, as_json=order.as_json)
            return
        if order.page is not None:  # before an embedded run is collected, and goes
            _write_report(client, job, order.page)
        status = job.status()
        written = [] if order.out is None else job.collect(order.out, top_k=order.top_k, overwrite=order.overwrite)
        result = summary(
            status,
            out=written,
            seconds=time.monotonic() - order.started,
            workers=len(client.live_slots(spec.queue)),
        )
    _report(result, as_json=order.as_json)
    if status.failed_rows:
        raise typer.Exit(JobFailed.exit_code)


def _run_name(order: Order) -> str:
    """Return the name of the embedded run of this very command."""
    parsed = ModelSpec.parse(order.model, order.options.operation)
    store = order.settings.store_url or ""
    key = job_key(order.corpus.key, order.settings, parsed, order.options, on_error=order.on_error, store=store)
    return key[:16]


def _check_page(report: str | None, out: str | None, *, overwrite: bool) -> Path | None:
    """Return where the job's page goes, if one is wanted."""
    if report is None:
        return None
    page = check_report(report, overwrite=overwrite, option="--report")
    if out is not None and page == Path(out).resolve():
        raise UsageError(f"--report {report}: that is --out. Name another file for the page.")
    return page


def _write_report(client: Client, job: Job, page: Path) -> None:
    """Write the page; its faults do not keep the results back."""
    try:
        write_report(client, job.id, page)
    except (PenstockError, OSError) as exc:
        shared.err.print(f"penstock: no report: {exc}", markup=False)


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        shared.print_json(result)
        return
    print_summary(result, shared.err)
    if result["failed_rows"]:
        shared.err.print(f"run the failed rows again with: penstock retry {result['job']}", markup=False)
    if result["failed_rows"] or not result["out"]:
        shared.err.print(f"collect with: penstock collect {result['job']} --out FILE", markup=False)


@contextmanager
def _open(settings: Settings, name: str) -> Iterator[Client]:
    """Open the cluster, or the embedded run of this very command with its workers."""
    if settings.broker_url is not None:
        with Client(settings=settings) as client:
            yield client
        return
    run = Run.at(settings.state_dir, name)
    with Client.embedded(run=run, settings=settings) as client:
        if not client.is_owner:
            raise UsageError(
                f"The same command is running already, in {run.folder}. `penstock jobs` shows how far it is."
            )
        shared.err.print(f"state: {run.folder}", markup=False)
        yield client


def _is_done(client: Client, spec: JobSpec) -> bool:
    """Print the id of a job, and that it is an older one if it is. Returns whether that has all its results."""
    try:
        status = client.ledger.status(spec.job)
    except UnknownJob:
        shared.err.print(f"job: {spec.job}", markup=False)
        return False
    shared.err.print(
        f"job: {spec.job} of the same command is continued ({status.state}, {status.rows_done:,} rows done); --new "
        "starts afresh",
        markup=False,
    )
    return status.state == "done"


def _submit_and_wait(client: Client, spec: JobSpec, order: Order) -> Job | None:
    """Submit a job and wait for its end. Returns None if it is left to the workers."""
    unnamed = 0
    with Progress() as shown:

        def show(chunk: Chunk | PairChunk) -> None:
            nonlocal unnamed
            unnamed += chunk.n_unnamed if isinstance(chunk, Chunk) else 0
            with suppress(Transient):  # what is shown may wait
                shown.update_now_and_then(lambda: (client.ledger.status(spec.job), client.live_slots(spec.queue)))

        try:
            job = client.submit(spec, order.corpus, show)
            for warning in order.corpus.warnings:
                shown.say(f"penstock: {warning}")
            if order.missing_id and unnamed:
                shown.say(f"penstock: {unnamed:,} rows have no {order.missing_id}; their ids are row numbers.")
            if order.detach:
                return None
            job.follow(shown)
        except KeyboardInterrupt:
            shown.say(_interrupted(client, spec, is_repeatable=order.corpus.is_repeatable))
            raise typer.Exit(INTERRUPTED) from None
    return job


def _interrupted(client: Client, spec: JobSpec, *, is_repeatable: bool) -> str:
    is_sealed = client.ledger.is_sealed(spec.job)
    if client.is_embedded and is_repeatable:
        return "penstock: interrupted. The same command goes on from here."
    if is_repeatable and not is_sealed:
        return (
            f"penstock: interrupted before all of job {spec.job} was uploaded. The same command goes on from here, "
            f"`penstock cancel {spec.job}` drops the job."
        )
    if client.is_embedded and is_sealed:
        return f"penstock: interrupted. `penstock wait {spec.job}` goes on from here, `penstock collect` comes after."
    if client.is_embedded:
        client.note_collected(spec.job)
        return "penstock: interrupted before standard input was read to its end; nothing is kept."
    if not is_sealed:
        client.end(spec, "cancelled", "its submission was interrupted")
        return f"penstock: interrupted before all was uploaded; job {spec.job} is cancelled."
    return (
        f"penstock: job {spec.job} goes on without this command. `penstock wait {spec.job}` follows it, "
        f"`penstock cancel {spec.job}` ends it."
    )


def _report_detached(client: Client, spec: JobSpec, *, as_json: bool) -> None:
    slots = client.live_slots(spec.queue)
    if as_json:
        shared.print_json({"job": spec.job, "state": client.ledger.status(spec.job).state, "workers": len(slots)})
    else:
        typer.echo(spec.job)
    if not slots:
        shared.err.print(f"penstock: no live worker serves {spec.model}. {client.how_to_start(spec)}", markup=False)


def print_estimate(found: dict[str, Any], *, as_json: bool) -> None:
    """Print what ``--dry-run`` found."""
    if as_json:
        shared.print_json(found)
        return
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        shared.out.print(f"{name.replace('_', ' ')}: {'unknown' if shown is None else shown}", markup=False)
