"""The one recovery mechanism: lapsed tickets and leases are issued again, by whoever is there."""

from __future__ import annotations

import logging

from celery import Celery
from pydantic import ValidationError

from tasks import delivery
from tasks.errors import UnknownJob
from tasks.ledger import Ledger

log = logging.getLogger(__name__)


def reconcile(ledger: Ledger, app: Celery, *, who: str, every_s: float) -> None:
    """Look after all active jobs, unless another process did so in the last ``every_s`` seconds.

    Every node and every waiting client calls this again and again; a lock in the ledger lets one through.

    Raises:
        BrokerUnavailable: the broker does not answer; the next call tries again.
    """
    if not ledger.may_reconcile(who, every_s):
        return
    for job in ledger.active_jobs():
        try:
            spec = ledger.spec(job)
        except (UnknownJob, ValidationError) as exc:  # removed meanwhile, or of a newer version
            log.warning("Job left to others: %s", type(exc).__name__, extra={"action": "reconcile", "job": job})
            continue
        delivery.publish(app, spec, ledger.reconcile(spec))
