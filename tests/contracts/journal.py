"""What every ledger remembers of rows at work, whether its Redis is a real server or the in-process fake.

A test module inherits `JournalContract` and supplies the fixture `ledger`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.endings import STOPPED, Ending
from tasks.journal import Journal
from tasks.ledger import MOST_CONDEMNED, MOST_STOPS
from tests.contracts.desk import Desk, wait_ms


class JournalContract:
    """The contract; the fixture `ledger` comes from whoever inherits it."""

    @pytest.fixture
    def desk(self, ledger, make_spec):
        """Return a job with one chunk out."""
        desk = Desk(ledger, make_spec()).create()
        desk.announce(0)
        return desk

    def test_the_first_attempt_finds_an_empty_journal(self, desk):
        """Nothing is known of the chunk."""
        assert desk.take(0).journal == Journal()

    def test_the_next_attempt_finds_the_rows_that_were_at_work(self, desk):
        """And how the last one ended."""
        lease = desk.take(0)
        assert desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("died", "it was killed"))
        assert desk.take(0).journal == Journal(suspects=(3, 9), why="it was killed")

    def test_only_the_last_rows_at_work_are_suspects(self, desk):
        """The groups before them came through."""
        lease = desk.take(0)
        for rows in ((0, 3), (3, 6), (6, 9)):
            desk.ledger.journal(lease, lease.journal, rows)
        desk.free(lease, Ending("died", "it was killed"))
        assert desk.take(0).journal.suspects == (6, 9)

    def test_what_was_learned_is_carried_on(self, desk):
        """A row that ends its process a second time is condemned, whoever is at work."""
        for slot in ("node/0", "node/1"):
            lease = desk.take(0, slot=slot)
            desk.ledger.journal(lease, lease.journal, (5, 6))
            desk.free(lease, Ending("died", f"{slot} was killed"))
        assert desk.take(0).journal == Journal(condemned={5: "node/1 was killed"}, why="node/1 was killed")

    def test_an_attempt_that_noted_no_rows_adds_nothing(self, desk):
        """It ended before, or is the first, which runs the chunk as a whole; what was known stays."""
        lease = desk.take(0)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("died", "it was killed"))
        again = desk.take(0)
        desk.free(again, Ending("died", "it was killed before it began"))
        assert desk.take(0).journal == Journal(suspects=(3, 9), why="it was killed before it began")

    def test_rows_are_not_suspected_when_the_attempt_is_forgiven(self, desk):
        """Somebody ended the slot; what was learned before stays."""
        lease = desk.take(0)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("died", "it was killed"))
        again = desk.take(0)
        desk.ledger.journal(again, again.journal, (20, 30))
        desk.free(again)
        assert desk.take(0).journal.suspects == (3, 9)

    def test_rows_are_not_suspected_when_the_process_lives(self, desk):
        """The attempt counts, but something else went wrong."""
        lease = desk.take(0)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("failed", "KeyError in record"))
        again = desk.take(0)
        assert (again.attempts, again.journal) == (2, Journal(why="KeyError in record"))

    def test_a_slot_that_is_told_to_end_again_and_again_is_evidence(self, desk):
        """A row may be the one who tells it."""
        for _ in range(MOST_STOPS):
            lease = desk.take(0)
            assert lease.attempts == 1
            desk.ledger.journal(lease, lease.journal, (3, 9))
            desk.free(lease, STOPPED)
        lease = desk.take(0)
        assert lease.journal.suspects is None
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, STOPPED)
        again = desk.take(0)
        assert (again.attempts, again.journal) == (2, Journal(suspects=(3, 9), why="its slot was told to end"))

    def test_attempts_that_condemned_a_row_do_not_count_against_the_others(self, desk):
        """Not without limit: a chunk may be poison through and through."""
        for _ in range(5):
            desk.free(desk.take(0), Ending("died", "it was killed"))
        lease = desk.take(0)
        assert lease.attempts == 6
        desk.ledger.journal(lease, Journal(condemned={5: "it was killed"}), (3, 5))
        desk.free(lease, Ending("died", "it was killed"))
        again = desk.take(0)
        assert again.attempts == 3
        many = Journal(condemned=dict.fromkeys(range(MOST_CONDEMNED + 1), "it was killed"))
        desk.ledger.journal(again, many, (40, 50))
        desk.free(again, Ending("died", "it was killed"))
        assert desk.take(0).attempts == 4

    def test_a_lease_that_lapses_is_evidence(self, desk):
        """Nobody is left to say how its slot ended."""
        lease = desk.take(0, lease_s=0.001)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        wait_ms(desk.ledger, 2)
        desk.reconcile()
        assert desk.take(0).journal == Journal(suspects=(3, 9), why="its slot fell silent")

    def test_a_slot_that_lost_its_lease_notes_nothing(self, desk):
        """It stops there."""
        lease = desk.take(0)
        assert not desk.ledger.journal(replace(lease, token=lease.token + 1), lease.journal, (3, 9))
        desk.end("cancelled")
        assert not desk.ledger.journal(lease, lease.journal, (3, 9))
        assert desk.snapshot()["journal"] == {}

    def test_a_recorded_chunk_leaves_no_journal(self, desk):
        """The ledger does not grow with what went wrong."""
        lease = desk.take(0)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("died", "it was killed"))
        again = desk.take(0)
        desk.ledger.journal(again, again.journal, (3, 4))
        desk.record(again)
        assert desk.snapshot()["journal"] == {}

    def test_a_retry_forgets_what_was_learned(self, desk):
        """The row may have a better model now."""
        lease = desk.take(0)
        desk.ledger.journal(lease, lease.journal, (3, 9))
        desk.free(lease, Ending("died", "it was killed"))
        desk.seal(1)
        desk.end("failed", "a reason")
        desk.ledger.retry(desk.spec)
        assert desk.take(0).journal == Journal()
