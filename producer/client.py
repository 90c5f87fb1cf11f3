"""The client: submits corpora and finds jobs, on a cluster or embedded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from producer.candidates import CandidatesLike
from producer.chunking import Chunk, PairChunk
from producer.connection import Connection
from producer.corpus import Corpus, Opened, job_key, read_corpus
from producer.extensions import check_top_k
from producer.job import Job
from producer.pair_records import RecordsLike
from producer.pairs import read_pairs
from producer.removal import remove
from producer.submission import submit
from producer.texts import TextsLike
from producer.writers import check_kept
from tasks import manifest
from tasks.errors import (
    BadInput,
    JobFailed,
    PenstockError,
    Permanent,
    StoreFull,
    Transient,
    UnknownJob,
    UnreadableJob,
    UsageError,
)
from tasks.messages import JobSpec, ModelSpec, OnError, new_job_id
from tasks.options import EncodeOptions, ScoreOptions, Template, explain
from tasks.templates import read_template

log = logging.getLogger(__name__)


class Client(Connection):
    """Submits jobs to a cluster.

    ``Client()`` uses the configured broker and store; ``Client.embedded(model=...)`` starts a private server and
    local workers that end with it.

    Args:
        broker_url: Redis or Valkey of the cluster; the setting if None.
        store_url: where inputs and results live; the setting, else the broker, if None.
        settings: used as they are, instead of reading them.

    Raises:
        UsageError: no broker is configured.
        BrokerUnavailable, StoreUnavailable: one of them does not answer.
    """

    def encode(  # noqa: PLR0913 - one keyword an option
        self,
        corpus: Corpus,
        *,
        model: str | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        keep_fields: Sequence[str] = (),
        language_field: str | None = None,
        on_error: OnError = "keep",
        name: str = "",
        new: bool = False,
        **options: Any,
    ) -> Job:
        """Submit a corpus and return its job once all of it is in the store.

        A job that was made of the same files with the same options, and did not fail, is continued instead. It is
        known by their paths, sizes and times of change; an iterable is never continued.

        Args:
            corpus: a path, glob or URL, several of them in a list, or any iterable of strings, mappings or
                (id, text) pairs. A list of strings is a list of texts, a single string a path.
            model: what encodes it; the setting if None.
            text_field: the field with the text.
            id_field: the field with the id; by default ``id``.
            keep_fields: fields that are carried to the results.
            language_field: the field with the language of each text, for models that want it; ``language`` is for
                records that name none.
            on_error: ``keep`` error rows or ``fail`` the job.
            name: what the job is called.
            new: make a new job in any case.
            options: fields of ``EncodeOptions``: normalize, truncate_dim, prompt, prompt_name, language, max_tokens,
                vector_dtype, reproducible.

        Raises:
            BadInput: a record cannot be read.
            UsageError: an option is wrong, or the input is not what an unfinished submission began with.
        """
        opened = read_corpus(
            corpus,
            text_field=text_field,
            id_field=id_field,
            keep_fields=tuple(keep_fields),
            language_field=language_field,
        )
        spec = self.spec(
            model,
            EncodeOptions.of(**options, language_field=language_field),
            new=new,
            key=opened.key,
            on_error=on_error,
            name=name,
            keep_fields=tuple(keep_fields),
        )
        return self._warn(self.submit(spec, opened), opened)

    def score(  # noqa: PLR0913 - one keyword an option
        self,
        queries: TextsLike | None = None,
        docs: TextsLike | None = None,
        *,
        candidates: CandidatesLike | None = None,
        pairs: RecordsLike | None = None,
        model: str | None = None,
        query_field: str | None = None,
        doc_field: str | None = None,
        query_id_field: str | None = None,
        doc_id_field: str | None = None,
        instruction: str | None = None,
        template: str | Path | Template | None = None,
        max_tokens: int | None = None,
        reproducible: bool = False,
        on_error: OnError = "keep",
        name: str = "",
        new: bool = False,
    ) -> Job:
        """Submit pairs of query and document, and return their job once all of it is in the store.

        Either queries and documents, each of which is sent once, or pairs that are scored as they are. A job that was
        made of the same files with the same options is continued, as with ``encode``.

        Args:
            queries: a path, glob or URL, several of them as ``Path`` in a list; or any iterable of strings, mappings or
                (id, text) pairs; or a mapping of ids to texts. Ids must differ; a text without one has its number.
            docs: likewise.
            candidates: which documents each query meets, in this order: a TREC run or JSON lines (``query_id`` and
                ``doc_id`` or ``doc_ids``) by path or URL, a mapping of query ids to document ids, or (query id,
                document ids) pairs. Without it, every query meets every document.
            pairs: paths or URLs as above, or an iterable of mappings or (query, document) pairs. Documents without ids
                have the numbers of their pairs, queries without ids the number of queries before them; all have ids, or
                none.
            model: what scores them; the setting if None.
            query_field: the field with the query: ``text``, or ``query`` in pairs.
            doc_field: the field with the document: ``text``, or ``document`` in pairs.
            query_id_field: the field with the query's id: ``id``, or ``query_id`` in pairs.
            doc_id_field: the field with the document's id: ``id``, or ``doc_id`` in pairs.
            instruction: what a causal reranker is told to judge by; its template's own if None.
            template: how a causal reranker is asked: a name, a path, or the template; the setting if None.
            max_tokens: tokens of a prompt at most; the document loses its end.
            reproducible: the same pair gives the same bits in any chunk and batch; slower.
            on_error: ``keep`` error rows or ``fail`` the job.
            name: what the job is called.
            new: make a new job in any case.

        Raises:
            BadInput: a record cannot be read, ids are not unique, or a candidate is no document.
            UsageError: an option is wrong, or the input is not what an unfinished submission began with.
        """
        fields = {
            "query_field": query_field,
            "doc_field": doc_field,
            "query_id_field": query_id_field,
            "doc_id_field": doc_id_field,
        }
        named = {field: value for field, value in fields.items() if value is not None}
        opened = read_pairs(queries, docs, candidates, pairs, **named)
        how = ScoreOptions.of(
            instruction=instruction,
            template=self._template(template),
            max_tokens=max_tokens,
            reproducible=reproducible,
        )
        spec = self.spec(model, how, new=new, key=opened.key, on_error=on_error, name=name)
        return self._warn(self.submit(spec, opened), opened)

    def _warn(self, job: Job, opened: Opened) -> Job:
        """Log what people should know of an input that was sent."""
        for warning in opened.warnings:
            log.warning("%s", warning, extra={"action": job.spec.operation, "job": job.id})
        return job

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        model: str | None = None,
        **options: Any,
    ) -> list[tuple[int, float]]:
        """Score documents for one query, wait, and return the best.

        An embedded client without workers starts them. The job is removed at the end, whatever that is.

        Args:
            query: its text.
            documents: their texts.
            top_k: how many to return; all if None.
            model: what scores them; the setting if None.
            options: of ``score``: instruction, template, max_tokens, reproducible.

        Returns:
            Position in ``documents`` and score, the highest score first, ties by position.

        Raises:
            JobFailed: a document cannot be scored.
            UsageError: an option is wrong, documents are a single string, or the workers have another model.
        """
        check_top_k(top_k, "score")
        if isinstance(documents, str):
            raise UsageError("The documents are a single string, whose letters would be ranked: give a list of texts.")
        if not documents:
            return []
        if self.is_embedded:
            self.start_workers(self._model(model), operation="score")
        job = self.score([("0", query)], list(enumerate(documents)), model=model, **options)
        try:
            job.wait()
            scores: list[float] = []
            for table in job.results():
                for score, error in zip(table["score"].to_pylist(), table["error"].to_pylist(), strict=True):
                    if error is not None:
                        raise JobFailed(f"Document {len(scores)} cannot be scored: {error}", job=job.id)
                    scores.append(score)
        finally:
            self._drop(job)
        return sorted(enumerate(scores), key=lambda found: -found[1])[:top_k]

    def _drop(self, job: Job) -> None:
        """Remove a job that nobody will ask for, over or not. A fault of that is no fault of what was asked."""
        try:
            job.cancel()  # if it is not over
            remove(self, job.id)
        except (PenstockError, OSError) as exc:
            log.warning("Not removed: %s", exc, extra={"action": "remove", "job": job.id})

    def _model(self, given: str | None) -> str:
        chosen = given or self.settings.model
        if chosen is None:
            raise UsageError("No model is named: give --model, PENSTOCK_MODEL or model= .")
        return chosen

    def _template(self, given: str | Path | Template | None) -> Template | None:
        """Return the template that a caller or the settings name, if any."""
        chosen = given or self.settings.template
        if chosen is None or isinstance(chosen, Template):
            return chosen
        return read_template(str(chosen))

    def spec(
        self, model: str | None, options: EncodeOptions | ScoreOptions, *, new: bool = False, **fields: Any
    ) -> JobSpec:
        """Return the spec of the job that has the same key, unless it ended without results; else of a new one."""
        chosen = self._model(model)
        check_kept(fields.get("keep_fields", ()))
        parsed = ModelSpec.parse(chosen, options.operation)
        on_error = fields.get("on_error", "keep")
        fields["key"] = job_key(fields["key"], self.settings, parsed, options, on_error=on_error, store=self.store_id)
        found = self.ledger.find(fields["key"])
        if found is not None:
            state = self.ledger.status(found.job).state
            if state in {"submitting", "running", "done"} and not new:
                return found
            if self.is_embedded:
                self._replace(found, state)
        try:
            return JobSpec(
                job=new_job_id(options.operation), model=parsed, options=options, store_id=self.store_id, **fields
            )
        except ValidationError as exc:
            raise UsageError(f"Job: {explain(exc)}.") from exc

    def _replace(self, old: JobSpec, state: str) -> None:
        """Let a new job take the place of an old one in this run; one that is done or failed stays."""
        if state in {"submitting", "running"}:
            self.end(old, "cancelled", "another job took its place")

    def submit(
        self, spec: JobSpec, opened: Opened, on_chunk: Callable[[Chunk | PairChunk], None] = lambda _: None
    ) -> Job:
        """Send the input of a job and seal it, as far as that was not done before.

        Whatever ends this early leaves a job that the same call continues, if its input can be read again; else it
        is cancelled.
        """
        self.check_service(spec)
        self._check_stores(spec)
        if self.run is not None:
            self.run.note(spec.job, self.settings.store_url)
        if self.ledger.is_sealed(spec.job):
            return Job(self, spec)

        def look(chunk: Chunk | PairChunk) -> None:
            self.check_workers()
            on_chunk(chunk)

        try:
            submit(spec, opened, office=self.office, settings=self.settings, on_chunk=look)
        except (BadInput, StoreFull):
            self.note_collected(spec.job)  # there is nothing to come back to
            raise
        except BaseException as exc:
            self._leave(spec, exc, is_repeatable=opened.is_repeatable)
            raise
        return Job(self, spec)

    def _leave(self, spec: JobSpec, exc: BaseException, *, is_repeatable: bool) -> None:
        """Leave a job whose submission ended early."""
        if not is_repeatable and not self.is_embedded:
            with suppress(Transient):
                self.end(spec, "cancelled", f"its submission ended early ({type(exc).__name__})")
        elif is_repeatable and isinstance(exc, Exception) and not isinstance(exc, Permanent):
            log.warning(
                "Not all of job %s is uploaded. The same command goes on; `penstock cancel %s` drops it.",
                *(spec.job, spec.job),
                extra={"action": "leave", "job": spec.job},
            )

    def job(self, job: str) -> Job:
        """Return a job by its id.

        Raises:
            UnknownJob: there is none.
        """
        return Job(self, self.ledger.spec(job))

    def jobs(self) -> list[Job]:
        """Return all jobs that this release can read, oldest first."""
        found = []
        for job in self.ledger.jobs():
            try:
                found.append(self.job(job))
            except UnknownJob:  # removed meanwhile
                continue
            except UnreadableJob as exc:
                log.warning("Job not shown: %s", exc, extra={"action": "list", "job": job})
        return found

    def end(self, spec: JobSpec, state: Literal["cancelled", "failed"], reason: str = "") -> str:
        """End a job. Returns the state that it has now."""
        if spec.store_id != self.store_id:  # the end is noted in the job's own store, which this client cannot reach
            return self.ledger.end(spec, state, reason)
        return manifest.end_job(self.store, self.ledger, spec, state, reason)
