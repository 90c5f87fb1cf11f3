"""Scoring jobs from scripts: what is sent, interrupted, continued, scored and cleaned up."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer import Client, removal, text_blocks, verification
from producer.job import Job
from producer.pairs import read_pairs
from producer.runs import Run
from tasks import broker, keys, tables
from tasks.blocks import BlockCache
from tasks.chunk import run_chunk
from tasks.errors import BadInput, DamagedObject, JobFailed, StoreUnavailable, UsageError
from tasks.limits import TimeLimits
from tasks.messages import Ticket
from tasks.operations import OPERATIONS
from tasks.options import Template
from tasks.pulse import Pulse
from tasks.recovery import rebuild
from tasks.settings import Settings
from tasks.slot import Slot
from tests.contracts.ledger import slot_status
from workers.engines.fake import FakeScorer

WORDS = ["red", "blue", "fox", "sea", "runs", "sky", "old", "new"]
QUERIES = {f"q{i}": " ".join(pair) for i, pair in enumerate(itertools.combinations(WORDS[:5], 2))}
DOCS = {f"d{i}": " ".join(words) for i, words in enumerate(itertools.combinations(WORDS, 3))}
CANDIDATES = {query: [f"d{(7 * n + 5 * k) % len(DOCS)}" for k in range(4)] for n, query in enumerate(QUERIES)}
PAIRS = [(query, doc) for query, docs in CANDIDATES.items() for doc in dict.fromkeys(docs)]
ALL = [(query, doc) for query in QUERIES for doc in DOCS]


def score_of(query: str, document: str) -> float:
    """Return what the fake model gives a pair."""
    asked = query.split()
    return sum(word in document.split() for word in asked) / len(asked)


def results_of(job: Job) -> list[tuple[str, str, float]]:
    """Return a job's results, and check that the rows are numbered in order."""
    rows = [row for table in job.results() for row in table.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert [row["error"] for row in rows] == [None] * len(rows)
    return [(row["query_id"], row["doc_id"], row["score"]) for row in rows]


def scored(pairs: list[tuple[str, str]]) -> list[tuple[str, str, float]]:
    """Return what the results of these pairs must be."""
    return [(query, doc, score_of(QUERIES[query], DOCS[doc])) for query, doc in pairs]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let a few texts fill a block."""
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 150)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An embedded client with two slots that score."""
    state = tmp_path_factory.mktemp("state")
    options = {"workers": 2, "state_dir": state, "chunk_rows": 7}
    with Client.embedded(model="fake", operation="score", **options) as opened:
        yield opened
        for job in opened.jobs():
            opened.note_collected(job.id)
    assert list((state / "runs").iterdir()) == []
    assert list((state / "blocks").glob("*.arrow")) == []


@pytest.fixture
def client(valkey, tmp_path):
    """A client of an empty cluster, whose chunks are seven pairs."""
    settings = Settings(broker_url=valkey, store_url=(tmp_path / "store").as_uri(), chunk_rows=7, model="fake")
    with Client(settings=settings) as opened:
        yield opened


@pytest.fixture
def files(tmp_path):
    """The same as files, so that a submission can be continued."""
    for name, texts in (("Q.jsonl", QUERIES), ("D.jsonl", DOCS)):
        lines = [json.dumps({"id": id_, "text": text}) for id_, text in texts.items()]
        (tmp_path / name).write_text("\n".join(lines))
    run = [f"{query} Q0 {doc} 0 0 x\n" for query, doc in PAIRS]
    (tmp_path / "run.trec").write_text("".join(run))
    return {"queries": tmp_path / "Q.jsonl", "docs": tmp_path / "D.jsonl", "candidates": tmp_path / "run.trec"}


def work(client: Client, job: Job, folder: Path) -> None:
    """Do what is open of a job, as a slot does."""
    settings = Settings(state_dir=folder)
    status = slot_status(queue=job.spec.queue, store_id=client.store_id, model="fake")
    pulse, limits = Pulse(client.ledger, settings, status), TimeLimits(settings.stall_s)
    engine = FakeScorer("fake", Settings(max_batch_tokens=100))
    slot = Slot(settings, client.ledger, client.store, client.app, engine, pulse, limits)
    for chunk in range(client.ledger.announced(job.id)):
        run_chunk(slot, Ticket(version=1, job=job.id, chunk=chunk))


def stored(client: Client, job: Job, folder: Path) -> list[tuple[str, str]]:
    """Return the pairs of a job as they are in the store, with their texts checked."""
    cache = BlockCache(folder, 2**30, client.store.get)
    found: list[tuple[str, str]] = []
    for chunk in range(client.ledger.announced(job.id)):
        path = keys.input_path(job.id, chunk)
        inputs = tables.read_input(client.store.get(path), path, "score")
        rows = OPERATIONS["score"].read(job.id, inputs, cache)
        ids = list(zip(rows.heads["query_id"].to_pylist(), rows.heads["doc_id"].to_pylist(), strict=True))
        assert [(QUERIES[query], DOCS[doc]) for query, doc in ids] == [tuple(pair) for pair in rows.rows]
        found += ids
    return found


# -- with workers ------------------------------------------------------------------------------------------------------


def test_every_candidate_is_scored_once(local):
    """In the order of the queries and of their candidates."""
    job = local.score(QUERIES, DOCS, candidates=CANDIDATES)
    status = job.wait(timeout_s=60)
    assert (status.state, status.rows_done, status.failed_rows) == ("done", len(PAIRS), 0)
    assert results_of(job) == scored(PAIRS)


def test_without_candidates_all_pairs_are_scored(local):
    """Query by query."""
    job = local.score(QUERIES, DOCS)
    job.wait(timeout_s=60)
    assert results_of(job) == scored(ALL)
    texts = list(local.store.list_keys(f"{keys.job_folder(job.id)}texts/"))
    assert 3 < len(texts) < 10


def test_files_are_scored(local, files, caplog):
    """And what was left out is said."""
    with files["candidates"].open("a") as file:
        file.write("q99 Q0 d0 0 0 x\n")
    job = local.score(str(files["queries"]), str(files["docs"]), candidates=str(files["candidates"]))
    job.wait(timeout_s=60)
    assert results_of(job) == scored(PAIRS)
    assert "1 candidate of 1 query id that no query has: left out." in caplog.text


def test_pairs_are_scored_in_their_order(local):
    """With the ids that they have."""
    records = [
        {"query_id": query, "query": QUERIES[query], "doc_id": doc, "document": DOCS[doc]} for query, doc in PAIRS
    ]
    job = local.score(pairs=records)
    job.wait(timeout_s=60)
    assert results_of(job) == scored(PAIRS)


def test_rerank_returns_the_best_and_leaves_nothing(local):
    """Positions and scores, ties by position."""
    before = len(local.jobs())
    documents = ["sky", "a red fox", "red sky", "the fox is red", ""]
    assert local.rerank("red fox", documents) == [(1, 1.0), (3, 1.0), (2, 0.5), (0, 0.0), (4, 0.0)]
    assert local.rerank("red fox", documents, 2) == [(1, 1.0), (3, 1.0)]
    assert local.rerank("red fox", documents, top_k=2, max_tokens=4) == [(1, 0.5), (2, 0.5)]
    assert local.rerank("red fox", []) == []
    assert len(local.jobs()) == before


def test_rerank_starts_the_workers_of_a_client_without(tmp_path):
    """Nobody else would; a document that cannot be scored is named."""
    with Client.embedded(state_dir=tmp_path) as client:
        assert client.rerank("a", ["b", "a"], model="fake:faults=1") == [(1, 1.0), (0, 0.0)]
        with pytest.raises(JobFailed, match="Document 1 cannot be scored: the engine failed on this row"):
            client.rerank("a", ["b", "!raise"], model="fake:faults=1")
        assert client.jobs() == []
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("documents", "top_k", "line"),
    [("a text", None, "documents are a single string"), (["a"], 0, "--top-k 0"), ([], -1, "--top-k -1")],
)
def test_rerank_refuses_what_makes_no_sense(local, documents, top_k, line):
    """A text would be ranked letter by letter, and a negative cut would drop the last."""
    with pytest.raises(UsageError, match=line):
        local.rerank("a", documents, top_k)


def test_an_interrupted_rerank_leaves_nothing(local, monkeypatch):
    """Nobody knows its job."""
    before = len(local.jobs())

    def interrupt(_: Job) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        local.rerank("a", ["a b"] * 50)
    assert len(local.jobs()) == before
    assert local.live_slots()


def test_scores_are_not_lost_with_the_removal_of_their_job(local, monkeypatch, caplog):
    """What was asked is there."""

    def fail(*_: object) -> None:
        raise StoreUnavailable("The disk is away.")

    with monkeypatch.context() as patched:
        patched.setattr("producer.client.remove", fail)
        assert local.rerank("a", ["b", "a"]) == [(1, 1.0), (0, 0.0)]
    assert "Not removed: The disk is away." in caplog.text
    removal.remove(local, local.jobs()[-1].id)


def test_workers_of_another_operation_or_model_are_named(local, tmp_path):
    """They would never take the job, and nobody would know."""
    before = len(local.jobs())
    with pytest.raises(UsageError, match=r"workers of this client score with fake, job .* encode with fake: open"):
        local.encode(["a"])
    other = r"score with fake, job .* score with fake:dim=3: .*embedded\(model=\"fake:dim=3\", operation=\"score\"\)"
    with pytest.raises(UsageError, match=other):
        local.rerank("a", ["b"], model="fake:dim=3")
    with pytest.raises(UsageError, match=other):
        local.score(["a"], ["b"], model="fake:dim=3")
    assert len(local.jobs()) == before
    encoder = Client.embedded("fake", 1, state_dir=tmp_path)
    with encoder, pytest.raises(UsageError, match=r"Client.embedded\(model=\"fake\", operation=\"score\"\)"):
        encoder.rerank("a", ["b"])


def test_an_interrupted_embedded_job_is_finished_by_the_next_owner(tmp_path):
    """Which starts workers of the job's operation, whatever its settings say."""
    run = Run.at(tmp_path, "one")
    with Client.embedded(run=run) as client:
        job = client.score(QUERIES, DOCS, candidates=CANDIDATES, model="fake")
    with Client.embedded(run=run) as client:
        (job,) = client.jobs()
        client.start_workers(str(job.spec.model), 1, operation=job.spec.operation)
        job.wait(timeout_s=60)
        assert results_of(job) == scored(PAIRS)


# -- on a cluster ------------------------------------------------------------------------------------------------------


def test_a_job_says_all_that_it_asks_for(client, tmp_path):
    """Options, operation and queue; the start of a worker."""
    template = Template(
        name="mine",
        instruction="judge",
        parts=("{instruction} {query} {document}",),
        positive="yes",
        formula="logit",
    )
    job = client.score(["a"], ["b"], instruction="be kind", template=template, max_tokens=7, reproducible=True)
    assert (job.spec.operation, job.id[:6]) == ("score", "score-")
    assert job.spec.options.model_dump(exclude={"template"}) == {
        "operation": "score",
        "instruction": "be kind",
        "max_tokens": 7,
        "reproducible": True,
    }
    assert job.spec.options.template == template
    assert job.spec.queue.startswith("penstock.score.")
    assert "penstock worker --model fake --operation score --broker" in client.how_to_start(job.spec)


def test_a_template_may_be_a_name_a_file_or_a_setting(client, tmp_path, valkey):
    """What it says travels with the job, so the worker needs no file; another text makes another job."""
    assert client.score(["a"], ["b"], template="qwen3-reranker").spec.options.template.name == "qwen3-reranker"
    client.settings = client.settings.model_copy(update={"template": "lychee-rerank"})
    assert client.score(["a"], ["b"]).spec.options.template.name == "lychee-rerank"
    with pytest.raises(UsageError, match="no-such-template"):
        client.score(["a"], ["b"], template="no-such-template")


@pytest.mark.parametrize(
    "other",
    [
        {"instruction": "x"},
        {"max_tokens": 9},
        {"template": "lychee-rerank"},
        {"on_error": "fail"},
        {"candidates": None},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_options_make_another_job(client, files, other):
    """As everything that the scores or their order depend on is a part of the key."""
    first = client.score(**files)
    assert client.score(**files).id == first.id
    assert client.score(**{**files, **other}).id != first.id
    assert client.score(**files, new=True).id != first.id


def test_candidates_may_lie_in_a_bucket(client, files, make_bucket, tmp_path):
    """As queries and documents may, under any name."""
    bucket = make_bucket("runs")
    bucket.put_object(Key="first/bm25.v1", Body=files["candidates"].read_bytes())
    bucket.put_object(Key="D.jsonl", Body=files["docs"].read_bytes())
    inputs = {**files, "docs": "s3://runs/D.jsonl", "candidates": "s3://runs/first/bm25.v1"}
    job = client.score(**inputs)
    assert stored(client, job, tmp_path / "blocks") == PAIRS
    assert client.score(**inputs).id == job.id


def test_bad_input_sends_nothing(client, files):
    """All ids are checked before."""
    files["candidates"].write_text("q1 Q0 nothing 0 0 x\n")
    with pytest.raises(BadInput, match="no document has the id"):
        client.score(**files)
    assert client.jobs() == []
    assert list(client.store.list_keys("jobs/")) == []


class Stop(Exception):
    """The client ends here."""


def stop_at(client: Client, monkeypatch: pytest.MonkeyPatch, step: int, *, is_done: bool) -> list[str]:
    """End the client at a step that changes store or ledger, before or after it is done. Returns the steps so far."""
    steps: list[str] = []

    def watch(holder: object, name: str) -> None:
        real = getattr(holder, name)

        def call(*args, **options):
            steps.append(f"{name} {args[0] if isinstance(args[0], str) else ''}")
            is_last = len(steps) == step + 1
            if is_last and not is_done:
                raise Stop
            answer = real(*args, **options)
            if is_last:
                raise Stop
            return answer

        monkeypatch.setattr(holder, name, call)

    for name in ("put", "create"):
        watch(client.store, name)
    for name in ("create", "announce", "seal"):
        watch(client.ledger, name)
    return steps


@pytest.mark.parametrize("form", ["candidates", "pairs"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_submission_that_ends_at_any_step_is_continued(client, files, tmp_path, monkeypatch, form, is_done):
    """The same job is completed, and what was sent is not sent again."""
    if form == "pairs":
        lines = [
            {"query_id": query, "query": QUERIES[query], "doc_id": doc, "document": DOCS[doc]} for query, doc in PAIRS
        ]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        files = {"pairs": tmp_path / "pairs.jsonl"}
    with monkeypatch.context() as patched:
        everything = stop_at(client, patched, 10**6, is_done=False)
        client.score(**files)
    kinds = {step.split("/")[2] for step in everything if step.startswith("put jobs/")}
    assert kinds == {"texts", "input"}
    for step in range(len(everything)):
        client.ledger.redis.flushall()
        with monkeypatch.context() as patched:
            stop_at(client, patched, step, is_done=is_done)
            with pytest.raises(Stop):
                client.score(**files)
        left = [job.id for job in client.jobs()]
        texts = {key for key in client.store.list_keys("jobs/") if "/texts/" in key}
        with monkeypatch.context() as patched:
            again = stop_at(client, patched, 10**6, is_done=False)
            job = client.score(**files)
        name = f"stopped at step {step}"
        assert left in ([], [job.id]), name
        assert job.status().state == "running", name
        assert stored(client, job, tmp_path / f"blocks-{step}") == PAIRS, name
        assert not texts & {entry.partition(" ")[2] for entry in again}, name


def test_two_clients_at_once_make_one_job(client, valkey, files, tmp_path):
    """They send the same, whoever is ahead."""
    first = client.score(**files)  # what the others find in the ledger
    client.ledger.redis.flushall()
    spec = first.spec
    others = [Client(settings=client.settings) for _ in range(2)]
    failures: list[BaseException] = []

    def send(other: Client) -> None:
        try:
            other.submit(spec, read_pairs(files["queries"], files["docs"], files["candidates"], None))
        except BaseException as exc:  # noqa: BLE001 - shown below
            failures.append(exc)

    threads = [threading.Thread(target=send, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for other in others:
        other.close()
    assert failures == []
    (job,) = client.jobs()
    assert job.status().chunks == -(-len(PAIRS) // 7)
    assert stored(client, job, tmp_path / "blocks") == PAIRS
    work(client, job, tmp_path / "slot")
    assert results_of(job) == scored(PAIRS)


def interrupted(client: Client, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return a job of which all texts and two chunks were sent."""
    with monkeypatch.context() as patched:
        everything = stop_at(client, patched, 10**6, is_done=False)
        client.score(**files)
    client.ledger.redis.flushall()
    last = [n for n, step in enumerate(everything) if step.startswith("announce")][1]
    with monkeypatch.context() as patched:
        stop_at(client, patched, last, is_done=True)
        with pytest.raises(Stop):
            client.score(**files)
    (job,) = client.jobs()
    assert client.ledger.announced(job.id) == 2
    return job


def test_a_text_block_that_is_torn_is_sent_again(client, files, tmp_path, monkeypatch):
    """With all after it, which costs little."""
    job = interrupted(client, files, monkeypatch)
    path = keys.texts_path(job.id, 1)
    content = client.store.get(path)
    client.store.put(path, content[:-20])
    assert client.score(**files).id == job.id
    assert client.store.get(path) == content
    assert stored(client, job, tmp_path / "blocks") == PAIRS


def test_other_texts_behind_the_same_size_and_time_are_refused(client, files, monkeypatch):
    """Rather than scores of a mixture."""
    job = interrupted(client, files, monkeypatch)
    times = files["docs"].stat().st_mtime_ns
    files["docs"].write_text(files["docs"].read_text().replace("fox", "FOX"))
    os.utime(files["docs"], ns=(times, times))
    with pytest.raises(UsageError, match=r"--new \(new=True\)"):
        client.score(**files)
    assert job.status().state == "submitting"


def test_a_job_that_the_broker_lost_on_the_way_is_continued(client, files, tmp_path, monkeypatch):
    """Its chunks are announced again from the store, the rest is sent."""
    job = interrupted(client, files, monkeypatch)
    client.ledger.redis.flushall()
    rebuild(client.office, job.id)
    assert client.ledger.announced(job.id) == 2
    assert client.score(**files).id == job.id
    work(client, job, tmp_path)
    assert results_of(job) == scored(PAIRS)


def test_a_missing_text_block_fails_the_job_by_name(client, files, tmp_path, monkeypatch):
    """Only the corpus has these texts."""
    monkeypatch.setattr("tasks.chunk.AGAIN_S", 0.0)
    job = client.score(**files)
    client.store.delete(keys.texts_path(job.id, 0))
    work(client, job, tmp_path)
    status = job.status()
    assert status.state == "failed"
    assert "texts/00000000.arrow is missing" in status.reason


def test_text_blocks_go_with_their_job(client, files):
    """They are counted, and deleted, with its chunks."""
    job, other = client.score(**files), client.score(["a"], ["b"])
    objects = list(client.store.list_keys(f"jobs/{job.id}/"))
    assert any("/texts/" in key for key in objects)
    job.cancel()
    assert removal.remove(client, job.id, dry_run=True).objects == len(objects)
    removal.remove(client, job.id)
    assert list(client.store.list_keys(f"jobs/{job.id}/")) == []
    assert list(client.store.list_keys(f"jobs/{other.id}/texts/"))


def test_a_small_job_may_live_in_the_broker(valkey, tmp_path):
    """Texts have a limit of their own there, as inputs and results have."""
    settings = Settings(broker_url=valkey, store_url=valkey, model="fake", chunk_rows=7)
    with Client(settings=settings) as client:
        job = client.score(QUERIES, DOCS, candidates=CANDIDATES)
        work(client, job, tmp_path)
        assert results_of(job) == scored(PAIRS)
        removal.remove(client, job.id)
        with broker.connect(valkey) as connection:
            assert list(connection.scan_iter(f"*{job.id}*")) == []


# -- looking at a job that is done -------------------------------------------------------------------------------------


def test_a_result_whose_texts_are_gone_too_leaves_the_job_as_it_is(client, files, tmp_path):
    """It could not be computed again: all other results can still be collected."""
    job = client.score(**files)
    work(client, job, tmp_path)
    (record,) = client.ledger.recorded(job.id, 1, 1)
    client.store.delete(keys.result_path(job.id, 1, record.token))
    client.store.delete(keys.texts_path(job.id, 0))
    results = job.results()
    assert len(next(results)) == 7
    with pytest.raises(DamagedObject, match=r"result of chunk 1 .* its input .*/texts/00000000\.arrow is missing or"):
        next(results)
    assert job.status().state == "done"


def test_a_sample_is_read_without_the_texts_of_other_rows(client, files, tmp_path, monkeypatch):
    """A chunk may refer to hundreds of text blocks, of which a few rows need a few."""
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 1)
    job = client.score(**files)
    work(client, job, tmp_path)
    assert len(list(client.store.list_keys(f"jobs/{job.id}/texts/"))) > 20
    fetched: list[str] = []
    get = client.store.get
    monkeypatch.setattr(client.store, "get", lambda key: fetched.append(key) or get(key))
    sample = verification.draw(client.ledger, client.store, job.spec, size=3, seed=0)
    pairs = list(zip(sample.queries, sample.documents, strict=True))
    assert [tuple(row) for row in sample.rows] == [(QUERIES[query], DOCS[doc]) for query, doc in pairs]
    assert [score for query, doc, score in scored(pairs)] == pytest.approx(sample.values[:, 0].tolist())
    assert sum("/texts/" in key for key in fetched) <= 2 * len(pairs)
