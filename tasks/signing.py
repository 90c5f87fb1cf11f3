"""Signatures of tickets and job specs: who may write to the broker still cannot give work without the key.

HMAC-SHA256, cut to 128 bits so that a ticket stays below 1 kB. The keys are the lines of a file, which both sides have:
the first one signs, all of them are good. So a key is replaced in three steps: the new one goes to the end of every
file, then to its beginning, then the old one goes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import UsageError
from tasks.messages import Ticket

#: Characters that a key has at least: 128 bits as hex digits.
SHORTEST_KEY = 32
#: Hex digits of a signature.
DIGITS = 32


@dataclass(frozen=True)
class Signer:
    """Signs and checks with its keys. Without any it signs nothing and takes everything."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, file: Path | None) -> Signer:
        """Return a signer with the keys of a file, a line each; without a file, one without keys.

        Raises:
            UsageError: the file cannot be read, or holds no key, or one that is too short.
        """
        if file is None:
            return cls()
        try:
            keys = tuple(line.strip() for line in file.read_bytes().splitlines() if line.strip())
        except OSError as exc:
            raise UsageError(f"signing_key_file {file}: {exc.strerror or exc}.") from exc
        if not keys or any(len(key) < SHORTEST_KEY for key in keys):
            raise UsageError(
                f"signing_key_file {file}: needs a key a line, each of {SHORTEST_KEY} characters or more. Make one: "
                "openssl rand -hex 32"
            )
        return cls(keys)

    def sign_ticket(self, ticket: Ticket) -> str:
        """Return the signature of a ticket; empty without a key."""
        return self._sign("ticket", ticket.model_dump_json())

    def sign_spec(self, spec: str) -> str:
        """Return the signature of a job spec as it stands in the ledger; empty without a key."""
        return self._sign("spec", spec)

    def takes_ticket(self, ticket: Ticket, signature: str) -> bool:
        """Whether a ticket may be believed."""
        return self._takes("ticket", ticket.model_dump_json(), signature)

    def takes_spec(self, spec: str, signature: str) -> bool:
        """Whether a job spec may be believed."""
        return self._takes("spec", spec, signature)

    def _sign(self, kind: str, text: str) -> str:
        return _mac(self.keys[0], kind, text) if self.keys else ""

    def _takes(self, kind: str, text: str, signature: str) -> bool:
        given = signature.encode(errors="replace")
        matches = [hmac.compare_digest(_mac(key, kind, text).encode(), given) for key in self.keys]
        return any(matches) or not self.keys


def _mac(key: bytes, kind: str, text: str) -> str:
    """Return the signature; what is signed begins with its kind, so that none stands for another."""
    return hmac.new(key, f"penstock {kind}\n{text}".encode(), hashlib.sha256).hexdigest()[:DIGITS]
