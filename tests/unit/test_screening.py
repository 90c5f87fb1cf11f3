"""What a node takes for a ticket."""

import base64
import json
import pickle

import pytest

from tasks.messages import Ticket
from tasks.screening import MOST_BYTES, Unfit, screen
from tasks.signing import Signer

JOB = "encode-0123456789"
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
UNSIGNED = Signer()
KEYED = Signer((b"k" * 32,))


def body(arguments, embed=EMBED):
    """Return the body of a message as Celery encodes it."""
    return base64.b64encode(json.dumps([arguments, {}, embed]).encode()).decode()


def message(arguments=(JOB, 3, 1), *, headers=None, embed=EMBED, **changes):
    """Return a message as Celery puts it into a queue, with changes."""
    whole = {
        "body": body(arguments, embed),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "penstock.encode", "id": f"{JOB}:3", **(headers or {})},
        "properties": {"body_encoding": "base64", "delivery_tag": "tag", "delivery_info": {}, "priority": 0},
    }
    return json.dumps({**whole, **changes}).encode()


def decoded(raw):
    """Return a message as a dictionary and its arguments."""
    whole = json.loads(raw)
    return whole, json.loads(base64.b64decode(whole["body"]))


def test_a_ticket_passes():
    """It arrives with the same job, chunk and version."""
    whole, (arguments, kwargs, embed) = decoded(screen(message(), UNSIGNED))
    assert (arguments, kwargs, embed) == ([JOB, 3, 1], {}, EMBED)
    assert whole["headers"]["id"] == f"{JOB}:3"


def test_nothing_else_of_a_message_reaches_celery():
    """Time limits, delays, follow-up tasks, other names and ids have no effect."""
    orders = {
        "timelimit": [0.01, 0.01],
        "eta": "2099-01-01T00:00:00",
        "expires": "2000-01-01T00:00:00",
        "shadow": "another name",
        "id": "another id",
        "retries": 5,
        "argsrepr": "what a record says",
        "stamped_headers": ["x"],
        "ignore_result": False,
    }
    chain = [{"task": "penstock.encode", "args": ["encode-of-another", 0, 1], "kwargs": {}, "options": {}}]
    hostile = message(headers=orders, embed={**EMBED, "chain": chain, "callbacks": chain})
    assert screen(hostile, UNSIGNED) == screen(message(), UNSIGNED)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no message of Celery's"),
        (b"garbage", "no message of Celery's"),
        (b"\x00\xff\xfe", "no message of Celery's"),
        (b"null", "no message of Celery's"),
        (b"[]", "no message of Celery's"),
        (b"{}", "no message of Celery's"),
        (b"[" * 4000, "no message of Celery's"),
        (b"1" * 4000, "no message of Celery's"),
        (pickle.dumps({"body": "x"}), "no message of Celery's"),
        (b"x" * (MOST_BYTES + 1), "bytes, which no ticket has"),
        (message(body="%%%"), "no message of Celery's"),
        (message(body=base64.b64encode(b"[]").decode()), "no message of Celery's"),
        (message(body=None), "no message of Celery's"),
        (message(properties={}), "no message of Celery's"),
        (message(headers={"task": None}), "an unknown task, 'None'"),
        (message(headers={"task": "celery.map"}), "an unknown task, 'celery.map'"),
        (message(headers={"task": "a\nb"}), r"an unknown task, 'a\\nb'"),
        (message(**{"content-type": "application/x-python-serialize"}), "its content is not JSON"),
        (message(properties={"body_encoding": "zip", "delivery_tag": "t"}), "its content is not JSON"),
        (message((JOB, 3, 99)), "a ticket of version 99; this node reads version 1"),
        (message((JOB, 3, 2, "more")), "a ticket of version 2; this node reads version 1"),
        (message((JOB, 3, 0)), "a ticket of version 0"),
        (message((JOB, 3)), "2 arguments instead of 3"),
        (message((JOB, 3, 1, 4)), "4 arguments instead of 3"),
        (message({"job": JOB}), "its arguments are no list"),
        (message(("../../etc/passwd", 3, 1)), "job: "),
        (message(("encode:0", 3, 1)), "job: "),
        (message((JOB, -1, 1)), "chunk: "),
        (message((JOB, 2**31, 1)), "chunk: "),
        (message((JOB, 10**400, 1)), "chunk: "),
        (message((JOB, 1.5, 1)), "chunk: "),
        (message((JOB, "3", 1)), "chunk: "),
        (message((JOB, 3, "1")), "version: "),
        (message((JOB, 3, None)), "version: "),
    ],
)
def test_what_is_no_ticket_is_named(raw, why):
    """Whatever it is, one line says what is wrong, and none of its text but a task's name, escaped."""
    with pytest.raises(Unfit, match=why) as caught:
        screen(raw, UNSIGNED)
    assert str(caught.value).isprintable()


def signed(signer):
    """Return a message with a ticket that is signed."""
    ticket = Ticket(version=1, job=JOB, chunk=3)
    return message(headers={"signature": signer.sign_ticket(ticket)})


def test_a_node_with_a_key_takes_what_is_signed_with_it():
    """And passes on the same message as without signatures."""
    assert screen(signed(KEYED), KEYED) == screen(message(), UNSIGNED)


def test_a_node_without_a_key_takes_signed_tickets_too():
    """So that keys can be brought to one side after the other."""
    assert screen(signed(KEYED), UNSIGNED) == screen(message(), UNSIGNED)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (message(), "not signed"),
        (message(headers={"signature": ""}), "not signed"),
        (message(headers={"signature": "0" * 32}), "wrongly signed"),
        (message(headers={"signature": "ä"}), "wrongly signed"),
        (message(headers={"signature": ["x"]}), "wrongly signed"),
        (signed(Signer((b"o" * 32,))), "wrongly signed"),
        (message((JOB, 4, 1), headers=json.loads(signed(KEYED))["headers"]), "wrongly signed"),
    ],
)
def test_a_node_with_a_key_takes_nothing_else(raw, why):
    """No signature, another key's, or another ticket's."""
    with pytest.raises(Unfit, match=f"^{why}$"):
        screen(raw, KEYED)
