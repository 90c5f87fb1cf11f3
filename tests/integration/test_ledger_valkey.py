"""The ledger's contract on a real Valkey server, and what only a real one can show."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from redis import ResponseError

from tasks import broker, keys
from tasks import ledger as ledger_module
from tasks.errors import BrokerFull, BrokerUnavailable
from tasks.ledger import Lease, Ledger
from tests.contracts.desk import Desk
from tests.contracts.history import HISTORIES, play
from tests.contracts.journal import JournalContract
from tests.contracts.ledger import LedgerContract, slot_status

#: What DESIGN.md promises for a recorded chunk.
MOST_BYTES_PER_CHUNK = 150


@pytest.fixture
def ledger(valkey_ledger):
    """Return an empty ledger."""
    return valkey_ledger


class TestLedgerValkey(LedgerContract):
    """The contract, over a socket."""


class TestJournalValkey(JournalContract):
    """The contract, over a socket."""


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**HISTORIES)
def test_whatever_happens_every_chunk_is_recorded_once(ledger, make_spec, monkeypatch, gate, n_chunks, events):
    """Lost, doubled and forged tickets, dead and slow slots, repeated calls: the sums are right in the end."""
    monkeypatch.setattr(ledger_module, "TICKET_GRACE_S", 0.0)
    ledger.redis.flushall()
    play(Desk(ledger, make_spec(), gate=gate), n_chunks, events)


def test_one_of_many_slots_gets_the_chunk(ledger, make_spec):
    """Sixteen ask at once for each of twenty chunks; every chunk has one holder."""
    desk = Desk(ledger, make_spec(), gate=20).create()
    chunks = desk.announce(*range(20))
    with ThreadPoolExecutor(16) as pool:
        for chunk in chunks:
            answers = list(pool.map(lambda slot, chunk=chunk: desk.ask(chunk, slot=f"node/{slot}"), range(16)))
            assert sum(isinstance(answer, Lease) for answer in answers) == 1


def test_a_recorded_chunk_costs_the_ledger_little_memory(ledger, make_spec):
    """A million chunks fit into a small Redis."""
    n_chunks = 3000
    desk = Desk(ledger, make_spec()).create()
    for chunk in range(n_chunks):
        desk.announce(chunk)
        desk.do(chunk, size_bytes=2_000_000, crc32=2**32 - 1, tokens=300_000, padded_tokens=300_000)
    found = list(ledger.redis.scan_iter(f"{keys.job(desk.spec.job)}*"))
    used = sum(ledger.redis.memory_usage(key, samples=0) for key in found)
    assert used / n_chunks < MOST_BYTES_PER_CHUNK


def test_a_server_that_is_full_is_a_passing_fault(ledger, make_spec):
    """Slots wait until somebody made room, instead of ending with what they hold."""
    desk = Desk(ledger, make_spec()).create()
    desk.announce(0)
    desk.take(0)
    ledger.redis.config_set("maxmemory", 1)
    try:
        for call in (lambda: desk.announce(1), lambda: desk.take(0), lambda: ledger.workforce.report(slot_status())):
            with pytest.raises(BrokerFull, match=r"is full\. Raise its maxmemory"):
                call()
    finally:
        ledger.redis.config_set("maxmemory", 0)
    assert desk.announce(1) == [1]


def test_jobs_can_be_ended_and_removed_on_a_full_server(ledger, make_spec):
    """Nothing else makes room."""
    desk = Desk(ledger, make_spec()).create()
    desk.announce(0)
    ledger.redis.config_set("maxmemory", 1)
    try:
        assert desk.end("cancelled") == "cancelled"
        assert ledger.withdraw(desk.spec)
        assert ledger.remove(desk.spec)
    finally:
        ledger.redis.config_set("maxmemory", 0)
    assert ledger.jobs() == []


def test_a_replica_is_a_passing_fault(ledger, make_spec):
    """A failover takes some seconds."""
    desk = Desk(ledger, make_spec()).create()
    ledger.redis.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(BrokerUnavailable, match="takes no writes: "):
            desk.announce(0)
    finally:
        ledger.redis.replicaof("NO", "ONE")
    assert desk.announce(0) == [0]


def test_a_mistake_in_a_step_is_no_passing_fault(ledger, make_spec):
    """It would be tried again for ever."""
    desk = Desk(ledger, make_spec())
    ledger.redis.set(keys.job(desk.spec.job), "no hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        desk.announce(0)


def test_a_server_that_is_not_there_is_reported_soon(tmp_path):
    """The few retries take a second, not a minute."""
    url = f"unix://{tmp_path}/nothing.sock"
    with broker.connect(url) as client, pytest.raises(BrokerUnavailable, match="does not answer"):
        Ledger(client, url).ping()
