"""What travels between the sides: model and job specs, tickets, receipts.

All are frozen and validated, and refuse fields that they do not know. Nothing here holds a record's text.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from tasks.errors import UnreadableJob, UsageError
from tasks.options import LINE_PATTERN, EncodeOptions, Line, Message, Operation, ScoreOptions, explain

#: Version of the ticket and of the job spec. Nodes are upgraded before clients.
VERSION: Literal[1] = 1

#: Job ids become parts of Redis keys and store paths, so they hold nothing that could leave either.
JOB_ID_PATTERN = r"^[a-z][a-z0-9-]{3,63}$"

#: What names an object or a key of Redis: a submission key, a store.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
#: Numbers up to this are exact wherever they pass: in Lua, in JSON, in Arrow.
MOST = 2**53

JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OnError = Literal["keep", "fail"]
EngineName = Literal["sentence_transformer", "laser", "reranker", "fake"]


class ModelSpec(Message):
    """What a worker loads, and therefore which queue it consumes.

    Attributes:
        engine: the kind of engine that loads it.
        name: a Hugging Face id, an absolute path, ``pkg:MODULE/SUBPATH``, ``laser`` or ``laser:CHECKPOINT``, or the
            fake engine's options.
        revision: branch, tag or commit on the hub.
    """

    engine: EngineName
    name: Annotated[str, Field(min_length=1, max_length=1024, pattern=LINE_PATTERN)]
    revision: Line | None = None

    @classmethod
    def parse(cls, model: str, operation: Operation = "encode") -> ModelSpec:
        """Read what ``--model`` was given, to be used for an operation.

        Raises:
            UsageError: the text is none of the known forms.
        """
        try:
            return cls._parse(model, "reranker" if operation == "score" else "sentence_transformer")
        except (OSError, RuntimeError, ValueError) as exc:  # too long for a path, or no such user's home
            reason = explain(exc) if isinstance(exc, ValidationError) else "no usable path"
            raise UsageError(f"--model {model[:80]!r} names no model: {reason}.", model=model) from exc

    @classmethod
    def _parse(cls, model: str, engine: EngineName) -> ModelSpec:
        if model == "fake" or model.startswith("fake:"):
            return cls(engine="fake", name=model)
        if model == "laser" or model.startswith("laser:"):
            return cls._parse_laser(model, engine)
        if model.startswith("pkg:"):
            if not re.fullmatch(r"pkg:[A-Za-z_][\w.]*(/[\w-][\w.-]*)*", model):
                raise UsageError(f"--model {model[:80]}: not of the form pkg:MODULE/SUBPATH.", model=model)
            return cls(engine=engine, name=model)
        path = Path(model).expanduser()
        if model.startswith(("/", "./", "../", "~")) or (model and path.is_dir()):
            return cls(engine=engine, name=str(path.resolve()))
        match = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", model)
        if match is None:
            raise UsageError(
                f"--model {model[:80]!r} is no Hugging Face id (ORG/NAME[@REVISION]), no folder and no "
                "pkg:MODULE/SUBPATH.",
                model=model,
            )
        return cls(engine=engine, name=match[1], revision=match[2])

    @classmethod
    def _parse_laser(cls, model: str, engine: EngineName) -> ModelSpec:
        if engine == "reranker":
            raise UsageError(f"--model {model[:80]}: LASER makes vectors; it cannot score pairs.", model=model)
        checkpoint = model.removeprefix("laser").removeprefix(":")
        if checkpoint.startswith(("/", "./", "../", "~")):
            return cls(engine="laser", name=f"laser:{Path(checkpoint).expanduser().resolve()}")
        if model != "laser" and not re.fullmatch(r"laser2|laser3-[a-z]{3}(_[A-Z][a-z]{3})?", checkpoint):
            raise UsageError(
                f"--model {model[:80]!r} is none of laser, laser:laser2, laser:laser3-CODE_SCRIPT (laser3-wol_Latn) "
                "and laser:./FOLDER.",
                model=model,
            )
        return cls(engine="laser", name=model)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name this spec in queues: of its canonical JSON, SHA-256."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def queue(self, operation: Operation) -> str:
        """Return the name of the queue that serves this model."""
        return f"penstock.{operation}.{self.digest}"


class JobSpec(Message):
    """One submission, as the ledger keeps it.

    Attributes:
        job: its id.
        model: what encodes or scores it.
        options: how; they say which operation it is.
        store_id: the id object of the client's store; a worker with another store refuses the job by name.
        key: digest of inputs, options, model and store: the same command has the same key.
        name: what the user calls it.
        on_error: whether a row that cannot be processed stays as an error row or fails the job.
        keep_fields: fields carried from the records to the results.
    """

    version: Literal[1] = VERSION
    job: JobId
    model: ModelSpec
    options: Annotated[EncodeOptions | ScoreOptions, Field(discriminator="operation")]
    store_id: Name
    key: Name
    name: Line = ""
    on_error: OnError = "keep"
    keep_fields: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=256)] = ()

    @property
    def operation(self) -> Operation:
        """What it does with its rows."""
        return self.options.operation

    @property
    def queue(self) -> str:
        """The queue whose workers serve this job."""
        return self.model.queue(self.operation)


class Ticket(Message):
    """The Celery message for a chunk: a hint that it may be worked on, never the truth."""

    model_config = ConfigDict(strict=True)

    version: Literal[1]
    job: JobId
    chunk: Annotated[int, Field(ge=0, lt=2**31)]


class Receipt(Message):
    """What a finished chunk reports.

    Attributes:
        rows: rows of the chunk, those with an error included.
        failed_rows: rows with an error.
        truncated_rows: rows whose text was longer than the model takes.
        tokens: tokens of its rows, as far as the model takes them.
        padded_tokens: tokens that went through the model, padding included.
        duplicate_rows: rows that took the vector of an equal text in the chunk.
        cached_rows: rows whose vector came from the cache.
        memory_splits: batches that were halved because the device had no memory for them.
        batch_tokens: the token budget of a batch at the end.
        loads: times that the process has loaded the weights: 1.
        started_s: Unix time of the claim, by the slot's clock.
        wall_s: seconds from there until its vectors were ready.
        idle_s: seconds without model work since the slot's last chunk of the same job, or since the claim.
        read_s: seconds of reading the chunk input; tokenise_s, model_s, write_s likewise. They may overlap.
        slot: who did it.
        weights: content fingerprint of the slot's model.
        dim: length of a vector; 1 for a score.
        size_bytes: length of the result object; crc32: its checksum.
    """

    rows: Count
    failed_rows: Count = 0
    truncated_rows: Count = 0
    tokens: Count = 0
    padded_tokens: Count = 0
    duplicate_rows: Count = 0
    cached_rows: Count = 0
    memory_splits: Count = 0
    batch_tokens: Count = 0
    loads: Count = 0
    started_s: Seconds = 0.0
    wall_s: Seconds = 0.0
    idle_s: Seconds = 0.0
    read_s: Seconds = 0.0
    tokenise_s: Seconds = 0.0
    model_s: Seconds = 0.0
    write_s: Seconds = 0.0
    slot: Line = ""
    weights: Line = ""
    dim: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    size_bytes: Count = 0
    crc32: Annotated[int, Field(ge=0, lt=2**32)] = 0


def read_spec(job: str, text: str | bytes) -> JobSpec:
    """Read what the ledger has as the spec of a job.

    Raises:
        UnreadableJob: it is of another version, another job's, or nonsense.
    """
    try:
        spec = JobSpec.model_validate_json(text)
    except ValidationError as exc:
        version = _version(text)
        if version not in {None, VERSION}:
            raise UnreadableJob(
                f"Job {job} has a spec of version {version}; this release reads version {VERSION}. Upgrade it: nodes "
                "first, then clients.",
                job=job,
            ) from None
        raise UnreadableJob(f"Job {job} has a spec that cannot be read: {explain(exc)}.", job=job) from None
    if spec.job != job:
        raise UnreadableJob(f"Job {job} has the spec of another job.", job=job)
    return spec


def _version(text: str | bytes) -> int | None:
    """Return the version of a spec that this release cannot read, if it says one."""
    try:
        version = json.loads(text)["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def new_job_id(operation: Operation = "encode") -> str:
    """Return a fresh random job id, such as ``encode-3f9a1c02de``."""
    return f"{operation}-{secrets.token_hex(5)}"
