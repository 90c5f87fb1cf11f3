"""The client: submits corpora and finds jobs, on a cluster or embedded."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from producer.chunking import Chunk, KeptTypes, cut_chunks
from producer.corpus import Corpus, job_key, read_corpus
from producer.embedded import EmbeddedServer, EmbeddedWorkers
from producer.job import Job
from producer.rows import Row
from producer.runs import Run
from producer.submission import submit
from producer.writers import check_kept
from tasks import broker, delivery, weights
from tasks.errors import BadInput, JobRefused, StoreFull, Transient, UsageError
from tasks.ledger import Ledger
from tasks.messages import EncodeOptions, JobSpec, ModelSpec, OnError, explain, new_job_id
from tasks.reconciler import reconcile
from tasks.settings import Settings
from tasks.store import open_store, store_id
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)


class Client:
    """Submits jobs to a cluster.

    ``Client()`` uses the configured broker and store; ``Client.embedded(model=...)`` starts a private server and
    local workers that end with it.

    Args:
        broker_url: Redis or Valkey of the cluster; the setting if None.
        store_url: where chunk inputs and results live; the setting, else the broker, if None.
        settings: used as they are, instead of reading them.

    Raises:
        UsageError: no broker is configured.
        BrokerUnavailable, StoreUnavailable: one of them does not answer.
    """

    def __init__(
        self, broker_url: str | None = None, store_url: str | None = None, *, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings.load(broker_url=broker_url, store_url=store_url)
        url = self.settings.broker_url
        if url is None:
            raise UsageError(
                "No broker is configured: name one with --broker, PENSTOCK_BROKER_URL or penstock.yaml, or use "
                "Client.embedded(model=...)."
            )
        self.run: Run | None = None
        self._server: EmbeddedServer | None = None
        self._workers: EmbeddedWorkers | None = None
        self._uncollected: set[str] = set()
        self.ledger = Ledger(broker.connect(url), url)
        self.ledger.ping()
        self.store = open_store(self.settings.store_url or url, redis_limit_bytes=self.settings.redis_store_limit_bytes)
        self.store_id = store_id(self.store)
        self.app = delivery.make_app(url)

    @classmethod
    def embedded(
        cls,
        model: str | None = None,
        workers: int | None = None,
        *,
        run: Run | None = None,
        settings: Settings | None = None,
        **changes: Any,
    ) -> Client:
        """Start a private server, and local workers if a model is named.

        Args:
            model: what the workers load.
            workers: slots; by default one a core, capped by memory, or one a GPU.
            run: the state folder; a fresh one by default, removed at the end if every job was collected.
            settings: used as they are, instead of reading them.
            changes: single settings, such as ``state_dir`` or ``chunk_rows``.
        """
        chosen = settings or Settings.load(model=model, **changes)
        run = run or Run.at(chosen.state_dir, f"run-{secrets.token_hex(4)}")
        server = EmbeddedServer(run)
        client: Client | None = None
        try:
            server.start()
            urls = {"broker_url": server.url, "store_url": chosen.store_url or run.store_url()}
            client = cls(settings=chosen.model_copy(update=urls))
            client.run, client._server, client._uncollected = run, server, set(run.jobs())
            if model is not None:
                client.start_workers(model, workers)
        except BaseException:
            if client is not None:
                client.close()
            else:
                owned = server.is_owner
                server.stop()
                if owned and not run.jobs():
                    run.remove()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what this client started. A state folder whose jobs were all collected goes, others stay."""
        self.app.close()
        if self._workers is not None:
            self._workers.stop()
        self.ledger.redis.close()
        if self._server is not None:
            owned = self._server.is_owner
            self._server.stop()
            if self.run is not None and owned and not self._uncollected:
                self.run.remove()
            elif self.run is not None and owned:
                log.info("State kept, its jobs were not collected", extra={"folder": str(self.run.folder)})

    def start_workers(self, model: str, workers: int | None = None) -> None:
        """Start the local workers of an embedded client, unless another process runs them already.

        Raises:
            UsageError: the model is not there, or torch is missing.
        """
        if self.run is None or self._server is None or not self._server.is_owner or self._workers is not None:
            return
        spec = ModelSpec.parse(model)
        weights.locate(spec)
        if spec.engine != "fake" and importlib.util.find_spec("torch") is None:
            raise UsageError("This machine has no torch for local workers: pip install 'penstock[worker]'.")
        # Whatever is leased here was held by slots of an earlier owner of this run, which ended with it. That is no
        # fault of the chunks, and nobody needs to wait for the leases to lapse.
        for slot in self.ledger.workforce.slots():
            self.ledger.workforce.forget(slot.slot)
        for job in self.ledger.active_jobs():
            held = self.ledger.spec(job)
            for chunk, token in self.ledger.leases(held):
                delivery.publish(self.app, held, self.ledger.free(held, chunk, token))
        changes = {"model": model, "workers": workers or self.settings.workers}
        self._workers = EmbeddedWorkers(self.run, self.settings.model_copy(update=changes))

    @property
    def is_embedded(self) -> bool:
        """Whether server and workers are this process's own."""
        return self._server is not None

    @property
    def is_owner(self) -> bool:
        """Whether an embedded client runs its server itself, rather than attach to another process's."""
        return self._server is not None and self._server.is_owner

    # -- jobs ------------------------------------------------------------------------------------------------------

    def encode(  # noqa: PLR0913 - one keyword an option
        self,
        corpus: Corpus,
        *,
        model: str | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        keep_fields: Sequence[str] = (),
        on_error: OnError = "keep",
        name: str = "",
        **options: Any,
    ) -> Job:
        """Submit a corpus and return its job once all of it is in the store.

        Args:
            corpus: a path, glob or URL, several of them in a list, or any iterable of strings, mappings or
                (id, text) pairs. A list of strings is a list of texts, a single string a path.
            model: what encodes it; the setting if None.
            text_field: the field with the text.
            id_field: the field with the id; by default ``id``.
            keep_fields: fields that are carried to the results.
            on_error: ``keep`` error rows or ``fail`` the job.
            name: what the job is called.
            options: fields of ``EncodeOptions``: normalize, truncate_dim, prompt, prompt_name, max_tokens,
                vector_dtype.

        Raises:
            BadInput: a record cannot be read.
            UsageError: an option is wrong.
        """
        opened = read_corpus(corpus, text_field=text_field, id_field=id_field, keep_fields=tuple(keep_fields))
        spec = self.spec(
            model,
            EncodeOptions.of(**options),
            key=opened.key,
            on_error=on_error,
            name=name,
            keep_fields=tuple(keep_fields),
        )
        return self.submit(spec, opened.rows)

    def spec(self, model: str | None, options: EncodeOptions, **fields: Any) -> JobSpec:
        """Return the spec of a new job, or that of the unfinished one with the same key in an embedded run."""
        chosen = model or self.settings.model
        if chosen is None:
            raise UsageError("No model is named: give --model, PENSTOCK_MODEL or model= .")
        check_kept(fields.get("keep_fields", ()))
        parsed = ModelSpec.parse(chosen)
        fields["key"] = job_key(fields["key"], self.settings, parsed, options, fields.get("on_error", "keep"))
        found = self.ledger.find(fields["key"]) if self.is_embedded else None
        if found is not None:
            if self.ledger.status(found.job).state in {"submitting", "running", "done"}:
                return found
            self.note_collected(found.job)  # it ended without results, and this one takes its place
        try:
            return JobSpec(job=new_job_id(), model=parsed, options=options, store_id=self.store_id, **fields)
        except ValidationError as exc:
            raise UsageError(f"Job: {explain(exc)}.") from exc

    def submit(
        self,
        spec: JobSpec,
        rows: Iterable[Row],
        on_chunk: Callable[[Chunk], None] = lambda _: None,
    ) -> Job:
        """Send the rows of a job and seal it."""
        self._check_stores(spec)
        if self.run is not None:
            self.run.note(spec.job, self.settings.store_url)
            self._uncollected.add(spec.job)
        if self.ledger.is_sealed(spec.job):
            return Job(self, spec)
        kept = KeptTypes(spec.keep_fields)
        chunks = cut_chunks(
            kept.watch(rows),
            chunk_rows=self.settings.chunk_rows,
            chunk_bytes=self.settings.chunk_bytes,
            keeps=bool(spec.keep_fields),
        )
        try:
            submit(
                spec,
                chunks,
                kept.resolve,
                office=(self.ledger, self.store, self.app),
                settings=self.settings,
                on_chunk=on_chunk,
            )
        except (BadInput, StoreFull):
            self.note_collected(spec.job)  # there is nothing to come back to
            raise
        except BaseException as exc:
            if not self.is_embedded:  # an embedded run goes on with the same command
                with suppress(Transient):
                    self.ledger.end(spec, "cancelled", f"its submission ended early ({type(exc).__name__})")
            raise
        return Job(self, spec)

    def job(self, job: str) -> Job:
        """Return a job by its id.

        Raises:
            UnknownJob: there is none.
        """
        return Job(self, self.ledger.spec(job))

    def jobs(self) -> list[Job]:
        """Return all jobs, oldest first."""
        return [self.job(job) for job in self.ledger.jobs()]

    def note_collected(self, job: str) -> None:
        """Note that a job's results were read, or never will be: its state folder may go."""
        self._uncollected.discard(job)
        if self.run is not None:
            self.run.forget(job)

    # -- workers ---------------------------------------------------------------------------------------------------

    def live_slots(self, queue: str = "") -> list[SlotStatus]:
        """Return the slots that reported within a lease's time, of one queue if named."""
        slots = self.ledger.workforce.slots(queue=queue)
        return [slot for slot in slots if slot.seen_s <= self.settings.lease_s and slot.state != "failed"]

    def reconcile(self) -> None:
        """Look after lost tickets and lapsed leases, as every node does."""
        reconcile(self.ledger, self.app, who="client", every_s=self.settings.reconcile_s)

    def check_workers(self) -> None:
        """Raise WorkerStopped if the embedded workers ended."""
        if self._workers is not None:
            self._workers.check()

    def how_to_start(self, spec: JobSpec) -> str:
        """Return the command that starts a worker for a job."""
        url = broker.redact(self.settings.broker_url or "")
        store = f" --store {self.store.url}" if self.settings.store_url else ""
        return f"Start one: penstock worker --model {spec.model} --broker {url}{store}"

    def _check_stores(self, spec: JobSpec) -> None:
        others = [slot for slot in self.live_slots(spec.queue) if slot.store_id not in {"", self.store_id}]
        if others and len(others) == len(self.live_slots(spec.queue)):
            raise JobRefused(
                f"The workers of {spec.model} ({', '.join(slot.slot for slot in others)}) use the store with id "
                f"{others[0].store_id}; this client uses {self.store.url}, id {self.store_id}. Start both with the "
                "same --store."
            )
