"""A ledger, one of its jobs, and short words for what happens to it."""

from __future__ import annotations

from dataclasses import dataclass

from tasks import keys
from tasks.endings import FORGIVEN, Ending
from tasks.ledger import JobStatus, Lease, Ledger, Refusal
from tasks.messages import JobSpec, Receipt
from tests.conftest import wait_until

#: An attempt that ended with its process.
DIED = Ending("died", "a fault")

#: What a chunk of ten rows reports.
RECEIPT = Receipt(
    rows=10,
    truncated_rows=2,
    tokens=90,
    padded_tokens=100,
    read_s=0.1,
    tokenise_s=0.2,
    model_s=0.3,
    write_s=0.4,
    idle_s=0.5,
    duplicate_rows=3,
    cached_rows=1,
    slot="node/0",
    weights="w1",
    dim=4,
    size_bytes=1234,
    crc32=99,
)


def now_ms(ledger: Ledger) -> int:
    """Return the ledger's own time."""
    seconds, microseconds = ledger.redis.time()
    return seconds * 1000 + microseconds // 1000


def wait_ms(ledger: Ledger, duration_ms: int) -> None:
    """Wait until the ledger's clock has moved on by more than this."""
    until = now_ms(ledger) + duration_ms
    wait_until(lambda: now_ms(ledger) > until, "the ledger's clock moves on")


@dataclass
class Desk:
    """One job of a ledger."""

    ledger: Ledger
    spec: JobSpec
    gate: int = 4
    ticket_s: float = 900.0

    def create(self) -> Desk:
        """Note the job."""
        self.ledger.create(self.spec, gate=self.gate, ticket_s=self.ticket_s)
        return self

    def announce(self, *chunks: int) -> list[int]:
        """Announce chunks of ten rows and return the tickets."""
        return [t for chunk in chunks for t in self.ledger.announce(self.spec, chunk, 10, 1000)[1]]

    def seal(self, chunks: int) -> str:
        """Seal the job and return its state."""
        return self.ledger.seal(self.spec, chunks, {})[0]

    def ask(self, chunk: int, slot: str = "node/0", lease_s: float = 60) -> Lease | Refusal:
        """Claim a chunk."""
        return self.ledger.claim(self.spec.job, chunk, queue=self.spec.queue, slot=slot, lease_s=lease_s)

    def take(self, chunk: int, slot: str = "node/0", lease_s: float = 60) -> Lease:
        """Claim a chunk that is to be had."""
        answer = self.ask(chunk, slot, lease_s)
        assert isinstance(answer, Lease), answer
        return answer

    def record(self, lease: Lease, **fields) -> tuple[str, list[int]]:
        """Record a chunk with the usual receipt, but for some fields."""
        return self.ledger.record(lease, RECEIPT.model_copy(update=fields))

    def free(self, lease: Lease, ending: Ending = FORGIVEN, *, delay_s: float = 0) -> list[int]:
        """Give a lease up."""
        return self.ledger.free(self.spec, lease.chunk, lease.token, ending, delay_s=delay_s)

    def do(self, *chunks: int, **fields) -> None:
        """Claim and record chunks."""
        for chunk in chunks:
            assert self.record(self.take(chunk), **fields)[0] == "recorded"

    def end(self, state: str, reason: str = "") -> str:
        """End the job."""
        return self.ledger.end(self.spec, state, reason)

    def reconcile(self) -> list[int]:
        """Look for what is lost."""
        return self.ledger.reconcile(self.spec)

    @property
    def status(self) -> JobStatus:
        """The job as the ledger has it."""
        return self.ledger.status(self.spec.job)

    @property
    def attempts(self) -> dict[str, str]:
        """The claims so far of each chunk."""
        return self.ledger.redis.hgetall(f"{keys.job(self.spec.job)}:attempts")

    def snapshot(self) -> dict[str, object]:
        """Return all that the ledger holds on the job, but for times."""
        redis = self.ledger.redis
        base = keys.job(self.spec.job)
        fields = {name: value for name, value in redis.hgetall(base).items() if not name.endswith("_ms")}
        return {
            "job": fields,
            "open": redis.zrange(f"{base}:open", 0, -1),
            "leases": redis.hgetall(f"{base}:leases"),
            "attempts": self.attempts,
            "journal": redis.hgetall(f"{base}:journal"),
            "done": redis.hgetall(f"{base}:done"),
            "failed": redis.smembers(f"{base}:failed"),
            "active": redis.smembers(keys.ACTIVE),
            "jobs": redis.zrange(keys.JOBS, 0, -1),
            "key": redis.get(keys.submission(self.spec.key)),
        }
