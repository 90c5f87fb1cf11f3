"""Models that take long to load."""

from __future__ import annotations

import psutil

from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.rig import Rig, now, wait_until

#: Longer than Celery gives a new process by default, which is 4 s.
LOAD_S = by_size(5, 30)
MODEL = f"fake:load_s={LOAD_S},ms_per_row=10"


def test_a_slot_that_is_replaced_takes_no_ticket_before_its_model_is_loaded(rig: Rig) -> None:
    """A child is killed; the next one loads for long, while its node's other slot does all the work."""
    rig.need_worker(MODEL, slots=2)
    before = rig.pids(MODEL)
    job = rig.submit(by_size(200, 2000), MODEL)
    rig.wait_for_record(job)
    victim = wait_until(lambda: next((s for s in rig.slots(MODEL) if s.claim), None), "a slot has a chunk")
    psutil.Process(victim.pid).kill()
    since = now()
    (chunk,) = (int(victim.claim.split()[1]),)
    wait_until(lambda: rig.is_recorded(job, chunk), "its chunk is done")
    recovery_s = now() - since

    def has_loaded() -> bool:
        for slot in rig.ledger.workforce.named([victim.slot]):
            assert slot.pid in before or slot.state == "ready" or not slot.claim, "it took a ticket while it loads"
            if slot.pid not in before and slot.state == "ready":
                return True
        return False

    wait_until(has_loaded, "the new slot is ready")
    assert now() - since >= LOAD_S
    assert rig.settle("slot killed whose model loads long", job, recoveries_s=[recovery_s]) == FLAWLESS
