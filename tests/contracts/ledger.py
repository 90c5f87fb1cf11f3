"""What every ledger does, whether its Redis is a real server or the in-process fake.

A test module inherits `LedgerContract` and supplies the fixture `ledger`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks import keys
from tasks import ledger as ledger_module
from tasks.errors import UnknownJob
from tasks.ledger import Recorded, Refusal
from tasks.workforce import MOST_DEVICES, DeviceUse, SlotStatus
from tests.conftest import wait_until
from tests.contracts.desk import DIED, Desk, now_ms, wait_ms


def slot_status(**fields) -> SlotStatus:
    """Return a slot that is ready; keyword arguments replace its fields."""
    status = SlotStatus(
        slot="node/0",
        node="node",
        host="host",
        pid=1,
        device="cpu",
        model="fake",
        queue="queue-1",
        store_id="store-1",
        state="ready",
    )
    return replace(status, **fields)


class LedgerContract:
    """The contract; the fixture `ledger` comes from whoever inherits it."""

    @pytest.fixture
    def desk(self, ledger, make_spec):
        """Return a fresh job behind a gate of four."""
        return Desk(ledger, make_spec()).create()

    @pytest.fixture
    def without_grace(self, monkeypatch):
        """Make every ticket that is out old enough to count as lost."""
        monkeypatch.setattr(ledger_module, "TICKET_GRACE_S", 0.0)

    # -- submitting ------------------------------------------------------------------------------------------

    def test_a_new_job_is_submitting_and_empty(self, desk):
        """Nothing but its spec is known of a job that was just created."""
        status = desk.status
        assert (status.state, status.spec, status.chunks, status.rows) == ("submitting", desk.spec, 0, 0)
        assert not status.is_sealed
        assert not status.is_over
        assert desk.ledger.active_jobs() == [desk.spec.job]

    def test_creating_a_job_again_keeps_what_it_has(self, desk):
        """A client that resumes a submission does not reset the job."""
        desk.announce(0)
        before = desk.snapshot()
        desk.create()
        assert desk.snapshot() == before

    def test_a_chunk_announced_twice_counts_once(self, desk):
        """The second announcement finds that it was heard."""
        assert desk.announce(0) == [0]
        assert desk.announce(0) == []
        assert (desk.status.chunks, desk.status.rows, desk.status.input_bytes) == (1, 10, 1000)

    def test_a_gap_is_not_announced(self, desk):
        """Chunks are announced in order, so that their number says which there are."""
        desk.announce(0)
        assert desk.announce(2) == []
        assert desk.ledger.announced(desk.spec.job) == 1
        assert desk.announce(1, 2) == [1, 2]

    def test_nothing_is_announced_once_the_job_is_sealed(self, desk):
        """The sealed total is final."""
        desk.announce(0)
        desk.seal(1)
        assert desk.ledger.announce(desk.spec, 1, 10, 1000) == ("running", [])
        assert desk.status.chunks == 1

    def test_the_announcer_of_a_job_that_ended_hears_so(self, desk):
        """A submission stops when its job was cancelled elsewhere."""
        desk.announce(0)
        desk.end("cancelled")
        assert desk.ledger.announce(desk.spec, 1, 10, 1000) == ("cancelled", [])

    def test_a_job_that_does_not_exist_has_an_unknown_state(self, ledger, make_spec):
        """Neither announcing nor sealing makes a job."""
        spec = make_spec()
        assert ledger.announce(spec, 0, 1, 1) == ("unknown", [])
        assert ledger.seal(spec, 0, {}) == ("unknown", [])
        assert ledger.jobs() == []

    def test_a_job_is_not_sealed_before_all_its_chunks_are_announced(self, desk):
        """A wrong total is refused."""
        desk.announce(0, 1)
        assert desk.seal(3) == "gap"
        assert desk.status.state == "submitting"
        assert not desk.ledger.is_sealed(desk.spec.job)
        assert desk.seal(2) == "running"
        assert desk.ledger.is_sealed(desk.spec.job)

    def test_the_types_of_kept_fields_are_known_once_sealed(self, desk):
        """Collecting needs the types that the whole corpus showed."""
        desk.announce(0)
        desk.ledger.seal(desk.spec, 1, {"year": "int64", "title": "string"})
        assert desk.status.kept_types == {"year": "int64", "title": "string"}

    # -- the gate --------------------------------------------------------------------------------------------

    def test_the_gate_lets_out_no_more_tickets_than_it_is_wide(self, desk):
        """The broker's memory does not depend on the size of the job."""
        assert desk.announce(*range(10)) == [0, 1, 2, 3]

    def test_whoever_takes_a_ticket_out_of_the_queue_releases_the_next(self, desk):
        """A sealed job needs no living client, and the gate does not limit how many slots work."""
        desk.announce(*range(6))
        desk.seal(6)
        leases = [desk.take(chunk, slot=f"node/{chunk}") for chunk in range(6)]
        assert [lease.released for lease in leases] == [(4,), (5,), (), (), (), ()]
        assert [desk.record(lease)[1] for lease in leases] == [[]] * 6
        assert desk.status.state == "done"

    def test_a_chunk_given_back_goes_out_again_before_fresh_ones(self, ledger, make_spec):
        """What was begun is finished first."""
        desk = Desk(ledger, make_spec(), gate=1).create()
        desk.announce(0, 1, 2)
        lease = desk.take(0)
        assert lease.released == (1,)
        assert desk.free(lease) == []  # the queue is as full as it may be
        assert desk.take(1, slot="node/1").released == (0,)

    def test_jobs_have_gates_of_their_own(self, desk, make_spec):
        """A small job does not wait behind a large one."""
        desk.announce(*range(10))
        other = Desk(desk.ledger, make_spec(), gate=2).create()
        assert other.announce(0, 1, 2) == [0, 1]

    def test_tickets_that_nobody_takes_are_not_issued_on_top_of_each_other(self, ledger, make_spec):
        """They lapse and lapse again; as long as the queue is full, no further ones come."""
        desk = Desk(ledger, make_spec(), gate=2, ticket_s=0.2).create()
        ledger.redis.rpush(desk.spec.queue, *(f"ticket {chunk}" for chunk in desk.announce(0, 1, 2)))
        wait_ms(ledger, 201)
        assert desk.reconcile() == []
        ledger.redis.lpop(desk.spec.queue)
        assert len(desk.reconcile()) == 1

    def test_a_queue_that_is_full_of_other_jobs_tickets_has_room_for_this_one(self, ledger, make_spec):
        """The gates of all jobs add up."""
        large = Desk(ledger, make_spec(), gate=5).create()
        ledger.redis.rpush(large.spec.queue, *(f"ticket {chunk}" for chunk in large.announce(*range(9))))
        assert Desk(ledger, make_spec(), gate=2).create().announce(0, 1, 2) == [0, 1]

    # -- claims ----------------------------------------------------------------------------------------------

    def test_a_token_is_never_granted_twice_although_the_server_lost_its_last_writes(self, desk):
        """Two results under one token would overwrite each other."""
        desk.announce(0)
        first = desk.take(0)
        wait_ms(desk.ledger, 1)
        desk.ledger.redis.hdel(keys.job(desk.spec.job), "fence")
        desk.ledger.redis.delete(keys.leases(desk.spec.job))
        assert desk.take(0, slot="node/1").token > first.token

    def test_a_claim_gives_a_lease_with_the_spec(self, desk):
        """A slot needs no second question to begin."""
        desk.announce(0)
        lease = desk.take(0)
        assert (lease.job, lease.chunk, lease.attempts, lease.spec) == (desk.spec.job, 0, 1, desk.spec)

    def test_a_leased_chunk_is_void_for_others(self, desk):
        """A double ticket does no harm."""
        desk.announce(0)
        desk.take(0, slot="node/0")
        assert desk.ask(0, slot="node/1") == Refusal("leased")

    def test_a_slot_that_asks_again_gets_a_newer_token(self, desk):
        """The reply of its first claim was lost: the old token is worthless, the lease is its own."""
        desk.announce(0)
        first, second = desk.take(0), desk.take(0)
        assert second.token > first.token
        assert not desk.ledger.touch(first, 60)
        assert desk.ledger.touch(second, 60)

    def test_a_slot_whose_name_begins_alike_is_another_slot(self, desk):
        """``node/1`` does not hold what ``node/11`` holds, nor the reverse."""
        desk.announce(0)
        desk.take(0, slot="node/11")
        for other in ("node/1", "ode/11", "node/111", "1 node/11"):
            assert desk.ask(0, slot=other) == Refusal("leased")

    def test_a_recorded_chunk_is_void(self, desk):
        """Nobody works on it again."""
        desk.announce(0)
        desk.do(0)
        assert desk.ask(0) == Refusal("recorded or not released")

    def test_a_chunk_behind_the_gate_is_void(self, desk):
        """A forged ticket opens no gate."""
        desk.announce(*range(6))
        assert desk.ask(5) == Refusal("recorded or not released")

    @pytest.mark.parametrize("state", ["cancelled", "failed"])
    def test_a_chunk_of_a_job_that_ended_is_void(self, desk, state):
        """The ticket says no more than that there was a job."""
        desk.announce(0)
        desk.end(state)
        assert desk.ask(0) == Refusal(state)

    def test_a_chunk_of_an_unknown_job_is_void(self, ledger, make_spec):
        """A ticket of a ledger that was wiped out is dropped."""
        assert Desk(ledger, make_spec()).ask(0) == Refusal("unknown job")

    def test_tokens_only_grow(self, desk):
        """A later lease, of whatever chunk, has the greater fencing token."""
        desk.announce(0, 1)
        tokens = []
        for chunk in (0, 1, 0, 1):
            lease = desk.take(chunk)
            tokens.append(lease.token)
            desk.free(lease)
        assert tokens == sorted(set(tokens))

    # -- leases ----------------------------------------------------------------------------------------------

    def test_a_touch_extends_a_lease(self, desk):
        """A slot that lives keeps its chunk beyond the first deadline."""
        desk.announce(0)
        lease = desk.take(0, lease_s=0.5)
        assert desk.ledger.touch(lease, 60)
        wait_ms(desk.ledger, 501)
        assert desk.ask(0, slot="node/1") == Refusal("leased")

    def test_a_foreign_token_cannot_touch(self, desk):
        """A slot that lost its lease learns it at the next heartbeat."""
        desk.announce(0, 1)
        lease, other = desk.take(0), desk.take(1, slot="node/1")
        assert not desk.ledger.touch(replace(lease, token=lease.token + 100), 60)
        assert not desk.ledger.touch(replace(lease, chunk=other.chunk), 60)

    @pytest.mark.parametrize("state", ["cancelled", "failed"])
    def test_the_lease_of_a_job_that_ended_cannot_be_touched(self, desk, state):
        """Its slot may stop early."""
        desk.announce(0)
        lease = desk.take(0)
        desk.end(state)
        assert not desk.ledger.touch(lease, 60)

    def test_a_recorded_chunk_cannot_be_touched(self, desk):
        """A late heartbeat does not reopen a chunk."""
        desk.announce(0)
        lease = desk.take(0)
        desk.record(lease)
        assert not desk.ledger.touch(lease, 60)
        assert desk.reconcile() == []

    def test_a_lapsed_lease_is_ticketed_again(self, desk):
        """A slot that vanished holds a chunk for the length of its lease only."""
        desk.announce(0)
        lease = desk.take(0, lease_s=0.01)
        wait_until(lambda: desk.reconcile() == [0], "the lease lapses")
        assert not desk.ledger.touch(lease, 60)
        assert desk.take(0, slot="node/1").attempts == 2

    def test_any_event_of_the_job_finds_a_lapsed_lease(self, desk):
        """Recovery needs no reconciler as long as something happens."""
        desk.announce(0, 1)
        lease = desk.take(1, slot="node/1")
        desk.take(0, lease_s=0.001)
        wait_ms(desk.ledger, 2)
        assert desk.record(lease) == ("recorded", [0])

    def test_a_second_ticket_claims_a_lapsed_chunk(self, desk):
        """Whoever asks after the deadline gets it, also before anybody reconciled."""
        desk.announce(0)
        first = desk.take(0, slot="node/0", lease_s=0.001)
        wait_ms(desk.ledger, 2)
        second = desk.take(0, slot="node/1")
        assert not desk.ledger.touch(first, 60)
        assert desk.ledger.touch(second, 60)

    def test_a_ticket_lapses_too(self, ledger, make_spec):
        """A ticket that nobody claimed in time is issued again."""
        desk = Desk(ledger, make_spec(), ticket_s=0.01).create()
        desk.announce(0)
        ledger.redis.rpush(desk.spec.queue, "another ticket")  # so that the queue says nothing
        wait_until(lambda: desk.reconcile() == [0], "the ticket lapses")

    # -- giving back -----------------------------------------------------------------------------------------

    def test_a_forgiven_attempt_does_not_count(self, desk):
        """Nothing was wrong with the chunk, so it is not given up for it."""
        desk.announce(0)
        for _ in range(5):
            lease = desk.take(0)
            assert lease.attempts == 1
            desk.free(lease)

    def test_an_attempt_that_is_not_forgiven_counts(self, desk):
        """A chunk that kills its slots is noticed."""
        desk.announce(0)
        for attempt in (1, 2, 3):
            lease = desk.take(0)
            assert lease.attempts == attempt
            desk.free(lease, DIED)

    def test_a_delayed_chunk_is_ticketed_after_the_delay(self, desk):
        """A slot that cannot do it does not get it back at once."""
        desk.announce(0)
        assert desk.free(desk.take(0), delay_s=0.05) == []
        wait_until(lambda: desk.reconcile() == [0], "the delay is over")
        assert desk.take(0).attempts == 1

    def test_a_delayed_chunk_is_neither_claimed_nor_ticketed_before(self, desk, without_grace):
        """Its ticket is not lost, and a second one of it is void, also for the slot that gave it back."""
        desk.announce(0)
        lease = desk.take(0)
        desk.free(lease, delay_s=60)
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == []
        for slot in ("node/0", "node/1", "", "0"):
            assert desk.ask(0, slot=slot) == Refusal("leased")
        assert not desk.ledger.touch(lease, 60)
        assert desk.record(lease)[0] == "recorded"

    def test_a_foreign_token_frees_nothing(self, desk):
        """Whoever lost a lease cannot take it from the new holder."""
        desk.announce(0)
        lease = desk.take(0)
        assert desk.free(replace(lease, token=lease.token + 1)) == []
        assert desk.ledger.touch(lease, 60)

    def test_a_lease_freed_twice_forgives_one_attempt(self, desk):
        """The second time finds nothing to free."""
        desk.announce(0)
        desk.free(desk.take(0), DIED)
        lease = desk.take(0)
        desk.free(lease)
        desk.free(lease)
        assert desk.attempts == {"0": "1"}

    def test_a_recorded_chunk_cannot_be_freed(self, desk):
        """What is done stays done."""
        desk.announce(0)
        lease = desk.take(0)
        desk.record(lease)
        assert desk.free(lease) == []
        assert desk.attempts == {}
        assert desk.status.recorded == 1

    # -- recording -------------------------------------------------------------------------------------------

    def test_the_first_record_wins(self, desk):
        """The second result of a chunk is garbage, whoever brings it."""
        desk.announce(0)
        first = desk.take(0, slot="node/0", lease_s=0.001)
        wait_ms(desk.ledger, 2)
        second = desk.take(0, slot="node/1")
        assert desk.record(second)[0] == "recorded"
        assert desk.record(first, rows=99)[0] == "late"
        assert desk.record(second, rows=99)[0] == "late"
        assert [note.token for note in desk.ledger.recorded(desk.spec.job, 0, 1)] == [second.token]
        assert desk.status.rows_done == 10

    def test_a_lapsed_lease_that_records_first_is_accepted_once(self, desk):
        """Good work is not thrown away for its lateness; the new holder learns it at its heartbeat."""
        desk.announce(0)
        stale = desk.take(0, slot="node/0", lease_s=0.001)
        wait_ms(desk.ledger, 2)
        fresh = desk.take(0, slot="node/1")
        assert desk.record(stale)[0] == "recorded"
        assert not desk.ledger.touch(fresh, 60)
        assert desk.record(fresh)[0] == "late"
        assert desk.status.recorded == 1

    def test_recorded_chunks_are_listed_in_order(self, desk):
        """Collecting asks for a span and gets those that are there."""
        desk.announce(0, 1, 2, 3)
        leases = {chunk: desk.take(chunk) for chunk in (3, 1)}
        for chunk, lease in leases.items():
            desk.record(lease, size_bytes=100 + chunk, crc32=2**32 - 1, failed_rows=1)
        assert desk.ledger.recorded(desk.spec.job, 0, 3) == [Recorded(1, leases[1].token, 10, 1, 101, 2**32 - 1)]
        assert [note.chunk for note in desk.ledger.recorded(desk.spec.job, 0, 100)] == [1, 3]
        assert desk.ledger.recorded(desk.spec.job, 2, 0) == []

    def test_a_job_is_done_when_all_is_recorded(self, desk):
        """Not before the last, and nothing is active afterwards."""
        desk.announce(0, 1)
        desk.seal(2)
        desk.do(1)
        assert desk.status.state == "running"
        desk.do(0)
        assert desk.status.state == "done"
        assert desk.status.is_over
        assert desk.ledger.active_jobs() == []

    def test_a_job_whose_last_record_came_before_its_seal_is_done_when_sealed(self, desk):
        """Slots may be faster than the client."""
        desk.announce(0, 1)
        desk.do(0, 1)
        assert desk.status.state == "submitting"
        assert desk.seal(2) == "done"

    def test_a_record_of_a_job_that_ended_changes_nothing(self, desk):
        """Its result object is garbage."""
        desk.announce(0, 1)
        desk.seal(2)
        desk.do(0)
        lease = desk.take(1)
        desk.end("failed", "by hand")
        before = desk.snapshot()
        assert desk.record(lease) == ("failed", [])
        assert desk.snapshot() == before

    def test_error_rows_are_kept_unless_the_job_shall_fail(self, desk):
        """A row that cannot be processed is a row with an error."""
        desk.announce(0)
        desk.seal(1)
        desk.do(0, failed_rows=3)
        assert (desk.status.state, desk.status.failed_rows) == ("done", 3)

    def test_a_job_fails_at_its_first_error_row_if_it_shall(self, ledger, make_spec):
        """With ``--on-error fail`` nothing is claimed after it, and the reason names the chunk."""
        desk = Desk(ledger, make_spec(on_error="fail")).create()
        desk.announce(0, 1)
        assert desk.record(desk.take(0), failed_rows=3) == ("recorded", [])
        assert (desk.status.state, desk.status.reason) == ("failed", "3 rows of chunk 0 failed")
        assert desk.ask(1) == Refusal("failed")
        assert ledger.active_jobs() == []

    def test_an_error_row_in_the_last_chunk_fails_the_job_too(self, ledger, make_spec):
        """That everything is recorded does not make it done."""
        desk = Desk(ledger, make_spec(on_error="fail")).create()
        desk.announce(0)
        desk.seal(1)
        desk.do(0, failed_rows=1)
        assert desk.status.state == "failed"

    # -- weights ---------------------------------------------------------------------------------------------

    def test_the_first_record_pins_the_weights(self, desk):
        """Every later lease says which weights began the job, so that a slot with others can refuse."""
        desk.announce(0, 1)
        assert desk.status.weights == ""
        assert desk.take(1).weights == ""
        desk.do(0, weights="w1")
        assert desk.status.weights == "w1"
        assert desk.take(1).weights == "w1"

    def test_other_weights_are_refused_at_the_record_too(self, desk):
        """A slot that claimed before the weights were pinned does not mix its vectors in; its chunk is free."""
        desk.announce(0, 1)
        late = desk.take(1, slot="node/1")
        desk.do(0, weights="w1")
        assert desk.record(late, weights="w2") == ("weights", [])
        assert desk.status.recorded == 1
        assert desk.reconcile() == [1]
        again = desk.take(1)
        assert again.attempts == 1
        assert desk.record(again)[0] == "recorded"

    # -- reconciling -----------------------------------------------------------------------------------------

    def test_tickets_are_lost_if_the_queue_is_empty(self, desk, without_grace):
        """Whatever the broker lost is issued again, once."""
        desk.announce(0, 1, 2)
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == [0, 1, 2]

    def test_tickets_are_not_lost_while_the_queue_holds_some(self, desk, without_grace):
        """They may be those."""
        desk.announce(0, 1)
        desk.ledger.redis.rpush(desk.spec.queue, "a ticket")
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == []

    def test_tickets_on_their_way_are_not_lost(self, desk):
        """A node that took one in the last moments gets the time to claim it."""
        desk.announce(0, 1)
        assert desk.reconcile() == []

    def test_leased_chunks_need_no_ticket(self, desk, without_grace):
        """Only what nobody works on is issued again."""
        desk.announce(0, 1, 2)
        desk.take(1)
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == [0, 2]

    def test_a_ticket_issued_again_has_its_own_grace(self, desk, monkeypatch):
        """Reconciling in quick succession does not fill the queue."""
        monkeypatch.setattr(ledger_module, "TICKET_GRACE_S", 0.05)
        desk.announce(0)
        wait_until(lambda: desk.reconcile() == [0], "the grace is over")
        assert desk.reconcile() == []

    def test_a_job_that_ended_is_not_reconciled(self, desk, without_grace):
        """There is nothing to do for it."""
        desk.announce(0, 1)
        desk.end("failed")
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == []

    def test_one_process_reconciles_at_a_time(self, ledger):
        """The others go on with their work, and the next may when the time is over."""
        assert ledger.may_reconcile("a", 0.05)
        assert not ledger.may_reconcile("b", 0.05)
        wait_until(lambda: ledger.may_reconcile("b", 60), "the lock lapses")
        assert not ledger.may_reconcile("a", 60)

    # -- ending and retrying ---------------------------------------------------------------------------------

    def test_cancelling_is_final(self, desk, without_grace):
        """No event brings a cancelled job back, and it needs no memory for what was open."""
        desk.announce(*range(6))
        desk.seal(6)
        lease = desk.take(0)
        assert desk.end("cancelled") == "cancelled"
        before = desk.snapshot()
        assert not desk.ledger.touch(lease, 60)
        assert desk.record(lease) == ("cancelled", [])
        assert desk.free(lease) == []
        assert desk.reconcile() == []
        assert desk.ledger.retry(desk.spec) == ("cancelled", 0, [])
        assert desk.end("failed", "too late") == "cancelled"
        assert desk.seal(6) == "cancelled"
        desk.create()
        assert desk.snapshot() == before
        assert (before["open"], before["leases"], before["attempts"]) == ([], {}, {})

    def test_a_job_fails_with_its_first_reason(self, desk):
        """What follows from the first fault does not hide it."""
        desk.announce(0)
        assert desk.end("failed", "first") == "failed"
        assert desk.end("failed", "second") == "failed"
        assert desk.end("cancelled") == "failed"
        assert (desk.status.state, desk.status.reason) == ("failed", "first")

    def test_a_done_job_stays_done(self, desk):
        """It can neither be cancelled nor fail."""
        desk.announce(0)
        desk.seal(1)
        desk.do(0)
        assert desk.end("cancelled") == "done"
        assert desk.end("failed", "late") == "done"
        assert (desk.status.state, desk.status.reason) == ("done", "")

    def test_a_retry_reopens_failed_chunks_and_subtracts_what_they_counted(self, desk):
        """The numbers are those of the chunks that stay, and in the end those of every chunk once."""
        desk.announce(0, 1, 2)
        desk.seal(3)
        desk.do(0, rows=7, tokens=70, padded_tokens=77, truncated_rows=1)
        desk.do(1, rows=5, failed_rows=4, tokens=50, padded_tokens=55, truncated_rows=3)
        desk.do(2, rows=3, failed_rows=1, tokens=30, padded_tokens=33, truncated_rows=2)
        state, chunks, tickets = desk.ledger.retry(desk.spec)
        assert (state, chunks, sorted(tickets)) == ("done", 2, [1, 2])
        status = desk.status
        assert (status.state, status.recorded, status.rows_done, status.failed_rows) == ("running", 1, 7, 0)
        assert (status.tokens, status.padded_tokens, status.truncated_rows) == (70, 77, 1)
        assert desk.ledger.active_jobs() == [desk.spec.job]
        desk.do(1, 2, rows=4, tokens=40, padded_tokens=44, truncated_rows=0)
        status = desk.status
        assert (status.state, status.recorded, status.rows_done, status.failed_rows) == ("done", 3, 15, 0)
        assert (status.tokens, status.padded_tokens, status.truncated_rows) == (150, 165, 1)

    def test_a_retry_begins_to_count_attempts_anew(self, desk):
        """Somebody looked at what was wrong, so the chunk gets its tries again."""
        desk.announce(0)
        desk.seal(1)
        desk.free(desk.take(0), DIED)
        desk.end("failed", "disk full")
        assert desk.ledger.retry(desk.spec)[0] == "failed"
        assert desk.take(0).attempts == 1

    def test_a_retry_goes_on_with_what_was_open(self, desk, without_grace):
        """A job that a permanent fault ended keeps what it had and finishes the rest."""
        desk.announce(*range(6))
        desk.seal(6)
        desk.do(0, 1)
        desk.take(2)
        desk.end("failed", "disk full")
        assert desk.ledger.retry(desk.spec)[:2] == ("failed", 0)
        assert (desk.status.state, desk.status.reason) == ("running", "")
        wait_ms(desk.ledger, 1)
        assert desk.reconcile() == [3, 4, 5]
        desk.do(2, 3, 4, 5)
        assert desk.status.state == "done"

    def test_a_retry_respects_the_gate(self, ledger, make_spec):
        """However many chunks failed, they go out as others are recorded."""
        desk = Desk(ledger, make_spec(), gate=2).create()
        desk.announce(0, 1, 2, 3, 4)
        desk.seal(5)
        desk.do(0, 1, 2, 3, 4, failed_rows=1)
        tickets = ledger.retry(desk.spec)[2]
        assert len(tickets) == 2
        while tickets:
            lease = desk.take(tickets.pop(0))
            tickets += [*lease.released, *desk.record(lease)[1]]
        assert (desk.status.state, desk.status.failed_rows) == ("done", 0)

    def test_a_chunk_without_any_token_can_be_retried(self, desk):
        """A chunk that was given up has zeros everywhere but in its rows."""
        desk.announce(0)
        desk.seal(1)
        desk.do(0, rows=10, failed_rows=10, truncated_rows=0, tokens=0, padded_tokens=0)
        assert desk.ledger.retry(desk.spec) == ("done", 1, [0])
        assert (desk.status.rows_done, desk.status.failed_rows) == (0, 0)
        desk.do(0)
        assert (desk.status.state, desk.status.rows_done, desk.status.tokens) == ("done", 10, 90)

    def test_a_gate_that_old_tickets_passed_stays_shut(self, ledger, make_spec):
        """Tickets from before a retry are honoured, but nothing more goes out for them."""
        desk = Desk(ledger, make_spec(), gate=2).create()
        desk.announce(0, 1, 2, 3, 4)
        desk.seal(5)
        desk.do(0, 1, 2, 3, 4, failed_rows=1)
        assert ledger.retry(desk.spec)[2] == [0, 1]
        desk.take(4)
        assert desk.reconcile() == []

    def test_a_retry_of_what_did_not_fail_changes_nothing(self, desk):
        """A done job without error rows stays done; a running one runs on."""
        desk.announce(0)
        desk.seal(1)
        assert desk.ledger.retry(desk.spec) == ("running", 0, [])
        desk.do(0)
        assert desk.ledger.retry(desk.spec) == ("done", 0, [])
        assert desk.status.state == "done"
        assert desk.ledger.active_jobs() == []

    def test_what_was_retried_with_success_is_not_retried_again(self, desk):
        """A second retry reopens what failed since the first."""
        desk.announce(0, 1)
        desk.seal(2)
        desk.do(0, 1, failed_rows=1)
        desk.ledger.retry(desk.spec)
        desk.do(0)
        desk.do(1, failed_rows=2)
        assert desk.ledger.retry(desk.spec) == ("done", 1, [1])

    def test_a_job_that_failed_before_its_seal_is_not_retried(self, desk):
        """Its corpus is not all in the store: it is submitted again instead."""
        desk.announce(0)
        desk.end("failed", "bad input")
        assert desk.ledger.retry(desk.spec) == ("failed", 0, [])
        assert desk.status.state == "failed"

    def test_a_chunk_whose_result_is_damaged_is_reopened_alone(self, desk):
        """Chunks with error rows stay as they are, and are still known as such."""
        desk.announce(0, 1, 2)
        desk.seal(3)
        desk.do(0, 1)
        desk.do(2, failed_rows=3)
        old = desk.ledger.recorded(desk.spec.job, 1, 1)
        assert desk.ledger.retry(desk.spec, [1]) == ("done", 1, [1])
        assert (desk.status.state, desk.status.recorded, desk.status.failed_rows) == ("running", 2, 3)
        assert desk.ledger.recorded(desk.spec.job, 1, 1) == old
        desk.do(1)
        assert (desk.status.state, desk.status.rows_done, desk.status.failed_rows) == ("done", 30, 3)
        assert desk.ledger.recorded(desk.spec.job, 1, 1) != old
        assert desk.ledger.failed_chunks(desk.spec.job) == [2]

    def test_a_damaged_chunk_with_error_rows_is_counted_once(self, desk):
        """Its new result says which rows fail now."""
        desk.announce(0, 1)
        desk.seal(2)
        desk.do(0, 1, failed_rows=3)
        desk.ledger.retry(desk.spec, [1])
        assert (desk.status.failed_rows, desk.ledger.failed_chunks(desk.spec.job)) == (3, [0])
        desk.do(1)
        assert (desk.status.failed_rows, desk.ledger.failed_chunks(desk.spec.job)) == (3, [0])

    # -- removing --------------------------------------------------------------------------------------------

    def test_only_a_job_that_is_over_is_removed(self, desk):
        """Slots may be at work on the others."""
        desk.announce(0)
        before = desk.snapshot()
        assert (desk.ledger.withdraw(desk.spec), desk.ledger.remove(desk.spec)) == (False, False)
        assert desk.snapshot() == before

    def test_a_job_that_is_being_removed_counts_as_cancelled(self, desk):
        """A removal that was interrupted leaves nothing that anybody would continue, collect or retry."""
        desk.announce(0)
        desk.seal(1)
        desk.do(0, failed_rows=1)
        assert desk.ledger.withdraw(desk.spec)
        assert desk.ledger.withdraw(desk.spec)
        assert (desk.status.state, desk.status.reason) == ("cancelled", "it is being removed")
        assert desk.status.finished_ms
        assert desk.ledger.find(desk.spec.key) is None
        assert desk.ledger.retry(desk.spec) == ("cancelled", 0, [])

    def test_a_removed_job_leaves_nothing(self, desk):
        """Neither its keys nor its name, and a second removal brings nothing back."""
        desk.announce(0)
        desk.seal(1)
        desk.do(0, failed_rows=1)
        desk.ledger.refuse(desk.spec, "node/0", "why")
        assert desk.ledger.withdraw(desk.spec)
        for _ in range(2):
            assert desk.ledger.remove(desk.spec)
            assert desk.ledger.redis.keys("*") == []
            assert desk.ledger.withdraw(desk.spec)
        with pytest.raises(UnknownJob):
            desk.ledger.status(desk.spec.job)

    def test_the_removal_of_an_old_job_leaves_the_key_to_the_new_one(self, desk, make_spec):
        """The same command has begun anew meanwhile."""
        desk.end("cancelled")
        second = make_spec(key=desk.spec.key)
        Desk(desk.ledger, second).create()
        assert desk.ledger.withdraw(desk.spec)
        assert desk.ledger.remove(desk.spec)
        assert desk.ledger.find(desk.spec.key) == second

    # -- replays ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "event",
        [
            "create", "announce", "seal", "seal the last", "touch", "record", "record with errors",
            "free at once", "free later", "reconcile", "cancel", "fail", "retry", "refuse",
        ],
    )  # fmt: skip
    def test_an_event_that_happens_twice_changes_nothing_the_second_time(self, desk, event):
        """A reply can be lost, so every step may be sent again."""
        ledger, spec = desk.ledger, desk.spec
        desk.announce(0, 1, 2)
        desk.do(0, failed_rows=1)
        lease = desk.take(1)
        if event == "seal the last":
            desk.do(1, 2)
        if event == "retry":
            desk.seal(3)
            desk.end("failed", "by hand")
        step = {
            "create": desk.create,
            "announce": lambda: desk.announce(3),
            "seal": lambda: desk.seal(3),
            "seal the last": lambda: desk.seal(3),
            "touch": lambda: ledger.touch(lease, 60),
            "record": lambda: desk.record(lease),
            "record with errors": lambda: desk.record(lease, failed_rows=2),
            "free at once": lambda: desk.free(lease),
            "free later": lambda: desk.free(lease, DIED, delay_s=60),
            "reconcile": desk.reconcile,
            "cancel": lambda: desk.end("cancelled"),
            "fail": lambda: desk.end("failed", "by hand"),
            "retry": lambda: ledger.retry(spec),
            "refuse": lambda: ledger.refuse(spec, "node/0", "wrong store"),
        }[event]
        step()
        before = desk.snapshot()
        step()
        assert desk.snapshot() == before

    # -- dead slots ------------------------------------------------------------------------------------------

    def test_burying_a_slot_frees_what_it_held(self, desk):
        """Its chunk goes out at once, the attempt counts, and the slot is struck off."""
        desk.announce(0)
        lease = desk.take(0)
        dead = slot_status(claim=f"{lease.job} {lease.chunk} {lease.token}")
        desk.ledger.workforce.report(dead)
        assert desk.ledger.bury(dead, DIED) == (desk.spec, [0])
        assert desk.ledger.workforce.slots() == []
        assert desk.take(0, slot="node/1").attempts == 2

    def test_burying_a_slot_again_frees_nothing(self, desk):
        """The chunk is somebody else's by then."""
        desk.announce(0)
        lease = desk.take(0)
        dead = slot_status(claim=f"{lease.job} {lease.chunk} {lease.token}")
        desk.ledger.bury(dead, DIED)
        heir = desk.take(0, slot="node/1")
        assert desk.ledger.bury(dead, DIED) == (desk.spec, [])
        assert desk.ledger.touch(heir, 60)

    def test_burying_an_idle_slot_frees_nothing(self, ledger):
        """It held no lease."""
        ledger.workforce.report(slot_status())
        assert ledger.bury(slot_status(), DIED) is None
        assert ledger.workforce.slots() == []

    def test_burying_a_slot_with_an_unknown_job_strikes_it_off(self, ledger):
        """The ledger was wiped out meanwhile."""
        assert ledger.bury(slot_status(claim="encode-gone 1 2"), DIED) is None

    # -- slots -----------------------------------------------------------------------------------------------

    def test_a_slot_is_read_as_it_was_reported(self, ledger):
        """Every field survives, and the age is that of the report."""
        status = slot_status(error="why", claim="encode-0001 2 3", chunks=4, tokens=5, tokens_per_s=6.5)
        ledger.workforce.report(status)
        (found,) = ledger.workforce.slots()
        assert replace(found, seen_s=0.0) == status
        assert 0 <= found.seen_s < 20

    def test_a_slot_tells_how_full_its_devices_are(self, ledger):
        """Each by name, and how evenly."""
        memory = (DeviceUse("cuda:0", 30, 40), DeviceUse("cuda:1", 60, 160))
        ledger.workforce.report(slot_status(memory=memory))
        (found,) = ledger.workforce.slots()
        assert found.memory == memory
        assert found.balance == 0.5
        assert (slot_status().balance, slot_status(memory=memory[:1]).balance) == (None, None)

    def test_what_a_slot_tells_of_its_devices_is_bounded(self, ledger):
        """The ledger is small, whatever a slot says."""
        ledger.workforce.report(slot_status(memory=[DeviceUse("x" * 1000, 1, 2)] * 1000))
        (found,) = ledger.workforce.slots()
        assert len(found.memory) == MOST_DEVICES
        assert ledger.redis.hstrlen(keys.slot("node/0"), "memory") < 100 * MOST_DEVICES

    @pytest.mark.parametrize("written", [None, "", "[", "{}", "3", '["a"]', '[["cpu", 1]]', '[["cpu", "x", 2]]'])
    def test_a_slot_of_another_release_is_readable(self, ledger, written):
        """One that tells nothing of its devices, or in another way."""
        ledger.workforce.report(slot_status())
        ledger.redis.hdel(keys.slot("node/0"), "memory")
        if written is not None:
            ledger.redis.hset(keys.slot("node/0"), "memory", written)
        (found,) = ledger.workforce.slots()
        assert found.memory == ()

    def test_slots_are_asked_for_by_queue_or_by_name(self, ledger):
        """A client counts those that serve its model, a node looks after its own."""
        for slot, queue in (("a/0", "q1"), ("a/1", "q2"), ("b/0", "q1")):
            ledger.workforce.report(slot_status(slot=slot, queue=queue))
        assert sorted(slot.slot for slot in ledger.workforce.slots()) == ["a/0", "a/1", "b/0"]
        assert sorted(slot.slot for slot in ledger.workforce.slots(queue="q1")) == ["a/0", "b/0"]
        assert ledger.workforce.slots(queue="q3") == []
        assert [slot.slot for slot in ledger.workforce.named(["b/0", "c/0", "a/1"])] == ["b/0", "a/1"]
        assert ledger.workforce.named([]) == []

    def test_a_slot_that_was_struck_off_is_forgotten(self, ledger):
        """Twice does no harm."""
        ledger.workforce.report(slot_status())
        ledger.workforce.forget("node/0")
        ledger.workforce.forget("node/0")
        assert ledger.workforce.slots() == []
        assert ledger.workforce.named(["node/0"]) == []

    # -- reading ---------------------------------------------------------------------------------------------

    def test_the_status_adds_up_the_receipts(self, desk):
        """Counts are sums, seconds are sums per stage, the weights and the dimension are those recorded."""
        desk.announce(0, 1, 2)
        desk.seal(3)
        desk.do(0)
        desk.do(1, failed_rows=4, read_s=1.5)
        status = desk.status
        assert (status.is_sealed, status.rows, status.input_bytes, status.chunks) == (True, 30, 3000, 3)
        assert (status.recorded, status.rows_done, status.failed_rows) == (2, 20, 4)
        assert (status.truncated_rows, status.tokens, status.padded_tokens) == (4, 180, 200)
        assert (status.dim, status.weights) == (4, "w1")
        assert status.seconds == pytest.approx({"read": 1.6, "tokenise": 0.4, "model": 0.6, "write": 0.8, "idle": 1.0})
        assert (status.duplicate_rows, status.cached_rows) == (6, 2)
        assert 0 <= status.work_s < 20
        assert abs(status.created_ms - now_ms(desk.ledger)) < 20_000

    def test_the_time_of_work_goes_from_the_first_claim_to_the_last_record(self, desk):
        """Waiting for slots before and idling afterwards are not in the rate that people see."""
        desk.announce(0)
        wait_ms(desk.ledger, 100)
        before = now_ms(desk.ledger)
        lease = desk.take(0)
        wait_ms(desk.ledger, 20)
        desk.record(lease)
        assert 0.02 <= desk.status.work_s <= (now_ms(desk.ledger) - before) / 1000

    def test_a_job_is_found_by_its_submission_key(self, desk):
        """The same command again resumes the same job."""
        assert desk.ledger.find(desk.spec.key) == desk.spec
        assert desk.ledger.find("another-key") is None

    def test_a_key_belongs_to_its_latest_job(self, desk, make_spec):
        """A command that began anew is resumed where it began anew."""
        second = make_spec(key=desk.spec.key)
        Desk(desk.ledger, second).create()
        assert desk.ledger.find(desk.spec.key) == second

    def test_jobs_are_listed_oldest_first(self, ledger, make_spec):
        """Their ids say nothing about their age, their creation does."""
        names = ["encode-zzzz", "encode-aaaa", "encode-mmmm"]
        for name in names:
            Desk(ledger, make_spec(job=name)).create()
            wait_ms(ledger, 1)
        Desk(ledger, make_spec(job=names[0])).create()
        assert ledger.jobs() == names

    def test_active_jobs_are_those_that_are_not_over(self, desk, make_spec):
        """Nodes reconcile these and no others."""
        other = Desk(desk.ledger, make_spec()).create()
        assert desk.ledger.active_jobs() == sorted([desk.spec.job, other.spec.job])
        other.end("cancelled")
        assert desk.ledger.active_jobs() == [desk.spec.job]

    def test_refusals_are_kept_by_slot(self, desk):
        """Whoever waits learns which slot will not work on the job, and why."""
        desk.ledger.refuse(desk.spec, "node/0", "wrong store")
        desk.ledger.refuse(desk.spec, "node/1", "wrong weights")
        desk.ledger.refuse(desk.spec, "node/0", "still the wrong store")
        assert desk.ledger.refusals(desk.spec.job) == {
            "node/0": "still the wrong store",
            "node/1": "wrong weights",
        }

    @pytest.mark.parametrize(
        "job",
        [
            "encode-9999", "", ".", "..", "../../etc/passwd", "/etc/passwd", "jobs/encode-0001", "encode-0001/",
            "encode-0001:open", "encode-0001\n", "ENCODE-0001", "*", "encode-*", "e" * 65, "encode\0-0001",
        ],
    )  # fmt: skip
    def test_there_is_no_such_job(self, desk, job):
        """An id that names no job is told so, whatever else it might name."""
        desk.announce(0)
        with pytest.raises(UnknownJob, match="penstock jobs"):
            desk.ledger.spec(job)
        with pytest.raises(UnknownJob, match="penstock jobs"):
            desk.ledger.status(job)
