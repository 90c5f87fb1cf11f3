"""Time limits that follow the measured pace."""

from __future__ import annotations

import pytest

from tasks import limits
from tasks.limits import FACTOR, UNMEASURED, Pace, TimeLimits
from tests.conftest import wait_until


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that a test sets."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    stopped = Clock()
    monkeypatch.setattr(limits.time, "monotonic", stopped.monotonic)
    return stopped


def test_before_anything_is_measured_a_piece_may_take_long(clock):
    """A first batch may compile kernels."""
    pace = Pace("tokens", stall_s=60)
    pace.begin(1000)
    clock.now += 60 * UNMEASURED
    assert pace.overdue() is None
    clock.now += 1
    assert pace.overdue() == "1,000 tokens take longer than 600 s"


def test_the_limit_grows_with_the_work_at_the_measured_pace(clock):
    """A large batch may take longer than a small one."""
    pace = Pace("tokens", stall_s=60)
    pace.begin(1000)
    clock.now += 10
    pace.end()
    assert pace.limit_s(1000) == pytest.approx(FACTOR * 10)
    assert pace.limit_s(5000) == pytest.approx(FACTOR * 50)


def test_a_small_piece_may_always_take_the_stall_time(clock):
    """A machine may be busy with something else for a while."""
    pace = Pace("tokens", stall_s=60)
    pace.begin(1_000_000)
    clock.now += 1
    pace.end()
    assert pace.limit_s(1) == 60


def test_the_pace_follows_the_latest_pieces(clock):
    """A model that slows down gets longer limits."""
    pace = Pace("tokens", stall_s=0.001)
    for _ in range(50):
        pace.begin(100)
        clock.now += 1
        pace.end()
    for _ in range(50):
        pace.begin(100)
        clock.now += 10
        pace.end()
    assert pace.limit_s(100) == pytest.approx(FACTOR * 10, rel=0.01)


def test_a_piece_that_failed_teaches_nothing_and_is_not_overdue(clock):
    """The engine raised: nothing runs any more."""
    found = TimeLimits(60)

    def fail():
        with found.rows(100):
            found.batch(10)
            raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        fail()
    clock.now += 1e9
    assert found._rows.overdue() is None
    assert found._batch.overdue() is None
    assert found._rows.limit_s(1) == found._batch.limit_s(1) == 600


def test_a_batch_ends_where_the_next_one_starts_or_the_rows_are_done(clock):
    """So an engine has one thing to say."""
    found = TimeLimits(1)
    with found.rows(10_000):
        for _ in range(2):
            found.batch(1000)
            clock.now += 5
    assert found._batch.limit_s(1000) == pytest.approx(FACTOR * 5)
    assert found._rows.limit_s(10_000) == pytest.approx(FACTOR * 10)


def test_one_fast_piece_does_not_make_the_next_overdue(clock):
    """A huge text of which only the beginning is fed takes next to no time for its size."""
    pace = Pace("characters", stall_s=60)
    for amount, seconds in ((256_000, 100), (4_000_000, 2)):
        pace.begin(amount)
        clock.now += seconds
        pace.end()
    assert pace.limit_s(256_000) > 0.7 * FACTOR * 100


def test_small_pieces_teach_nothing(clock):
    """What they take is not due to their size."""
    pace = Pace("characters", stall_s=1, least=1000)
    pace.begin(5)
    clock.now += 1
    pace.end()
    assert pace.limit_s(1_000_000) == UNMEASURED


def test_rows_from_a_cache_do_not_shorten_the_limit_of_others(clock):
    """After any number of chunks that were known, one that is new has the time that its rows need."""
    said = []
    slot_limits = TimeLimits(1, said.append)
    with slot_limits.rows(100_000):
        clock.now += 100
    before = slot_limits._rows.limit_s(100_000)
    for share in (0.0, 0.001, 0.5) * 30:
        with slot_limits.rows(100_000):
            clock.now += 100 * share
            slot_limits.computed(share)
    assert slot_limits._rows.limit_s(100_000) == pytest.approx(before)
    assert said == []


def test_work_that_hangs_ends_the_process():
    """A thread finds it, whatever the main one does."""
    reasons = []
    found = TimeLimits(0.004, reasons.append)
    found.start()
    with found.rows(10):
        found.batch(7)
        wait_until(lambda: reasons, "the batch is overdue")
    assert reasons == ["7 tokens in a batch take longer than 0 s"]
