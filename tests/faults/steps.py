"""How the requests of ledger and store look on the wire."""

from __future__ import annotations

import hashlib

from tasks.steps import STEPS


def evalsha(step: str) -> bytes:
    """Return the bytes by which a ledger step is known: the digest of its script."""
    return hashlib.sha1(STEPS[step].encode(), usedforsecurity=False).hexdigest().encode()
