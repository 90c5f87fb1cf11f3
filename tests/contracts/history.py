"""A job's history out of random events, and what must hold after each of them."""

from __future__ import annotations

from hypothesis import strategies as st

from tasks import keys
from tasks.endings import FORGIVEN
from tasks.ledger import Lease
from tasks.messages import Receipt
from tests.contracts.desk import DIED, Desk, now_ms, wait_ms

#: Slots that take part, and how long their leases hold: one of them never survives the next look.
LEASES_S = {"node/0": 60.0, "node/1": 60.0, "node/2": 0.001}
SLOTS = sorted(LEASES_S)


class History:
    """What slots, a client and a forgetful broker do to one job; the queue is the job's own list in Redis."""

    def __init__(self, desk: Desk, n_chunks: int) -> None:
        self.desk = desk
        self.n_chunks = n_chunks
        self.redis = desk.ledger.redis
        self.held: dict[str, Lease] = {}
        self.stale: list[Lease] = []
        self.winners: dict[int, tuple[int, Receipt]] = {}
        self.last_token = 0

    # -- events: each takes a number that says which ---------------------------------------------------------

    def announce_next(self, _: int) -> None:
        """The client sends a chunk."""
        announced = self.desk.status.chunks
        if announced < self.n_chunks:
            self.publish(self.desk.announce(announced))

    def announce_again(self, number: int) -> None:
        """A reply was lost, or somebody announces a chunk that is not next."""
        if number != self.desk.status.chunks:
            self.publish(self.desk.announce(number))

    def seal(self, _: int) -> None:
        """The client says that this was all, which is heard only if it is true."""
        self.publish(self.desk.ledger.seal(self.desk.spec, self.n_chunks, {})[1])

    def take_ticket(self, number: int) -> None:
        """A slot gets a ticket."""
        ticket = self.redis.lpop(self.desk.spec.queue)
        if ticket is not None:
            self.claim(SLOTS[number % len(SLOTS)], int(ticket))

    def forge_claim(self, number: int) -> None:
        """A slot asks for a chunk without a ticket."""
        self.claim(SLOTS[number % len(SLOTS)], number)

    def claim_again(self, number: int) -> None:
        """A slot did not hear that it has the lease."""
        lease = self.held.get(SLOTS[number % len(SLOTS)])
        if lease is not None:
            self.claim(SLOTS[number % len(SLOTS)], lease.chunk)

    def double_ticket(self, number: int) -> None:
        """The broker delivers something twice, or something that was never sent."""
        self.publish([number])

    def lose_ticket(self, _: int) -> None:
        """The broker loses a ticket."""
        self.redis.lpop(self.desk.spec.queue)

    def record(self, number: int) -> None:
        """A slot finishes."""
        lease = self.held.pop(SLOTS[number % len(SLOTS)], None)
        if lease is not None:
            self.record_lease(lease)
            self.stale.append(lease)

    def record_stale(self, number: int) -> None:
        """A slot that everybody gave up finishes after all, or a record is sent again."""
        if self.stale:
            self.record_lease(self.stale[number % len(self.stale)])

    def stall(self, number: int) -> None:
        """A slot falls silent."""
        lease = self.held.pop(SLOTS[number % len(SLOTS)], None)
        if lease is not None:
            self.stale.append(lease)

    def free(self, number: int) -> None:
        """A slot hands its chunk back, or is buried with it."""
        lease = self.held.pop(SLOTS[number % len(SLOTS)], None)
        if lease is not None:
            self.publish(self.desk.free(lease, FORGIVEN if number % 2 else DIED, delay_s=0.001 * (number > 6)))
            self.stale.append(lease)

    def free_stale(self, number: int) -> None:
        """A lease is freed again that is no more."""
        if self.stale:
            self.publish(self.desk.free(self.stale[number % len(self.stale)]))

    def touch(self, number: int) -> None:
        """A heartbeat."""
        slot = SLOTS[number % len(SLOTS)]
        lease = self.held.get(slot)
        if lease is not None and not self.desk.ledger.touch(lease, LEASES_S[slot]):
            self.stale.append(self.held.pop(slot))

    def pass_time(self, _: int) -> None:
        """Short leases lapse."""
        wait_ms(self.desk.ledger, 1)

    def reconcile(self, _: int) -> None:
        """A node looks for what is lost."""
        self.publish(self.desk.reconcile())

    # -- parts of events -------------------------------------------------------------------------------------

    def publish(self, chunks: list[int]) -> None:
        """Put tickets into the queue."""
        if chunks:
            self.redis.rpush(self.desk.spec.queue, *chunks)

    def claim(self, slot: str, chunk: int) -> None:
        """Ask for a chunk; what the slot held before is stale then."""
        answer = self.desk.ask(chunk, slot=slot, lease_s=LEASES_S[slot])
        if not isinstance(answer, Lease):
            return
        self.publish(list(answer.released))
        assert answer.token > self.last_token
        assert answer.chunk not in self.winners, "a recorded chunk was leased"
        self.last_token = answer.token
        if slot in self.held:
            self.stale.append(self.held[slot])
        self.held[slot] = answer

    def record_lease(self, lease: Lease) -> None:
        """Record under a lease, with a receipt that no other lease has."""
        receipt = Receipt(rows=lease.token, tokens=3 * lease.token, failed_rows=lease.token % 2, weights="w1", dim=2)
        outcome, tickets = self.desk.ledger.record(lease, receipt)
        self.publish(tickets)
        if outcome == "recorded":
            assert lease.chunk not in self.winners, "a chunk was recorded twice"
            self.winners[lease.chunk] = lease.token, receipt
        else:
            assert lease.chunk in self.winners or outcome == "done", outcome

    # -- what must hold --------------------------------------------------------------------------------------

    def check(self) -> None:
        """The gate is respected and the counters are the sums of the receipts that won."""
        base = keys.job(self.desk.spec.job)
        time_ms = now_ms(self.desk.ledger)
        waiting = {
            chunk for chunk, lapse in self.redis.zrange(f"{base}:open", 0, -1, withscores=True) if lapse > time_ms
        }
        assert len(waiting - set(self.redis.hkeys(f"{base}:leases"))) <= self.desk.gate
        status = self.desk.status
        assert status.recorded == len(self.winners)
        receipts = [receipt for _, receipt in self.winners.values()]
        assert status.rows_done == sum(receipt.rows for receipt in receipts)
        assert status.tokens == sum(receipt.tokens for receipt in receipts)
        assert status.failed_rows == sum(receipt.failed_rows for receipt in receipts)
        notes = self.desk.ledger.recorded(self.desk.spec.job, 0, self.n_chunks)
        assert {note.chunk: note.token for note in notes} == {
            chunk: token for chunk, (token, _) in self.winners.items()
        }

    def finish(self) -> None:
        """Let one good slot do the rest; then every chunk is recorded and nothing is left over."""
        for lease in (*self.held.values(), *self.stale):
            self.publish(self.desk.free(lease))
        self.held.clear()
        for chunk in range(self.desk.status.chunks, self.n_chunks):
            self.publish(self.desk.announce(chunk))
        self.seal(0)
        while self.desk.status.state != "done":
            if not self.redis.llen(self.desk.spec.queue):
                self.pass_time(0)
                self.reconcile(0)
                assert self.redis.llen(self.desk.spec.queue), "what is left is never offered again"
            self.take_ticket(0)
            self.record(0)
        self.check()
        assert self.desk.status.state == "done"
        assert sorted(self.winners) == list(range(self.n_chunks))
        left = self.desk.snapshot()
        assert (left["open"], left["leases"], left["attempts"], left["active"]) == ([], {}, {}, set())


#: Every event by its name.
EVENTS = {
    event.__name__: event
    for event in (
        History.announce_next,
        History.announce_again,
        History.seal,
        History.take_ticket,
        History.forge_claim,
        History.claim_again,
        History.double_ticket,
        History.lose_ticket,
        History.record,
        History.record_stale,
        History.stall,
        History.free,
        History.free_stale,
        History.touch,
        History.pass_time,
        History.reconcile,
    )
}

#: Arguments of `play`, for hypothesis.
HISTORIES = {
    "gate": st.integers(1, 5),
    "n_chunks": st.integers(1, 9),
    "events": st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 9)), max_size=80),
}


def play(desk: Desk, n_chunks: int, events: list[tuple[str, int]]) -> None:
    """Let events happen to a fresh job, then bring it to its end."""
    history = History(desk.create(), n_chunks)
    for name, number in events:
        EVENTS[name](history, number)
        history.check()
    history.finish()
