"""``penstock remove``: jobs that are over, with all that the store has of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from producer.client import Client
from producer.commands import options as shared
from producer.commands.jobs import open_clients
from producer.removal import Freed, jobs_ended_before, parse_duration, remove, remove_run
from producer.runs import Run
from producer.terminal import say
from tasks.errors import EmbeddedServerDown, PenstockError, Permanent, UsageError
from tasks.settings import Settings

_EXAMPLES = """
[bold]Examples[/bold]

  penstock remove encode-3f9a1c02de

  penstock remove --ended-before 7d --dry-run
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("remove", epilog=_EXAMPLES)(remove_jobs)


def remove_jobs(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB...", help="Job ids, as `penstock jobs` lists them.")
    ] = None,
    ended_before: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="All jobs that ended longer ago than this: 30m, 12h, 7d, 2w."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Remove jobs that are over: their inputs and results in the store, their entries in the ledger.

    It asks nothing, and what it removes is gone. A removal that was interrupted is finished by the same command.
    """
    if bool(jobs) == (ended_before is not None):
        raise UsageError("Name the jobs to remove, or say --ended-before AGE, such as 7d.")
    settings = Settings.load(broker_url=broker, store_url=store)
    age_s = parse_duration(ended_before) if ended_before is not None else None
    freed: list[Freed] = []
    failed: list[PenstockError] = []
    for where, job in _named(jobs or [], broker, store, failed) if age_s is None else _aged(settings, age_s):
        try:
            freed.append(_remove(where, job, jobs or [], dry_run=dry_run))
        except Permanent as exc:
            failed.append(exc)
            continue
        if not as_json:
            shared.out.print(f"{job}: {_amount(freed[-1].objects, freed[-1].size_bytes)}", markup=False)
    if freed or not failed:
        _report(freed, dry_run=dry_run, as_json=as_json)
    for fault in failed[:-1]:
        say(str(fault))
    if failed:
        raise failed[-1]


def _named(
    jobs: list[str], broker: str | None, store: str | None, failed: list[PenstockError]
) -> Iterator[tuple[Client | Run, str]]:
    for job in jobs:
        try:
            with shared.client_of(job, broker, store) as client:
                yield client, job
        except EmbeddedServerDown as exc:
            say(str(exc))
            yield exc.data["run"], job
        except UsageError as exc:  # no run knows it
            failed.append(exc)


def _aged(settings: Settings, age_s: float) -> Iterator[tuple[Client | Run, str]]:
    for _, client in open_clients(settings):
        for job in jobs_ended_before(client, age_s):
            yield client, job


def _remove(where: Client | Run, job: str, named: list[str], *, dry_run: bool) -> Freed:
    if isinstance(where, Run):
        return remove_run(where, job, named, dry_run=dry_run)
    if where.is_embedded and not where.is_owner:
        raise UsageError(f"Another command is at work on the run of job {job}: end it first.")
    return remove(where, job, dry_run=dry_run)


def _report(freed: list[Freed], *, dry_run: bool, as_json: bool) -> None:
    objects, size_bytes = sum(one.objects for one in freed), sum(one.size_bytes for one in freed)
    if as_json:
        shared.print_json(
            {"jobs": [asdict(one) for one in freed], "objects": objects, "size_bytes": size_bytes, "dry_run": dry_run}
        )
        return
    what = "would be removed" if dry_run else "removed"
    jobs = f"{len(freed)} job{'s' * (len(freed) != 1)}"
    shared.out.print(f"{jobs} {what}: {_amount(objects, size_bytes)}", markup=False)


def _amount(objects: int, size_bytes: int) -> str:
    return f"{objects:,} object{'s' * (objects != 1)}, {size_bytes / 2**20:,.1f} MiB"
