"""Which ledger this is, and whether it may have lost something.

A ledger has an id of its own; a job's manifest names it. Every process remembers the ids that it has seen: when one is
gone, the ledger was emptied, and whoever remembers brings the id back. The jobs that its store has of these ids are its
own, and no others: many ledgers may share a store.

A server that was restarted, or that took over from another, may miss the last second. Redis shows that by a new
replication id. For which one the jobs of a store were compared with the ledger is noted in the ledger.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, cast

import redis

from tasks import keys

if TYPE_CHECKING:
    from tasks.ledger import Ledger


#: KEYS note, ARGV before after: replaces a note, unless another process did so, or it is lost.
_REPLACE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end"


class Identity:
    """The ids of one ledger, several if jobs of another were recovered into it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._remembered: set[str] = set()
        self._note = ledger.redis.register_script(_REPLACE)

    def ids(self) -> set[str]:
        """Return the ledger's ids, those included that it lost and this process remembers."""
        with self._ledger.reaching():
            held = cast("set[str]", self._ledger.redis.smembers(keys.LEDGER))
        self._remembered |= held
        if self._remembered != held:
            self.add(self._remembered)
        return set(self._remembered)

    def add(self, ids: set[str]) -> None:
        """Take ids over. Jobs with them are this ledger's own from now on."""
        with self._ledger.reaching():
            self._ledger.redis.sadd(keys.LEDGER, *ids)
        self._remembered |= ids

    def add_from(self, store_id: str, ids: set[str]) -> None:
        """Take ids over from a store. If whoever does so ends before their jobs are here, others bring them back."""
        self.add(ids)
        with self._ledger.reaching():
            self._ledger.redis.delete(keys.compared(store_id))

    def id(self) -> str:
        """Return the id for new jobs, making one if there is none. Two at the same time make two, which is harmless."""
        if not self.ids():
            self.add({secrets.token_hex(8)})
        return min(self._remembered)

    def server(self) -> str:
        """Return the replication id of the server; empty if it is not told, as by some proxies."""
        with self._ledger.reaching():
            try:
                return str(self._ledger.redis.info("replication").get("master_replid", "none"))
            except redis.ResponseError:
                return "none"

    def compared(self, store_id: str) -> str:
        """Return the server for which this ledger was last compared with a store, or a random note if it never was."""
        with self._ledger.reaching():
            self._ledger.redis.set(keys.compared(store_id), f"not yet {secrets.token_hex(8)}", nx=True)
            return cast("str", self._ledger.redis.get(keys.compared(store_id)) or "")

    def note_compared(self, store_id: str, server: str, *, before: str) -> None:
        """Note that the ledger has all its jobs of a store, unless it was emptied again since ``before`` was noted."""
        with self._ledger.reaching():
            self._note(keys=[keys.compared(store_id)], args=[before, server])
