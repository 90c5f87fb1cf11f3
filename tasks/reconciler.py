"""The one recovery mechanism: lapsed tickets and leases are issued again, lost jobs rebuilt, by whoever is there."""

from __future__ import annotations

import logging

from tasks import delivery
from tasks.errors import UnknownJob, UnreadableJob
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
        self._unreadable: set[str] = set()

    def look(self) -> None:
        """Look after all active jobs, unless another process did so in the last ``every_s`` seconds.

        Every node and every waiting client calls this again and again; a lock in the ledger lets one through.

        Raises:
            BrokerUnavailable: the next call tries again.
        """
        ledger = self._office.ledger
        ledger.identity.ids()  # remembered, should the ledger lose them
        # Who may not rebuild jobs leaves the turn to those who may.
        if not self._losses.is_allowed or not ledger.may_reconcile(self._who, self._every_s):
            return
        for job in ledger.active_jobs():
            try:
                spec = ledger.spec(job)
            except UnknownJob:  # removed meanwhile
                continue
            except UnreadableJob as exc:
                if job not in self._unreadable:  # said once
                    log.warning("Job left to others: %s", exc, extra={"action": "reconcile", "job": job})
                self._unreadable.add(job)
                continue
            delivery.publish(self._office.app, spec, ledger.reconcile(spec))
        self._losses.look()

    def stop(self) -> None:
        """Leave what goes on beside this process's own work to others."""
        self._losses.stop()
