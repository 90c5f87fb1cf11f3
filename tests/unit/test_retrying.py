"""Trying again what failed for a passing reason."""

import pytest

from tasks import retrying
from tasks.errors import BrokerFull, BrokerUnavailable, DamagedObject, StoreUnavailable
from tasks.retrying import FIRST_PAUSE_S, LONGEST_PAUSE_S, retry_transient


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    """Put a clock into the module that stands still between pauses."""
    clock = Clock()
    monkeypatch.setattr(retrying, "time", clock)
    return clock


def failing(times, error=None):
    """Return a function that fails so often before it returns its number of calls."""
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= times:
            raise error or StoreUnavailable(f"fault {len(calls)}")
        return len(calls)

    return call


def test_what_succeeds_is_called_once(clock):
    """There is no pause without a fault."""
    assert retry_transient(failing(0), for_s=60) == 1
    assert clock.pauses_s == []


def test_a_passing_fault_is_tried_again_after_growing_pauses(clock):
    """Each pause is between a half and the whole of its double predecessor, up to the longest."""
    assert retry_transient(failing(8), for_s=1000) == 9
    wanted_s = [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(8)]
    for pause_s, whole_s in zip(clock.pauses_s, wanted_s, strict=True):
        assert whole_s / 2 <= pause_s <= whole_s


def test_the_last_fault_is_raised_when_the_time_is_over(clock):
    """Patience ends before the deadline, not after it."""
    with pytest.raises(BrokerUnavailable, match="gone"):
        retry_transient(failing(10**6, BrokerUnavailable("gone")), for_s=30)
    assert 20 < clock.now_s <= 30


def test_a_fault_that_stays_is_raised_at_once(clock):
    """A damaged object does not heal."""
    with pytest.raises(DamagedObject):
        retry_transient(failing(1, DamagedObject("torn")), for_s=60)
    assert clock.pauses_s == []


def test_a_foreign_error_is_raised_at_once(clock):
    """A mistake in the program is no passing fault."""
    with pytest.raises(ZeroDivisionError):
        retry_transient(lambda: 1 // 0, for_s=60)
    assert clock.pauses_s == []


def test_without_time_there_is_one_try(clock):
    """No patience means no pause."""
    with pytest.raises(StoreUnavailable, match="fault 1"):
        retry_transient(failing(5), for_s=0)
    assert clock.pauses_s == []


def test_a_retry_is_logged_as_a_warning(clock, caplog):
    """Whoever reads the log sees what was wrong, and how often."""
    retry_transient(failing(2), for_s=60)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "fault 2" in caplog.messages[1]
    assert caplog.records[0].action == "retry"


def test_a_full_broker_is_waited_for_without_limit_and_said_once(clock, caplog):
    """Whoever gave up would lose work that only needs room; its owner reads what to do."""
    assert retry_transient(failing(200, BrokerFull("is full")), for_s=1) == 201
    assert caplog.messages == ["Waiting for room: is full"]
    assert clock.now_s > 500


def test_patience_with_other_faults_begins_when_there_is_room(clock):
    """A broker that goes away after it was full gets its whole time."""
    faults = [*[BrokerFull("is full")] * 20, *[BrokerUnavailable("gone")] * 100]

    def call():
        raise faults.pop(0)

    with pytest.raises(BrokerUnavailable, match="gone"):
        retry_transient(call, for_s=30)
    full_s = sum(clock.pauses_s[:20])
    assert full_s + 20 < clock.now_s <= full_s + 30
