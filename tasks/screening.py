"""What a node takes for a ticket: the message is read here, and nothing else of it reaches Celery.

Whoever writes to a queue could otherwise give Celery orders: to end a slot after a moment (a time limit), to wait until
a day in the future, to send messages of any kind when it is done. So a message is read strictly, and written anew from
what the ticket in it says.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from pydantic import ValidationError

from tasks.errors import Permanent
from tasks.messages import VERSION, Ticket
from tasks.options import OPTIONS, explain
from tasks.signing import Signer

#: A ticket has less than 1 kB; one of a later version may have more.
MOST_BYTES = 4096
#: The header of a message with the ticket's signature.
SIGNATURE = "signature"

#: The tasks that there are.
_TASKS = {f"penstock.{operation}" for operation in OPTIONS}
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Unfit(Permanent):
    """The message is no ticket that this node can read."""


def screen(raw: bytes, signer: Signer) -> bytes:
    """Return a message with the ticket that is in this one, and nothing else of it but its delivery.

    Raises:
        Unfit: there is none that this node may believe; the text says why.
    """
    if len(raw) > MOST_BYTES:
        raise Unfit(f"{len(raw)} bytes, which no ticket has")
    try:
        message = json.loads(raw)
        headers, delivery = message["headers"], message["properties"]
        task = headers["task"]
        if message["content-type"] != "application/json" or delivery["body_encoding"] != "base64":
            raise Unfit("its content is not JSON")
        arguments = json.loads(base64.b64decode(message["body"], validate=True))[0]
        tag, origin = str(delivery["delivery_tag"]), str(headers.get("origin", ""))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
        raise Unfit("no message of Celery's") from exc
    if not isinstance(task, str) or task not in _TASKS:
        raise Unfit(f"an unknown task, {str(task)[:80]!r}")
    ticket = _read_ticket(arguments)
    if not signer.takes_ticket(ticket, str(headers.get(SIGNATURE, ""))):
        raise Unfit("wrongly signed" if headers.get(SIGNATURE) else "not signed")
    return _message(task, ticket, tag, origin)


def _read_ticket(arguments: Any) -> Ticket:
    if not isinstance(arguments, list):
        raise Unfit("its arguments are no list")
    names = ("job", "chunk", "version")
    version = arguments[2] if len(arguments) > 2 else None  # noqa: PLR2004 - the place of the version
    if isinstance(version, int) and version != VERSION:
        raise Unfit(f"a ticket of version {version}; this node reads version {VERSION}")
    if len(arguments) != len(names):
        raise Unfit(f"{len(arguments)} arguments instead of {len(names)}")
    try:
        return Ticket.model_validate(dict(zip(names, arguments, strict=True)))
    except ValidationError as exc:
        raise Unfit(explain(exc)) from exc


def _message(task: str, ticket: Ticket, tag: str, origin: str) -> bytes:
    arguments = (ticket.job, ticket.chunk, ticket.version)
    name = f"{ticket.job}:{ticket.chunk}"
    message = {
        "body": base64.b64encode(json.dumps([arguments, {}, _EMBED]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": name,
            "root_id": ticket.job,
            "argsrepr": repr(arguments),
            "kwargsrepr": "{}",
            "origin": origin,
        },
        "properties": {
            "correlation_id": name,
            "delivery_info": {"exchange": "", "routing_key": ""},
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }
    return json.dumps(message).encode()
