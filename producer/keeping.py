"""What becomes of an embedded run when its owner opens and closes it: what was lost comes back, what is over goes."""

from __future__ import annotations

import logging
import secrets

from producer.removal import delete_objects
from producer.runs import Run
from tasks import manifest
from tasks.errors import Transient, UnknownJob, UnreadableJob
from tasks.ledger import Ledger
from tasks.losses import rebuild_lost
from tasks.recovery import Office

log = logging.getLogger(__name__)


def restore(office: Office, run: Run, store_url: str) -> None:
    """Bring back what the run's ledger and its note lost when the machine stopped, or when files were deleted.

    Args:
        office: the run's.
        store_id: of the office's store.
        run: whose lock is held.
        store_url: where its jobs are taken to live if its note is lost.
    """
    if office.store.url == run.own_store_url:  # nobody else's jobs are in it
        ids = {listed.ledger for listed in manifest.listed(office.store)}
        if ids:
            office.ledger.identity.add(ids)
            rebuild_lost(office, ids, secrets.token_hex(8), lambda: None)
    if run.has_lost_note:
        run.write_note([job for job in office.ledger.jobs() if _state(office.ledger, job) != "cancelled"], store_url)


def is_over(office: Office, run: Run) -> bool:
    """Whether the folder of a run may go, as each of its jobs was collected or cancelled.

    What its jobs have in a store elsewhere is deleted then: nobody would find it again.
    """
    try:
        for job in run.jobs():
            if _state(office.ledger, job) == "cancelled":  # perhaps by another command
                run.forget(job)
        if not run.is_spent:
            log.info("State kept, its jobs were not collected", extra={"folder": str(run.folder)})
            return False
        if run.store_url() != run.own_store_url:
            for job in office.ledger.jobs():
                delete_objects(office.store, job)
    except Transient as exc:
        log.warning("State kept: %s", exc, extra={"action": "keep", "folder": str(run.folder)})
        return False
    return True


def _state(ledger: Ledger, job: str) -> str:
    try:
        return ledger.status(job).state
    except (UnknownJob, UnreadableJob):
        return ""
