"""The state of jobs in Redis, and the only truth about them.

Each method is one event and runs one atomic Lua step (tasks/steps.py). Methods that open the gate return the chunks
that need a ticket now; the caller publishes them. Every step may run twice with the same arguments, because a reply
can be lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis

from tasks import keys
from tasks.broker import tls_fault
from tasks.endings import FORGIVEN, Ending
from tasks.errors import BrokerDenied, BrokerFull, BrokerUnavailable, UnknownJob, UnreadableJob
from tasks.identity import Identity
from tasks.journal import Journal, Span
from tasks.messages import JOB_ID_PATTERN, JobSpec, Receipt, read_spec
from tasks.records import JobStatus, Lease, Recorded, Refusal, read_record, read_status, write_record
from tasks.redaction import redact
from tasks.signing import Signer
from tasks.steps import STEPS
from tasks.workforce import SlotStatus, Workforce

#: Seconds that a ticket may be under way between a node and its slot before it counts as lost.
TICKET_GRACE_S = 5.0
#: Seconds after which a chunk of a job whose spec cannot be believed may be claimed by another.
UNREADABLE_S = 2.0

#: What a server answers that is full, busy, loading or changing its role: the same command may succeed later.
_PASSING = re.compile(r"\b(OOM|READONLY|MISCONF|BUSY|LOADING|MASTERDOWN|TRYAGAIN|CLUSTERDOWN|NOREPLICAS)\b")


#: Times that a chunk may be in work when somebody ends its slot, before a row of it is taken for the one who does.
MOST_STOPS = 20
#: Condemned rows of a chunk up to which a further one makes its attempts count anew.
MOST_CONDEMNED = 32


class Ledger:
    """The jobs of one broker.

    Args:
        client: its connection.
        url: its address, to be shown.
        signer: signs the specs of jobs that are made here, and judges those that are there.
    """

    def __init__(self, client: redis.Redis, url: str = "", signer: Signer | None = None) -> None:
        self.redis = client
        self.url = url
        self.signer = signer or Signer()
        self.workforce = Workforce(self)
        self.identity = Identity(self)
        self._steps = {name: client.register_script(source) for name, source in STEPS.items()}

    def ping(self) -> None:
        """Raise BrokerUnavailable unless the broker answers."""
        with self.reaching():
            self.redis.ping()

    # -- submitting ------------------------------------------------------------------------------------------------

    def create(self, spec: JobSpec, *, gate: int, ticket_s: float) -> bool:
        """Note a new job in state submitting. False: it was there already."""
        text = spec.model_dump_json()
        with self.reaching():
            made = self._steps["create"](
                keys=[*keys.step_keys(spec.job, spec.queue), keys.JOBS, keys.submission(spec.key)],
                args=[spec.job, text, gate, _ms(ticket_s), self.signer.sign_spec(text)],
            )
        return bool(made)

    def announce(self, spec: JobSpec, chunk: int, rows: int, size_bytes: int) -> tuple[str, list[int]]:
        """Say that a chunk input is in the store. Returns the job's state and the tickets to publish."""
        state, *tickets = self._run("announce", spec, chunk, rows, size_bytes)
        return state, tickets

    def seal(self, spec: JobSpec, chunks: int, kept_types: dict[str, str]) -> tuple[str, list[int]]:
        """Say that the corpus ended. Returns the job's state and the tickets to publish."""
        state, *tickets = self._run("seal", spec, chunks, json.dumps(kept_types))
        return state, tickets

    # -- working ---------------------------------------------------------------------------------------------------

    def claim(self, job: str, chunk: int, *, queue: str, slot: str, lease_s: float) -> Lease | Refusal:
        """Ask for a chunk. The lease holds for ``lease_s`` seconds unless it is touched."""
        names = keys.step_keys(job, queue)
        with self.reaching():
            answer = self._steps["claim"](keys=[*names, keys.slot(slot)], args=[chunk, slot, _ms(lease_s)])
        if answer[0] != "leased":
            return Refusal(answer[1])
        try:
            spec = self._believe(job, answer[3], answer[4])
        except UnreadableJob as exc:
            # No ticket that this gives is published: whoever can read the job has them issued again.
            with self.reaching():
                self._steps["free"](keys=names, args=[chunk, answer[1], "forgiven", _ms(UNREADABLE_S), "", MOST_STOPS])
                self.redis.hset(keys.refusals(job), slot, str(exc))
            return Refusal(str(exc))
        journal = Journal.read(*answer[6:9])
        return Lease(job, chunk, int(answer[1]), int(answer[2]), spec, answer[5], journal, tuple(answer[9:]))

    def touch(self, lease: Lease, lease_s: float) -> bool:
        """Extend a lease. False: it is no longer this slot's, and the work is for nothing."""
        return bool(self._run("touch", lease.spec, lease.chunk, lease.token, _ms(lease_s)))

    def journal(self, lease: Lease, journal: Journal, rows: Span) -> bool:
        """Note which rows go to work next. False: the lease is no longer this slot's."""
        first, stop = rows
        learned = (journal.dump(), f"{first} {stop}", len(journal.condemned), MOST_CONDEMNED)
        return bool(self._run("journal", lease.spec, lease.chunk, lease.token, *learned))

    def record(self, lease: Lease, receipt: Receipt) -> tuple[str, list[int]]:
        """Record a stored result. Returns the outcome (``recorded`` or why not) and the tickets to publish."""
        seconds = (receipt.read_s, receipt.tokenise_s, receipt.model_s, receipt.write_s, receipt.idle_s)
        outcome, *tickets = self._run(
            "record",
            lease.spec,
            lease.chunk,
            lease.token,
            write_record(lease.token, receipt),
            receipt.weights,
            receipt.dim,
            lease.spec.on_error,
            *(f"{value:.6f}" for value in seconds),
        )
        return outcome, tickets

    def free(
        self, spec: JobSpec, chunk: int, token: int, ending: Ending = FORGIVEN, *, delay_s: float = 0.0
    ) -> list[int]:
        """Give a lease up; the chunk may be taken again after the delay. Returns the tickets to publish."""
        how = (ending.kind, _ms(delay_s), ending.why, MOST_STOPS)
        return cast("list[int]", self._run("free", spec, chunk, token, *how))

    def bury(self, slot: SlotStatus, ending: Ending = FORGIVEN) -> tuple[JobSpec, list[int]] | None:
        """Strike off a slot that ended and free its lease. Returns the lease's job and the tickets to publish."""
        freed = None
        if slot.claim:
            job, chunk, token = slot.claim.split()
            with suppress(UnknownJob, UnreadableJob):
                spec = self.spec(job)
                freed = spec, self.free(spec, int(chunk), int(token), ending)
        self.workforce.forget(slot.slot)
        return freed

    def refuse(self, spec: JobSpec, slot: str, why: str) -> None:
        """Note that a slot will not work on a job, and why, for the people who wait for it."""
        with self.reaching():
            self.redis.hset(keys.refusals(spec.job), slot, why)

    def reconcile(self, spec: JobSpec) -> list[int]:
        """Look for lost tickets and lapsed leases of a job. Returns the tickets to publish."""
        return cast("list[int]", self._run("reconcile", spec, _ms(TICKET_GRACE_S)))

    def may_reconcile(self, who: str, for_s: float) -> bool:
        """Whether this process is the one that reconciles for the next seconds."""
        with self.reaching():
            return bool(self.redis.set(keys.RECONCILER, who, nx=True, px=_ms(for_s)))

    # -- ending ----------------------------------------------------------------------------------------------------

    def end(self, spec: JobSpec, state: str, reason: str = "") -> str:
        """End a job as ``cancelled`` or ``failed``. Returns the state that it has now."""
        return cast("str", self._run("end", spec, state, reason))

    def retry(self, spec: JobSpec, damaged: Iterable[int] = ()) -> tuple[str, int, list[int]]:
        """Reopen what failed, or the chunks named here, whose results are damaged.

        Returns the state before, how many recorded chunks were reopened, and the tickets to publish.
        """
        state, chunks, *tickets = self._run("retry", spec, *damaged)
        return state, chunks, tickets

    def withdraw(self, spec: JobSpec) -> bool:
        """Let nothing but its removal happen to a job that is over. False: it is not over."""
        return self._take_off("withdraw", spec)

    def remove(self, spec: JobSpec) -> bool:
        """Forget a job that is over, with all that belongs to it. False: it is not over."""
        return self._take_off("remove", spec)

    # -- recovering ------------------------------------------------------------------------------------------------

    def restore(
        self, spec: JobSpec, *, ticket_s: float, created_ms: int, totals: tuple[int, int, int, dict[str, str]] | None
    ) -> None:
        """Bring a job back behind a shut gate, unless it is there.

        ``totals``: its chunks, rows, input bytes and kept types if it is sealed.
        """
        sealed = (*totals[:3], json.dumps(totals[3])) if totals else ()
        text = spec.model_dump_json()
        with self.reaching():
            self._steps["restore"](
                keys=[*keys.step_keys(spec.job, spec.queue), keys.JOBS, keys.submission(spec.key)],
                args=[spec.job, text, _ms(ticket_s), created_ms, self.signer.sign_spec(text), *sealed],
            )

    def adopt(self, spec: JobSpec, chunk: int, token: int, receipt: Receipt) -> bool:
        """Record a result that was found in the store. False: there is one already, or no such chunk."""
        note = write_record(token, receipt)
        return bool(self._run("adopt", spec, chunk, note, receipt.weights, receipt.dim))

    def open_gate(self, spec: JobSpec, gate: int) -> list[int]:
        """Let tickets through that many at a time. Returns the tickets to publish."""
        return cast("list[int]", self._run("open_gate", spec, gate))

    # -- reading ---------------------------------------------------------------------------------------------------

    def spec(self, job: str) -> JobSpec:
        """Return the spec of a job.

        Raises:
            UnknownJob: the ledger has no such job.
            UnreadableJob: another release made it, or nobody with a key of this ledger.
        """
        spec, signature = None, None
        if _is_job_id(job):
            with self.reaching():
                spec, signature = cast("list[str | None]", self.redis.hmget(keys.job(job), ["spec", "signature"]))
        if spec is None:
            raise UnknownJob(f"No job {job!r} in {self.where}. `penstock jobs` lists those that there are.")
        return self._believe(job, spec, signature or "")

    def find(self, key: str) -> JobSpec | None:
        """Return the job that a submission key made, or None."""
        with self.reaching():
            job = self.redis.get(keys.submission(key))
        return self.spec(cast("str", job)) if job else None

    def status(self, job: str) -> JobStatus:
        """Return the state of a job.

        Raises:
            UnknownJob: the ledger has no such job.
        """
        spec = self.spec(job)
        with self.reaching():
            fields = cast("dict[str, str]", self.redis.hgetall(keys.job(job)))
        return read_status(spec, fields)

    def is_sealed(self, job: str) -> bool:
        """Whether there is such a job and its whole corpus is in the store."""
        with self.reaching():
            return bool(self.redis.hexists(keys.job(job), "total"))

    def announced(self, job: str) -> int:
        """Return how many chunk inputs of a job are in the store."""
        with self.reaching():
            return int(cast("str", self.redis.hget(keys.job(job), "announced") or "0"))

    def now_ms(self) -> int:
        """Return the broker's time, by which all times of the ledger are."""
        with self.reaching():
            seconds, microseconds = self.redis.time()
        return seconds * 1000 + microseconds // 1000

    def jobs(self) -> list[str]:
        """Return all job ids, oldest first."""
        with self.reaching():
            return cast("list[str]", self.redis.zrange(keys.JOBS, 0, -1))

    def active_jobs(self) -> list[str]:
        """Return the jobs that are submitting or running."""
        with self.reaching():
            return sorted(cast("set[str]", self.redis.smembers(keys.ACTIVE)))

    def recorded(self, job: str, first: int, count: int) -> list[Recorded]:
        """Return the recorded chunks among ``count`` ones from ``first``, in order."""
        chunks = list(range(first, first + count))
        if not chunks:
            return []
        with self.reaching():
            notes = cast("list[str | None]", self.redis.hmget(keys.done(job), [str(c) for c in chunks]))
        return [read_record(chunk, note) for chunk, note in zip(chunks, notes, strict=True) if note]

    def failed_chunks(self, job: str) -> list[int]:
        """Return the recorded chunks with error rows, in order."""
        with self.reaching():
            return sorted(int(chunk) for chunk in cast("set[str]", self.redis.smembers(keys.failed(job))))

    def waiting_tickets(self, queue: str) -> int:
        """Return how many tickets wait in a queue."""
        with self.reaching():
            return self.redis.llen(queue)

    def leases(self, spec: JobSpec) -> list[tuple[int, int]]:
        """Return chunk and token of every lease of a job, lapsed ones included."""
        with self.reaching():
            found = cast("dict[str, str]", self.redis.hgetall(keys.leases(spec.job)))
        return [(int(chunk), int(lease.partition(" ")[0])) for chunk, lease in found.items()]

    def refusals(self, job: str) -> dict[str, str]:
        """Return which slots refused a job, and why."""
        with self.reaching():
            return cast("dict[str, str]", self.redis.hgetall(keys.refusals(job)))

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """The broker as it may be shown."""
        return redact(self.url) if self.url else "this ledger"

    def _believe(self, job: str, spec: str, signature: str) -> JobSpec:
        """Read a spec as it stands in the ledger, if it is signed as it should be."""
        if not self.signer.takes_spec(spec, signature):
            raise UnreadableJob(
                f"Job {job} is {'wrongly' if signature else 'not'} signed: whoever made it has other keys in its "
                "signing_key_file, or none.",
                job=job,
            )
        return read_spec(job, spec)

    def _run(self, step: str, spec: JobSpec, *args: str | float) -> Any:
        with self.reaching():
            return self._step(step, spec, *args)

    def _step(self, step: str, spec: JobSpec, *args: str | float) -> Any:
        return self._steps[step](keys=keys.step_keys(spec.job, spec.queue), args=list(args))

    def _take_off(self, step: str, spec: JobSpec) -> bool:
        names = [*keys.step_keys(spec.job, spec.queue), keys.JOBS, keys.submission(spec.key), keys.refusals(spec.job)]
        with self.reaching():
            return bool(self._steps[step](keys=names, args=[spec.job]))

    def _denied(self, exc: redis.RedisError) -> BrokerDenied:
        return BrokerDenied(
            f"The broker at {self.where} refuses this user: {exc} Check the user and password in --broker and the "
            "server's ACL."
        )

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn faults of the broker into BrokerUnavailable: it is away, or full, or a replica for the moment."""
        try:
            yield
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
            raise self._denied(exc) from exc
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            tls = tls_fault(exc)
            if tls and self.url.startswith("rediss://"):
                raise BrokerUnavailable(
                    f"No TLS connection to the broker at {self.where}: {tls}. Check broker_tls_ca, broker_tls_cert "
                    "and broker_tls_key, and that --broker has the name that the server's certificate is for."
                ) from exc
            raise BrokerUnavailable(
                f"The broker at {self.where} does not answer ({type(exc).__name__}). Check that Redis or Valkey "
                "runs there and that --broker names it."
            ) from exc
        except redis.ResponseError as exc:
            if "ACL failure in script" in str(exc):
                raise self._denied(exc) from exc
            is_passing = isinstance(exc, (redis.OutOfMemoryError, redis.ReadOnlyError))
            if not is_passing and not _PASSING.search(str(exc)):
                raise
            if isinstance(exc, redis.OutOfMemoryError) or "OOM" in str(exc):
                raise BrokerFull(
                    f"The broker at {self.where} is full. Raise its maxmemory, or make room: `penstock remove "
                    "--ended-before 7d`. Work goes on when there is room."
                ) from exc
            raise BrokerUnavailable(f"The broker at {self.where} takes no writes: {exc}") from exc


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _is_job_id(job: str) -> bool:
    return re.fullmatch(JOB_ID_PATTERN, job) is not None
