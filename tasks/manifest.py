"""The manifest of a job in its store: what a ledger that lost its data needs to know of it, beside the chunks.

It has up to three parts: how the job was made, that it is sealed, and that it ended by will or fault. Each is an object
of its own, a line of JSON and its checksum, and is written whole; so none is ever read, changed and written again.
Chunk inputs and results are in the store anyway; that a job is done follows from them.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from tasks import keys
from tasks.errors import DamagedObject, Transient, UnknownJob
from tasks.ledger import Ledger
from tasks.messages import JobSpec
from tasks.options import Message, explain
from tasks.store import Store

M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)


class Made(Message):
    """How a job was made.

    Attributes:
        ledger: id of the ledger that it belongs to.
        created_ms: when, by the broker's time.
        signature: of the spec, if the side that made the job has a key.
    """

    spec: JobSpec
    ledger: str
    gate: Annotated[int, Field(ge=1)]
    ticket_s: Annotated[float, Field(gt=0)]
    created_ms: int
    signature: str = ""


class Sealed(Message):
    """What the ledger knew of the corpus when it was all there."""

    chunks: Annotated[int, Field(ge=1)]
    rows: int
    input_bytes: int
    kept_types: dict[str, str]


class Ended(Message):
    """That a job ended otherwise than by being done."""

    state: Literal["cancelled", "failed"]
    reason: str


@dataclass(frozen=True)
class Manifest:
    """All parts that there are."""

    made: Made
    sealed: Sealed | None
    ended: Ended | None


@dataclass(frozen=True)
class Listed:
    """What the names of a manifest's parts tell."""

    job: str
    ledger: str
    is_sealed: bool
    is_ended: bool


def note_made(store: Store, ledger: Ledger, spec: JobSpec, *, gate: int, ticket_s: float) -> None:
    """Note a job that the ledger has, unless that was done. From now on it outlives the ledger's data."""
    ledger_id = ledger.identity.id()
    signature = ledger.signer.sign_spec(spec.model_dump_json())
    made = Made(
        spec=spec,
        ledger=ledger_id,
        gate=gate,
        ticket_s=ticket_s,
        created_ms=ledger.now_ms(),
        signature=signature,
    )
    store.create(keys.manifest_made(spec.job, ledger_id), _to_bytes(made))


def note_sealed(store: Store, spec: JobSpec, totals: Sealed) -> None:
    """Note that all chunk inputs are in the store; done before the ledger seals the job."""
    _put(store, keys.manifest_sealed(spec.job), totals)


def end_job(store: Store, ledger: Ledger, spec: JobSpec, state: Literal["cancelled", "failed"], reason: str) -> str:
    """End a job in the ledger, and note it. Returns the state that the job has now."""
    has_now = ledger.end(spec, state, reason)
    if has_now == state:
        try:
            _put(store, keys.manifest_ended(spec.job), Ended(state=state, reason=reason))
        except Transient as exc:
            log.warning("End not noted in the store: %s", exc, extra={"action": "end", "job": spec.job})
    return has_now


def note_reopened(store: Store, spec: JobSpec) -> None:
    """Forget that a job failed; done before its retry."""
    store.delete(keys.manifest_ended(spec.job))


def read(store: Store, job: str) -> Manifest:
    """Read a job's manifest.

    Raises:
        UnknownJob: the store has none.
        DamagedObject: a part of it makes no sense.
    """
    parts = set(store.list_keys(keys.manifest(job)))
    sealed, ended = keys.manifest_sealed(job), keys.manifest_ended(job)
    made = sorted(part for part in parts if _made_by(part))
    if not made:
        raise UnknownJob(f"No manifest of job {job!r} in {store.url}.")
    found = Manifest(
        made=_get(store, made[0], Made),
        sealed=_get(store, sealed, Sealed) if sealed in parts else None,
        ended=_get(store, ended, Ended) if ended in parts else None,
    )
    if found.made.spec.job != job:
        raise DamagedObject(f"{made[0]} in {store.url} is another job's manifest.", key=made[0])
    return found


def listed(store: Store) -> Iterator[Listed]:
    """Yield all jobs with a manifest, from the names of its parts alone. The memory is some 200 bytes a job."""
    found: dict[str, set[str]] = {}
    for key in store.list_keys(keys.MANIFESTS):
        found.setdefault(key.split("/")[1], set()).add(key)
    for job, parts in found.items():
        sealed, ended = keys.manifest_sealed(job), keys.manifest_ended(job)
        for ledger in filter(None, map(_made_by, parts)):
            yield Listed(job, ledger, sealed in parts, ended in parts)


def _made_by(path: str) -> str:
    """Return the ledger's id in the path of how a job was made; empty if the path is another."""
    found = re.fullmatch(r".*/made-([0-9a-z]+)\.json", path, re.ASCII)
    return found[1] if found else ""


def _put(store: Store, key: str, part: Message) -> None:
    store.put(key, _to_bytes(part))


def _to_bytes(part: Message) -> bytes:
    data = part.model_dump_json().encode()
    return data + b"\n" + _checksum(data)


def _get(store: Store, key: str, kind: type[M]) -> M:
    data, _, checksum = store.get(key).rpartition(b"\n")
    if checksum != _checksum(data):
        raise DamagedObject(f"{key} in {store.url} is damaged: its checksum is not that of its content.", key=key)
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        raise DamagedObject(
            f"{key} in {store.url} is damaged, or of a newer release: {explain(exc)}.", key=key
        ) from exc


def _checksum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)
