"""Removing jobs: what the store has of them, and what the ledger has.

The ledger says first that the job is cancelled, so that an interrupted removal leaves nothing that anybody would
continue, collect or retry. Then its manifest goes, from which it would be rebuilt, then its objects, and at last its
entry in the ledger, by which the same command finds it again until then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from producer.embedded import EmbeddedServer
from producer.runs import Run
from producer.submission import PATIENCE_S
from tasks import keys
from tasks.errors import UnknownJob, UnreadableJob, UsageError
from tasks.messages import JOB_ID_PATTERN
from tasks.retrying import retry_transient
from tasks.store import Store

if TYPE_CHECKING:
    from producer.client import Client

T = TypeVar("T")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Freed:
    """What the removal of a job frees in its store."""

    job: str
    objects: int
    size_bytes: int


def parse_duration(text: str) -> float:
    """Return the seconds that ``90s``, ``30m``, ``12h``, ``7d`` or ``2w`` mean.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", text, re.ASCII)
    if not found:
        raise UsageError(f"{text[:40]!r} is no duration: write 90s, 30m, 12h, 7d or 2w.")
    return float(found[1]) * _SECONDS[found[2]]


def jobs_ended_before(client: Client, seconds: float) -> Iterator[str]:
    """Yield the jobs that ended more than so many seconds ago, by the broker's clock, oldest first."""
    limit_ms = client.ledger.now_ms() - 1000 * seconds
    for job in client.ledger.jobs():
        with suppress(UnknownJob, UnreadableJob):  # somebody else removed it meanwhile, or it is of another release
            status = client.ledger.status(job)
            if status.is_over and status.finished_ms < limit_ms:
                yield job


def remove(client: Client, job: str, *, dry_run: bool = False) -> Freed:
    """Remove a job that is over, with all that its store has of it.

    Args:
        client: of the job's cluster or run.
        job: its id. One that the ledger has no more, but the store has, is removed too.
        dry_run: change nothing.

    Raises:
        UsageError: the job is not over, or may be another broker's.
        UnknownJob: neither the ledger nor the store has it.
        JobRefused: it lives in another store.
    """
    if not re.fullmatch(JOB_ID_PATTERN, job):
        raise UnknownJob(f"No job {job!r}. `penstock jobs` lists those that there are.")
    try:
        status = client.ledger.status(job)
    except UnknownJob:
        return _remove_rest(client, job, dry_run=dry_run)
    if not status.is_over:
        raise UsageError(f"Job {job} is {status.state}: `penstock cancel {job}` comes first.")
    client.job(job).check_store()
    freed = _measure(client, job)
    if not dry_run:
        _patiently(lambda: client.ledger.withdraw(status.spec))
        delete_objects(client.store, job)
        _patiently(lambda: client.ledger.remove(status.spec))
        client.note_collected(job)
    return freed


def remove_run(run: Run, job: str, named: Sequence[str], *, dry_run: bool = False) -> Freed:
    """Remove an embedded run whose server cannot start, with all its jobs.

    Raises:
        UsageError: it has other jobs than the named ones, or another command is at work on it.
    """
    others = sorted(set(run.jobs()) - set(named))
    if others:
        raise UsageError(
            f"Job {job} goes only with its folder, which has others too. Name them all: {' '.join(others)}."
        )
    if len(run.jobs()) > 1:  # the last of them takes the folder along
        if not dry_run:
            run.forget(job)
        return Freed(job, 0, 0)
    sizes = [file.stat().st_size for file in run.folder.rglob("*") if file.is_file()]
    if not dry_run and not EmbeddedServer(run).discard():
        raise UsageError(f"Another command is at work on the run of job {job}: end it first.")
    return Freed(job, len(sizes), sum(sizes))


def _remove_rest(client: Client, job: str, *, dry_run: bool) -> Freed:
    """Remove what is left of a job that the ledger has no more."""
    if any(_patiently(lambda: list(client.store.list_keys(keys.manifest(job))))):
        raise UsageError(
            f"The broker does not know job {job}, and its store could rebuild it: it is another broker's, or this one "
            f"lost it. `penstock recover {client.store.url}` brings it back; remove it then."
        )
    freed = _measure(client, job)
    is_noted = client.run is not None and job in client.run.jobs()
    if not freed.objects and not is_noted:
        raise UnknownJob(f"No job {job!r}, neither in {client.ledger.where} nor in {client.store.url}.")
    if not dry_run:
        delete_objects(client.store, job)
        client.note_collected(job)
    return freed


def _measure(client: Client, job: str) -> Freed:
    return Freed(job, *_patiently(lambda: client.store.measure_folder(keys.job_folder(job))))


def delete_objects(store: Store, job: str) -> None:
    """Delete all that a store has of a job, its manifest first."""
    for folder in (keys.manifest(job), keys.job_folder(job)):
        _patiently(lambda folder=folder: store.delete_folder(folder))  # type: ignore[misc]


def _patiently(call: Callable[[], T]) -> T:
    return retry_transient(call, for_s=PATIENCE_S)
