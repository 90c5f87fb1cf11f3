"""A host whose clock is wrong: all deadlines go by the broker's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.proxy import Trap, Verdict
from tests.faults.rig import Rig, now, wait_until
from tests.faults.steps import evalsha


def in_another_time(offset: str) -> dict[str, str]:
    """Return the variables that make processes see another time; how fast it passes stays."""
    import libfaketime

    library = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded, which needs Linux")
@pytest.mark.parametrize("offset", by_size(["+10m"], ["+10m", "-10m"]))
def test_a_host_whose_clock_is_ten_minutes_off_takes_nothing_from_others(rig: Rig, offset: str) -> None:
    """One of two nodes lives in another time: both work, and no chunk is claimed twice."""
    rig.stop_workers()
    rig.start_worker(slots=1)
    rig.start_worker(slots=1, **in_another_time(offset))
    claims = rig.proxy.set(Trap(evalsha("claim"), lambda *_: Verdict.FORWARD, reply=b"leased", times=None))
    since = now()
    running = rig.start_encode(by_size(300, 10_000))
    recovery_s = rig.recovery_s(running.job, since)
    fault = f"clock of one host {offset.removesuffix('m')} minutes"
    assert rig.settle_encode(fault, running, recoveries_s=[recovery_s]) == FLAWLESS
    assert claims.sprung == running.rows // 10
    wait_until(lambda: sum(slot.chunks for slot in rig.slots()) == running.rows // 10, "the slots reported")
    assert min(slot.chunks for slot in rig.slots()) > 0
