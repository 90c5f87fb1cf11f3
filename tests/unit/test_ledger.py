"""The ledger's contract on the in-process fake."""

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings

from tasks import ledger as ledger_module
from tasks.errors import BrokerUnavailable
from tasks.ledger import Ledger
from tests.contracts.desk import Desk
from tests.contracts.history import HISTORIES, play
from tests.contracts.journal import JournalContract
from tests.contracts.ledger import LedgerContract


@pytest.fixture
def ledger(fake_ledger):
    """Return an empty ledger."""
    return fake_ledger


class TestLedger(LedgerContract):
    """The contract, in this process."""


class TestJournal(JournalContract):
    """The contract, in this process."""


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**HISTORIES)
def test_whatever_happens_every_chunk_is_recorded_once(ledger, make_spec, monkeypatch, gate, n_chunks, events):
    """Lost, doubled and forged tickets, dead and slow slots, repeated calls: the sums are right in the end."""
    monkeypatch.setattr(ledger_module, "TICKET_GRACE_S", 0.0)
    ledger.redis.flushall()
    play(Desk(ledger, make_spec(), gate=gate), n_chunks, events)


def test_a_broker_that_does_not_answer_is_named_without_its_password():
    """The error is a passing one and says where to look."""
    server = fakeredis.FakeServer()
    with fakeredis.FakeRedis(server=server, decode_responses=True) as client:
        ledger = Ledger(client, "redis://:secret@broker:6379/0")
        server.connected = False
        with pytest.raises(BrokerUnavailable, match=r"redis://\*\*\*@broker:6379/0 does not answer") as caught:
            ledger.ping()
        server.connected = True
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 3
