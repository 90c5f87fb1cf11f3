"""Messages that no node could read."""

from tasks import keys, parking
from tasks.parking import MOST_BYTES, MOST_PARKED, park, parked, reasons

QUEUE = "penstock.encode.0123456789abcdef"


def queued(ledger):
    """Return what lies in the queue, in the order in which it is taken."""
    return ledger.redis.lrange(QUEUE, 0, -1)[::-1]


def test_a_parked_message_is_kept_with_all_that_is_known_of_it(fake_ledger):
    """Where it lay, who took it out, when, and why."""
    park(fake_ledger, "node@host", QUEUE, b"garbage", "no message of Celery's")
    (message,) = parked(fake_ledger)
    assert (message.queue, message.node, message.why) == (QUEUE, "node@host", "no message of Celery's")
    assert (message.message, message.size_bytes, message.is_whole) == ("garbage", 7, True)
    assert message.at_ms > 0
    assert reasons(fake_ledger) == {"no message of Celery's": 1}


def test_parked_messages_are_bounded_in_number_and_size(fake_ledger):
    """Whoever fills a queue with garbage does not fill the broker; the latest are kept."""
    for i in range(MOST_PARKED + 5):
        park(fake_ledger, "node", QUEUE, str(i).encode(), "why")
    park(fake_ledger, "node", QUEUE, b"x" * 10_000_000, "why")
    assert fake_ledger.redis.llen(keys.PARKED) == MOST_PARKED
    latest = parked(fake_ledger)[0]
    assert (len(latest.message), latest.size_bytes, latest.is_whole) == (MOST_BYTES, 10_000_000, False)


def test_requeued_messages_are_what_they_were(valkey_ledger):
    """Byte for byte, in their order; one that was cut is dropped."""
    messages = [b"first", b"\x80\xff\xed\xa0\x80 no UTF-8", "ä\u2028".encode(), b"x" * (MOST_BYTES + 1)]
    for message in messages:
        park(valkey_ledger, "node", QUEUE, message, "why")
    assert parking.empty(valkey_ledger, requeue=True) == (3, 1)
    assert parked(valkey_ledger) == []
    connection = valkey_ledger.redis.connection_pool.make_connection()
    try:
        connection.send_command("LRANGE", QUEUE, 0, -1)
        assert connection.read_response(disable_decoding=True)[::-1] == messages[:3]
    finally:
        connection.disconnect()


def test_dropped_messages_go_nowhere(fake_ledger):
    """They are gone, and so is the warning."""
    park(fake_ledger, "node", QUEUE, b"garbage", "why")
    assert parking.empty(fake_ledger, requeue=False) == (0, 1)
    assert parked(fake_ledger) == []
    assert queued(fake_ledger) == []


def test_a_note_that_is_no_nodes_is_shown_and_never_put_back(fake_ledger):
    """Somebody wrote it by hand, with the ledger's own key as its queue."""
    fake_ledger.redis.lpush(keys.PARKED, "nonsense", '{"queue": "penstock:jobs"}')
    assert [message.why for message in parked(fake_ledger)] == ["no note of a node"] * 2
    assert parking.empty(fake_ledger, requeue=True) == (0, 2)
    assert not fake_ledger.redis.exists("penstock:jobs")
