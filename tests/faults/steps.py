"""The steps of a chunk as they look on the wire."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from tasks.steps import STEPS


def evalsha(step: str) -> bytes:
    """Return the bytes by which a ledger step is known: the digest of its script."""
    return hashlib.sha1(STEPS[step].encode(), usedforsecurity=False).hexdigest().encode()


def job_of(request: bytes) -> str:
    """Return the job that a request is about."""
    return re.search(rb"(?:job:|jobs/)(encode-[0-9a-f]+)", request)[1].decode()


def chunk_of(request: bytes) -> int:
    """Return the chunk that a request is about: of a ledger step, or of the store."""
    path = re.search(rb"/(?:input|result)/([0-9]{8})", request)
    if path:
        return int(path[1])
    items = re.findall(rb"\$[0-9]+\r\n([^\r]*)\r\n", request[request.index(b"EVALSHA") :])
    return int(items[2 + int(items[1])])  # digest, number of keys, keys, chunk


@dataclass(frozen=True)
class Step:
    """A moment in the way of a chunk.

    Attributes:
        request, reply: as for a trap.
        is_in_store: whether the request goes to the store; else to the broker.
        attempts: claims of the chunk by the time that it is recorded, if its slot dies here; 0: it is recorded already.
    """

    name: str
    request: bytes
    reply: bytes | None
    is_in_store: bool
    attempts: int


#: All that a slot does with a chunk, before and after each request that it makes.
STEPS_OF_A_CHUNK = [
    Step("before the claim", evalsha("claim"), None, is_in_store=False, attempts=1),
    Step("claim, release", evalsha("claim"), b"leased", is_in_store=False, attempts=2),
    Step("release, read", b"GET /corpora/penstock/jobs/", None, is_in_store=True, attempts=2),
    Step("read, compute", b"GET /corpora/penstock/jobs/", b"HTTP/1.1 200", is_in_store=True, attempts=2),
    Step("compute", evalsha("touch"), b":1", is_in_store=False, attempts=2),
    Step("compute, write", b"PUT /corpora/penstock/jobs/", None, is_in_store=True, attempts=2),
    Step("write, record", b"PUT /corpora/penstock/jobs/", b"HTTP/1.1 200", is_in_store=True, attempts=2),
    Step("before the record", evalsha("record"), None, is_in_store=False, attempts=2),
    Step("record, release", evalsha("record"), b"recorded", is_in_store=False, attempts=0),
]
