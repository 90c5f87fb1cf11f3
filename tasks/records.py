"""What the ledger says: leases, refusals, recorded chunks, the state of a job."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tasks.errors import JobFailed
from tasks.journal import Journal
from tasks.messages import JobSpec, Receipt

#: What the seconds of a chunk are told for; ``idle`` is the time without model work.
STAGES = ("read", "tokenise", "model", "write", "idle")


@dataclass(frozen=True)
class Lease:
    """The right to work on a chunk.

    Attributes:
        token: the fencing token.
        attempts: how often the chunk was claimed, this time included.
        spec: the job's.
        weights: fingerprint of the weights that began the job; empty while nothing is recorded.
        journal: what attempts taught that ended with their process.
        released: chunks whose tickets may enter the queue now.
    """

    job: str
    chunk: int
    token: int
    attempts: int
    spec: JobSpec
    weights: str = ""
    journal: Journal = field(default_factory=Journal)
    released: tuple[int, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why a claim gave no lease: the ticket is void."""

    why: str


@dataclass(frozen=True)
class Recorded:
    """A recorded chunk: where its result is and what it held."""

    chunk: int
    token: int
    rows: int
    failed_rows: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True)
class JobStatus:
    """A job as the ledger has it at one moment.

    Attributes:
        state: submitting, running, done, failed or cancelled.
        reason: why it failed.
        rows: rows announced so far; all of them once it is sealed.
        chunks: the sealed total, or what is announced so far.
        recorded: chunks with a result.
        finished_ms: when it ended, by the broker's time; 0 while it is not over.
        work_s: seconds from the first chunk taken to the last receipt.
        seconds: seconds per stage, summed over slots.
        kept_types: type of each kept field, known once the job is sealed.
    """

    spec: JobSpec
    state: str
    reason: str
    is_sealed: bool
    rows: int
    input_bytes: int
    chunks: int
    recorded: int
    rows_done: int
    failed_rows: int
    truncated_rows: int
    tokens: int
    padded_tokens: int
    duplicate_rows: int
    cached_rows: int
    dim: int
    weights: str
    created_ms: int
    finished_ms: int
    work_s: float
    seconds: dict[str, float]
    kept_types: dict[str, str]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to this job by itself."""
        return self.state in {"done", "failed", "cancelled"}

    def raise_for_state(self) -> None:
        """Raise JobFailed if the job failed or was cancelled."""
        job = self.spec.job
        if self.state == "failed":
            raise JobFailed(f"Job {job} failed: {self.reason}", job=job)
        if self.state == "cancelled":
            raise JobFailed(f"Job {job} was cancelled{f' ({self.reason})' if self.reason else ''}.", job=job)


def write_record(token: int, receipt: Receipt) -> str:
    """Write the ledger's note on a recorded chunk."""
    return (
        f"{token} {receipt.rows} {receipt.failed_rows} {receipt.truncated_rows} {receipt.tokens} "
        f"{receipt.padded_tokens} {receipt.size_bytes} {receipt.crc32} {receipt.duplicate_rows} {receipt.cached_rows}"
    )


def read_record(chunk: int, note: str) -> Recorded:
    """Read the ledger's note on a recorded chunk."""
    token, rows, failed, _, _, _, size, crc32, *_ = map(int, note.split())
    return Recorded(chunk, token, rows, failed, size, crc32)


def read_status(spec: JobSpec, fields: dict[str, str]) -> JobStatus:
    """Read the ledger's hash of a job."""

    def number(name: str) -> int:
        return int(fields.get(name, "0"))

    return JobStatus(
        spec=spec,
        state=fields["state"],
        reason=fields.get("reason", ""),
        is_sealed="total" in fields,
        rows=number("rows"),
        input_bytes=number("input_bytes"),
        chunks=number("announced"),
        recorded=number("recorded"),
        rows_done=number("rows_done"),
        failed_rows=number("failed_rows"),
        truncated_rows=number("truncated_rows"),
        tokens=number("tokens"),
        padded_tokens=number("padded_tokens"),
        duplicate_rows=number("duplicate_rows"),
        cached_rows=number("cached_rows"),
        dim=number("dim"),
        weights=fields.get("weights", ""),
        created_ms=number("created_ms"),
        finished_ms=number("finished_ms"),
        work_s=max(0, number("last_record_ms") - number("first_claim_ms")) / 1000,
        seconds={stage: float(fields.get(f"{stage}_s", "0")) for stage in STAGES},
        kept_types=json.loads(fields.get("kept_types", "{}")),
    )
