"""How Celery is set up for each side, and what a ticket looks like on its way."""

import base64
import json

import pytest
from kombu.exceptions import OperationalError

from tasks import delivery
from tasks.app import encode
from tasks.errors import BrokerUnavailable
from tasks.messages import Ticket

#: "The Celery message for a chunk, under 1 kB."
MOST_BYTES = 1024


def node_settings():
    """Return the settings of a node, as tasks.app makes them."""
    app = delivery.make_app("memory://")
    app.conf.update(delivery.consume_settings())
    return app.conf


@pytest.fixture
def client():
    """Return a client's application whose broker is this process."""
    app = delivery.make_app("memory://")
    yield app
    app.close()


def queued(app, queue):
    """Take all messages out of a queue, as they stand there."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        return [channel._get(queue) for _ in range(channel._size(queue))]


# -- settings ----------------------------------------------------------------------------------------------------


def test_both_sides_take_and_send_nothing_but_json(client):
    """A pickle in the queue would run code."""
    for conf in (client.conf, node_settings()):
        assert conf.accept_content == ["json"]
        assert conf.task_serializer == "json"


def test_both_sides_have_no_result_backend(client):
    """Results live in the store and the ledger."""
    for conf in (client.conf, node_settings()):
        assert conf.result_backend is None
        assert conf.task_ignore_result is True


def test_both_sides_give_up_on_a_broker_that_says_nothing(client):
    """Without these a half-open connection hangs for good."""
    for conf in (client.conf, node_settings()):
        options = conf.broker_transport_options
        assert options["socket_timeout"] == 5
        assert options["socket_connect_timeout"] == 5
        assert options["socket_keepalive"] is True
        assert options["health_check_interval"] == 10


def test_a_node_acknowledges_early_and_takes_nothing_in_advance():
    """The ledger recovers what is lost, so nothing runs twice and nobody holds what others could do."""
    conf = node_settings()
    assert conf.task_acks_late is False
    assert conf.worker_disable_prefetch is True
    assert conf.worker_prefetch_multiplier == 1


def test_a_node_keeps_its_loaded_models():
    """Children are spawned, get the time to load, and survive a lost connection and a full broker."""
    conf = node_settings()
    assert conf.worker_pool_start_method == "spawn"
    assert conf.worker_proc_alive_timeout == 900
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_connection_max_retries is None
    assert conf.broker_channel_error_retry is True


def test_a_client_gives_up_on_publishing_soon(client):
    """The ledger issues the ticket again later."""
    policy = client.conf.task_publish_retry_policy
    assert policy["max_retries"] == 3
    assert "worker_disable_prefetch" not in delivery._SUBMIT


def test_the_settings_of_a_node_are_whole():
    """A spawned child gets only what was set, so nothing may be left to the defaults of the application."""
    settings = delivery.consume_settings()
    assert {*delivery._SHARED, *delivery._CONSUME} == set(settings)
    conf = node_settings()
    assert {name: conf[name] for name in settings} == settings


def test_the_broker_is_asked_for_when_it_is_needed():
    """Importing the application reads no settings file."""
    asked = []
    app = delivery.make_app(lambda: asked.append(1) or "unix:///run/v.sock?db=2")
    assert asked == []
    assert app.conf.broker_url == "redis+socket:///run/v.sock?virtual_host=2"
    assert asked == [1]


# -- tickets -----------------------------------------------------------------------------------------------------


def test_tickets_go_to_the_queue_of_the_model(client, make_spec):
    """One message per chunk, in order, and nowhere else."""
    spec = make_spec()
    delivery.publish(client, spec, [3, 1, 2])
    messages = queued(client, spec.queue)
    assert [message["headers"]["id"] for message in messages] == [f"{spec.job}:{chunk}" for chunk in (3, 1, 2)]
    assert {message["headers"]["task"] for message in messages} == {"penstock.encode"}
    assert queued(client, delivery.NO_QUEUE) == []


def test_a_ticket_is_what_the_task_takes(client, make_spec, monkeypatch):
    """The task of the other side reads job, chunk and version out of it."""
    spec = make_spec()
    delivery.publish(client, spec, [5])
    (message,) = queued(client, spec.queue)
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    seen = []
    monkeypatch.setattr("tasks.app.run_chunk", lambda _slot, ticket: seen.append(ticket) or "done")
    monkeypatch.setattr("tasks.app.installed.slot", object())
    assert encode(*args, **kwargs) == "done"
    assert seen == [Ticket(version=1, job=spec.job, chunk=5)]


def test_a_ticket_is_small(client, make_spec, monkeypatch):
    """Also from a host with a long name, and for a chunk far into a corpus of internet scale."""
    monkeypatch.setattr("celery.utils.nodenames.gethostname", lambda: "penstock-worker-7c9d8b6f5-x2k4q")
    spec = make_spec(job="encode-3f9a1c02de")
    delivery.publish(client, spec, [9_999_999])
    (message,) = queued(client, spec.queue)
    assert len(json.dumps(message)) < MOST_BYTES


def test_a_ticket_holds_no_option_and_no_text(client, make_spec):
    """A hint names the chunk; what is to be done with it says the ledger."""
    spec = make_spec(name="SECRET corpus", keep_fields=("SECRET",))
    delivery.publish(client, spec, [0])
    (message,) = queued(client, spec.queue)
    assert "SECRET" not in json.dumps(message)
    assert b"SECRET" not in base64.b64decode(message["body"])


def test_no_tickets_need_no_broker():
    """Most events release nothing."""
    delivery.publish(None, None, [])


@pytest.mark.parametrize("fault", [OperationalError("down"), ConnectionResetError("gone"), TimeoutError("slow")])
def test_a_broker_that_takes_no_tickets_is_a_passing_fault(client, make_spec, monkeypatch, fault):
    """The ledger issues them again."""

    def fail(*_args, **_options):
        raise fault

    monkeypatch.setattr(client, "send_task", fail)
    with pytest.raises(BrokerUnavailable, match="encode-0001"):
        delivery.publish(client, make_spec(), [0])


# -- the task ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (("encode-0001", 0), "version"),
        (("encode-0001", 0, 2), "version"),
        (("../../etc/passwd", 0, 1), "job"),
        (("encode-0001", -1, 1), "chunk"),
        (("encode-0001", "SECRET", 1), "chunk"),
        ((None, None, None), "job"),
    ],
)
def test_a_forged_ticket_is_refused_in_one_line(args, field, caplog):
    """It reaches neither the ledger nor the store, and its content is not logged."""
    outcome = encode(*args)
    assert outcome.startswith("refused: ")
    assert f"{field}: " in outcome
    assert "SECRET" not in outcome + caplog.text
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_ticket_for_a_slot_that_is_not_ready_is_void():
    """The ledger issues it again."""
    assert encode("encode-0001", 0, 1) == "void: the slot is not ready"
