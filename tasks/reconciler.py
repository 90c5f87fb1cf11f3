"""The one recovery mechanism: lapsed tickets and leases are issued again, lost jobs rebuilt, by whoever is there."""

from __future__ import annotations

import logging

from celery import Celery
from pydantic import ValidationError

from tasks import delivery
from tasks.errors import UnknownJob
from tasks.ledger import Ledger
from tasks.losses import Losses
from tasks.recovery import Office

log = logging.getLogger(__name__)


class Reconciler:
    """The look of one process at the jobs of its ledger. Every node and every waiting client has one."""

    def __init__(self, office: Office, *, who: str, every_s: float) -> None:
        self._office = office
        self._who = who
        self._every_s = every_s
        self._losses = Losses(office)

    def look(self) -> None:
        """Look after all active jobs, unless another process did so in the last ``every_s`` seconds.

        Every node and every waiting client calls this again and again; a lock in the ledger lets one through.

        Raises:
            BrokerUnavailable, StoreUnavailable: the next call tries again.
        """
        self._office.ledger.identity.ids()  # remembered, should the ledger lose them
        if reconcile(self._office.ledger, self._office.app, who=self._who, every_s=self._every_s):
            self._losses.look()


def reconcile(ledger: Ledger, app: Celery, *, who: str, every_s: float) -> bool:
    """Issue lost tickets of all active jobs again. False: another process looked after them lately."""
    if not ledger.may_reconcile(who, every_s):
        return False
    for job in ledger.active_jobs():
        try:
            spec = ledger.spec(job)
        except (UnknownJob, ValidationError) as exc:  # removed meanwhile, or of a newer version
            log.warning("Job left to others: %s", type(exc).__name__, extra={"action": "reconcile", "job": job})
            continue
        delivery.publish(app, spec, ledger.reconcile(spec))
    return True
