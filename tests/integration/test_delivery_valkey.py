"""A ticket as it lies in a real broker."""

import json

import pytest

from tasks import broker, delivery
from tasks.errors import BrokerUnavailable

#: "The Celery message for a chunk, under 1 kB."
MOST_BYTES = 1024


@pytest.fixture
def client(valkey):
    """Return a client's application on an empty broker."""
    app = delivery.make_app(valkey)
    yield app
    app.close()


def test_tickets_lie_in_the_list_of_their_model(client, valkey, make_spec):
    """The oldest is taken first, each is small, and its length is what the reconciler asks for."""
    spec = make_spec(job="encode-3f9a1c02de")
    delivery.publish(client, spec, [7, 9_999_999])
    with broker.connect(valkey) as redis:
        assert redis.llen(spec.queue) == 2
        tickets = redis.lrange(spec.queue, 0, -1)
    assert all(len(ticket) < MOST_BYTES for ticket in tickets)
    ids = [json.loads(ticket)["headers"]["id"] for ticket in reversed(tickets)]
    assert ids == [f"{spec.job}:7", f"{spec.job}:9999999"]


def test_publishing_leaves_nothing_but_tickets(client, valkey, make_spec):
    """No results, no subscriptions: only the queue and Celery's note of where it is bound."""
    spec = make_spec()
    delivery.publish(client, spec, [0])
    with broker.connect(valkey) as redis:
        left = sorted(redis.keys("*"))
    assert [key for key in left if not key.startswith("_kombu.binding.")] == [spec.queue]


def test_a_broker_that_is_not_there_is_a_passing_fault(tmp_path, make_spec):
    """A slot goes on with its work and leaves the ticket to the reconciler."""
    app = delivery.make_app(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(BrokerUnavailable, match="Tickets of job encode-0001 could not be published"):
        delivery.publish(app, make_spec(), [0])
    app.close()
