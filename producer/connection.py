"""What a client is connected to: the broker and store of a cluster, or a private server with local workers."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from types import TracebackType
from typing import Any, Self

from producer import keeping
from producer.embedded import EmbeddedServer
from producer.embedded_workers import EmbeddedWorkers
from producer.runs import Run
from producer.submission import PATIENCE_S
from tasks import broker, delivery, weights
from tasks.blocks import BlockCache
from tasks.errors import JobRefused, UnreadableJob, UsageError
from tasks.ledger import Ledger
from tasks.messages import JobSpec, ModelSpec
from tasks.options import Operation
from tasks.reconciler import Reconciler
from tasks.recovery import Office
from tasks.redaction import redact
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.signing import Signer
from tasks.store import open_store, store_id
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)


class Connection:
    """Broker and store of a cluster, or a private server with local workers. The arguments are those of ``Client``."""

    def __init__(
        self, broker_url: str | None = None, store_url: str | None = None, *, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings.load(broker_url=broker_url, store_url=store_url)
        url = self.settings.broker_url
        if url is None:
            raise UsageError("No broker is configured: name one with --broker, PENSTOCK_BROKER_URL or penstock.yaml.")
        self.run: Run | None = None
        self._server: EmbeddedServer | None = None
        self._workers: EmbeddedWorkers | None = None
        self.ledger = Ledger(broker.connect(url), url, Signer.read(self.settings.signing_key_file))
        self.ledger.ping()
        self.store = open_store(self.settings.store_url or url, redis_limit_bytes=self.settings.redis_store_limit_bytes)
        self.store_id = store_id(self.store)
        self.app = delivery.make_app(url, self.ledger.signer)
        self.office = Office(self.ledger, self.store, self.app)
        self._reconciler = Reconciler(self.office, who="client", every_s=self.settings.reconcile_s)

    @classmethod
    def embedded(
        cls,
        model: str | None = None,
        workers: int | None = None,
        *,
        run: Run | None = None,
        settings: Settings | None = None,
        **changes: Any,
    ) -> Self:
        """Start a private server, and local workers if a model is named.

        Args:
            model: what the workers load.
            workers: slots; by default one a core, capped by memory, or one a GPU.
            run: the state folder; a fresh one by default, removed at the end if every job was collected. The store
                of jobs that are there already goes before the settings'.
            settings: used as they are, instead of reading them.
            changes: single settings, such as ``operation="score"``, ``state_dir`` or ``chunk_rows``.

        Raises:
            UsageError: there are settings and single ones; or as ``start_workers``.
            EmbeddedServerDown: the server does not start.
        """
        if settings is not None and changes:
            raise UsageError(
                f"Give settings, or single ones ({', '.join(changes)}), not both: Settings.load takes single ones."
            )
        chosen = settings or Settings.load(model=model, **changes)
        run = run or Run.at(chosen.state_dir, f"run-{secrets.token_hex(4)}")
        was_spent = run.is_spent
        server = EmbeddedServer(run)
        client: Self | None = None
        try:
            server.start()
            store_url = run.store_url() if run.jobs() else chosen.store_url or run.own_store_url
            client = cls(settings=chosen.model_copy(update={"broker_url": server.url, "store_url": store_url}))
            client.run, client._server = run, server
            if server.is_owner:
                keeping.restore(client.office, run, store_url)
            if model is not None:
                client.start_workers(model, workers)
        except BaseException:
            if client is not None:
                client.close()
            else:
                server.stop(removes=was_spent and not run.jobs())
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
        self._reconciler.stop()
        self.app.close()
        if self._workers is not None:
            self._workers.stop()
        removes = self.run is not None and self.is_owner and keeping.is_over(self.office, self.run)
        self.ledger.redis.close()
        if removes and self.run is not None and self.store.url == self.run.own_store_url:
            BlockCache(self.settings.blocks_folder, 0, self.store.get, self.store_id).clear()
        if self._server is not None:
            self._server.stop(removes=removes)

    def start_workers(self, model: str, workers: int | None = None, *, operation: Operation | None = None) -> None:
        """Start the local workers of an embedded client, unless another process runs them already.

        Args:
            model: what they load.
            workers: slots; the setting if None.
            operation: what they do with it; the setting if None.

        Raises:
            UsageError: the model is not there, or torch is missing.
        """
        if self.run is None or self._server is None or not self._server.is_owner or self._workers is not None:
            return
        operation = operation or self.settings.operation
        spec = ModelSpec.parse(model, operation)
        weights.locate(spec)
        if spec.engine != "fake" and importlib.util.find_spec("torch") is None:
            raise UsageError("This machine has no torch for local workers: pip install 'penstock[worker]'.")
        self._bury_slots()  # those of an earlier owner of this run
        changes = {"model": model, "workers": workers or self.settings.workers, "operation": operation}
        settings = self.settings.model_copy(update=changes)
        self._workers = EmbeddedWorkers(
            self.run, settings, bury=lambda: retry_transient(self._bury_slots, for_s=PATIENCE_S)
        )

    def _bury_slots(self) -> int:
        """Strike off local slots that ended together, and free what they held.

        That is no fault of the chunks, and nobody needs to wait for the leases to lapse. Returns the chunks done.
        """
        for slot in self.ledger.workforce.slots():
            self.ledger.workforce.forget(slot.slot)
        done = 0
        for job in self.ledger.active_jobs():
            try:
                status = self.ledger.status(job)
            except UnreadableJob:
                continue
            done += status.recorded
            for chunk, token in self.ledger.leases(status.spec):
                delivery.publish(self.app, status.spec, self.ledger.free(status.spec, chunk, token))
        return done

    @property
    def is_embedded(self) -> bool:
        """Whether server and workers are this process's own."""
        return self._server is not None

    @property
    def is_owner(self) -> bool:
        """Whether an embedded client runs its server itself, rather than attach to another process's."""
        return self._server is not None and self._server.is_owner

    def note_collected(self, job: str) -> None:
        """Note that a job's results were read, or never will be: its state folder may go."""
        if self.run is not None:
            self.run.forget(job)

    # -- workers ---------------------------------------------------------------------------------------------------

    def live_slots(self, queue: str = "") -> list[SlotStatus]:
        """Return the slots that reported within a lease's time, of one queue if named."""
        slots = self.ledger.workforce.slots(queue=queue)
        return [slot for slot in slots if slot.seen_s <= self.settings.lease_s and slot.state != "failed"]

    def reconcile(self) -> None:
        """Look after lost tickets, lapsed leases and lost jobs, as every node does."""
        self._reconciler.look()

    def check_server(self) -> None:
        """Raise EmbeddedServerDown if the private server ended for good."""
        if self._server is not None:
            self._server.check()

    def check_workers(self) -> None:
        """Start embedded workers again that died.

        Raises:
            WorkerStopped: they died too often, or cannot start.
        """
        if self._workers is not None:
            self._workers.check()

    def how_to_start(self, spec: JobSpec) -> str:
        """Return the command that starts a worker for a job."""
        url = redact(self.settings.broker_url or "")
        operation = f" --operation {spec.operation}" if spec.operation != "encode" else ""
        store = f" --store {self.store.url}" if self.settings.store_url else ""
        return f"Start one: penstock worker --model {spec.model}{operation} --broker {url}{store}"

    def check_service(self, spec: JobSpec) -> None:
        """Refuse a job that the embedded workers would never take.

        Raises:
            UsageError: they do something else, or with another model.
        """
        workers = self._workers
        if workers is None or workers.model.queue(workers.operation) == spec.queue:
            return
        raise UsageError(
            f"The workers of this client {workers.operation} with {workers.model}, job {spec.job} is to "
            f'{spec.operation} with {spec.model}: open another client with Client.embedded(model="{spec.model}", '
            f'operation="{spec.operation}").'
        )

    def _check_stores(self, spec: JobSpec) -> None:
        others = [slot for slot in self.live_slots(spec.queue) if slot.store_id not in {"", self.store_id}]
        if others and len(others) == len(self.live_slots(spec.queue)):
            raise JobRefused(
                f"The workers of {spec.model} ({', '.join(slot.slot for slot in others)}) use the store with id "
                f"{others[0].store_id}; this client uses {self.store.url}, id {self.store_id}. Start both with the "
                "same --store."
            )
