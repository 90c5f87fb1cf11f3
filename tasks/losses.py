"""Noticing that a ledger lost something, and having it rebuilt: by every process, each job by one of them."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import cast

from tasks import keys, manifest, recovery
from tasks.errors import BrokerDenied, DamagedObject, Permanent, Transient, UnknownJob
from tasks.ledger import Ledger
from tasks.manifest import Listed
from tasks.recovery import Office
from tasks.store import store_id

log = logging.getLogger(__name__)

#: Seconds after which the rebuilding of a job by somebody who says nothing is taken over.
SILENCE_S = 10.0
#: Seconds that a process which ends waits for what it is at.
END_S = 5.0
#: Jobs that are asked about at a time.
PAGE_JOBS = 500


class Losses:
    """Compares the ledger with the manifests in the store when there is a reason to, beside what else goes on.

    Attributes:
        is_allowed: False once the broker refused it: the user of a client may not record results.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._who = secrets.token_hex(8)
        self._store_id = ""
        self._is_ending = threading.Event()
        self.is_allowed = True
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin to compare if the ledger is empty, another server than at the last time, or never was compared."""
        if not self.is_allowed or (self._thread is not None and self._thread.is_alive()):
            return
        identity = self._office.ledger.identity
        if not self._store_id or identity.compared(self._store_id) != identity.server():
            # A thread, as the store may be slow and jobs large. It holds nothing that its end could harm.
            self._thread = threading.Thread(target=self._compare, name="losses", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Leave what is not rebuilt yet to others."""
        self._is_ending.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def _compare(self) -> None:
        identity = self._office.ledger.identity
        try:
            self._store_id = self._store_id or store_id(self._office.store)
            before, server = identity.compared(self._store_id), identity.server()
            if before != server and rebuild_lost(self._office, identity.ids(), self._who, self._check):
                identity.note_compared(self._store_id, server, before=before)
        except _Ended:
            return
        except BrokerDenied:
            self.is_allowed = False
        except Transient as exc:
            log.warning("Lost jobs not rebuilt yet: %s", exc, extra={"action": "recover"})
        except Exception:  # a thread's boundary
            log.exception("Lost jobs not rebuilt", extra={"action": "recover"})

    def _check(self) -> None:
        if self._is_ending.is_set():
            raise _Ended


class _Ended(Exception):
    """The process ends."""


def rebuild_lost(office: Office, ids: set[str], who: str, check: Callable[[], None]) -> bool:
    """Rebuild those jobs of these ledger ids that the ledger does not have as the store has them.

    Args:
        office: where.
        ids: the ledger's.
        who: this process.
        check: called after each chunk; what it raises ends this.

    Returns whether all are there now; else another process is at work on one.
    """

    def go_on(job: str) -> None:
        check()
        with office.ledger.reaching():
            office.ledger.redis.pexpire(keys.recovery(job), int(SILENCE_S * 1000))

    jobs = [listed for listed in manifest.listed(office.store) if listed.ledger in ids]
    is_complete = True
    for job in _youngest_first(office, _lost(office.ledger, jobs)):
        if not may_rebuild(office.ledger, job, who):
            is_complete = False
            continue
        try:
            recovery.rebuild(office, job, partial(go_on, job))
        except Permanent as exc:  # removed, or damaged, meanwhile
            log.error("Job not rebuilt: %s", exc, extra={"action": "recover", "job": job})  # noqa: TRY400
        except (Transient, _Ended):
            raise
        except Exception:  # one odd job must not keep the others from coming back
            log.exception("Job not rebuilt", extra={"action": "recover", "job": job})
            is_complete = False
        finally:
            _let_go(office.ledger, job)
    return is_complete


def _lost(ledger: Ledger, jobs: Sequence[Listed]) -> Iterator[Listed]:
    """Yield the jobs that the ledger does not know, or not to be sealed or ended, or whose rebuilding was left."""
    for first in range(0, len(jobs), PAGE_JOBS):
        page = jobs[first : first + PAGE_JOBS]
        with ledger.reaching(), ledger.redis.pipeline(transaction=False) as pipe:
            for job in page:
                pipe.hmget(keys.job(job.job), "state", "gate")
            answers = cast("list[list[str | None]]", pipe.execute())
        for job, (state, gate) in zip(page, answers, strict=True):
            misses_seal = state == "submitting" and job.is_sealed
            misses_end = state in {"submitting", "running"} and job.is_ended
            if state is None or gate == "0" or misses_seal or misses_end:
                yield job


def _youngest_first(office: Office, jobs: Iterable[Listed]) -> list[str]:
    """Return job ids in the order in which somebody most likely waits for them; without those that make no sense."""
    found = []
    for job in jobs:
        try:
            found.append((manifest.read(office.store, job.job).made.created_ms, job.job))
        except UnknownJob:  # removed meanwhile
            continue
        except DamagedObject as exc:
            log.error("Job not rebuilt: %s", exc, extra={"action": "recover", "job": job.job})  # noqa: TRY400
    return [job for _, job in sorted(found, reverse=True)]


def may_rebuild(ledger: Ledger, job: str, who: str) -> bool:
    """Whether this process is the one that rebuilds a job."""
    with ledger.reaching():
        return bool(ledger.redis.set(keys.recovery(job), who, nx=True, px=int(SILENCE_S * 1000)))


def _let_go(ledger: Ledger, job: str) -> None:
    with suppress(Transient), ledger.reaching():
        ledger.redis.delete(keys.recovery(job))
