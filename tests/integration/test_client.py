"""A client of a cluster, with its workers played in this process."""

from __future__ import annotations

import logging
import os
import threading

import numpy as np
import pytest

from producer import Client, submission
from producer import job as job_module
from producer.commands.jobs import retry
from producer.job import Job
from producer.removal import remove
from tasks import broker, keys
from tasks.chunk import run_chunk
from tasks.errors import DamagedObject, StoreUnavailable, UnknownJob, UsageError
from tasks.limits import TimeLimits
from tasks.messages import Ticket
from tasks.pulse import Pulse
from tasks.settings import Settings
from tasks.slot import Slot
from tests.conftest import wait_until
from tests.contracts.ledger import slot_status
from workers.engines.fake import FakeEncoder

MODEL = "fake:faults=1"


@pytest.fixture
def client(valkey, tmp_path):
    """A client of an empty cluster, whose chunks are two rows."""
    with Client(valkey, (tmp_path / "store").as_uri()) as opened:
        opened.settings = opened.settings.model_copy(update={"chunk_rows": 2})
        yield opened


@pytest.fixture
def corpus(tmp_path):
    """A file of six records."""
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\nthree\nfour\nfive\nsix\n")
    return path


def work(client: Client, job: Job) -> None:
    """Do what is open of a job, as a slot does."""
    encoder = FakeEncoder(MODEL, Settings(max_batch_tokens=100))
    status = slot_status(queue=job.spec.queue, store_id=client.store_id, model=MODEL)
    pulse = Pulse(client.ledger, client.settings, status)
    limits = TimeLimits(client.settings.stall_s)
    slot = Slot(client.settings, client.ledger, client.store, client.app, encoder, pulse, limits)
    for chunk in range(client.ledger.announced(job.id)):
        run_chunk(slot, Ticket(version=1, job=job.id, chunk=chunk))


def break_store(client: Client, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the store take so many chunk inputs, and fail on the next one."""
    put, taken = client.store.put, []

    def fail_at_last(key: str, data: bytes) -> None:
        if "/input/" in key:
            taken.append(key)
            if len(taken) > after:
                raise StoreUnavailable("the store is away")
        put(key, data)

    monkeypatch.setattr(client.store, "put", fail_at_last)
    monkeypatch.setattr(submission, "PATIENCE_S", 0.0)


def test_a_submission_that_failed_on_the_way_is_continued(client, corpus, monkeypatch, caplog):
    """The job stays, a line says so, and the same call goes on; a new job is made only on demand."""
    with monkeypatch.context() as patched:
        break_store(client, patched, after=2)
        with pytest.raises(StoreUnavailable):
            client.encode(corpus, model=MODEL)
    (left,) = client.jobs()
    assert (left.status().state, client.ledger.announced(left.id)) == ("submitting", 2)
    assert f"Not all of job {left.id} is uploaded. The same command goes on" in caplog.text
    assert client.encode(corpus, model=MODEL).id == left.id
    assert left.status().chunks == 3
    assert client.encode(corpus, model=MODEL).id == left.id
    assert client.encode(corpus, model=MODEL, new=True).id != left.id


def test_what_cannot_be_read_again_is_cancelled(client, monkeypatch):
    """Nobody could continue it."""
    break_store(client, monkeypatch, after=1)
    with pytest.raises(StoreUnavailable):
        client.encode([f"text {i}" for i in range(6)], model=MODEL)
    (left,) = client.jobs()
    assert left.status().state == "cancelled"


def test_an_input_that_is_torn_in_the_store_is_sent_again(client, corpus, monkeypatch, caplog):
    """A later submission finds out before a slot does."""
    with monkeypatch.context() as patched:
        break_store(client, patched, after=2)
        with pytest.raises(StoreUnavailable):
            client.encode(corpus, model=MODEL)
    (left,) = client.jobs()
    path = keys.input_path(left.id, 1)
    content = client.store.get(path)
    client.store.put(path, content[:-20])
    client.encode(corpus, model=MODEL)
    assert client.store.get(path) == content
    assert f"Sent again: {path}" in caplog.text


def test_another_text_behind_the_same_size_and_time_is_refused(client, corpus, monkeypatch):
    """The line says what to do, from the command line and from a script."""
    with monkeypatch.context() as patched:
        break_store(client, patched, after=2)
        with pytest.raises(StoreUnavailable):
            client.encode(corpus, model=MODEL)
    times = corpus.stat().st_mtime_ns
    corpus.write_text(corpus.read_text().replace("two", "TWO"))
    os.utime(corpus, ns=(times, times))
    with pytest.raises(UsageError, match=r"--new \(new=True\)"):
        client.encode(corpus, model=MODEL)
    assert client.jobs()[0].status().state == "submitting"


@pytest.mark.parametrize(
    "other",
    [{"normalize": True}, {"on_error": "fail"}, {"keep_fields": ["text"]}, {"model": "fake"}],
    ids=lambda other: next(iter(other)),
)
def test_other_options_make_another_job(client, tmp_path, other):
    """As everything that the vectors or their rows depend on is a part of the key."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "one"}\n')
    first = client.encode(corpus, model=MODEL)
    assert client.encode(corpus, model=MODEL).id == first.id
    assert client.encode(corpus, **{"model": MODEL, **other}).id != first.id


def test_another_store_makes_another_job(client, corpus, valkey, tmp_path):
    """Its inputs are not there."""
    first = client.encode(corpus, model=MODEL)
    with Client(valkey, (tmp_path / "other").as_uri()) as other:
        other.settings = client.settings
        assert other.encode(corpus, model=MODEL).id != first.id


def test_a_submission_waits_for_room_on_a_full_broker(client, corpus, valkey, monkeypatch, caplog):
    """Without limit, which is said once; it goes on when there is room."""
    monkeypatch.setattr(submission, "PATIENCE_S", 0.0)
    jobs: list[Job] = []
    thread = threading.Thread(target=lambda: jobs.append(client.encode(corpus, model=MODEL)))
    with broker.connect(valkey) as operator:
        operator.config_set("maxmemory", 1)
        try:
            thread.start()
            wait_until(lambda: "Waiting for room" in caplog.text, "the client waits")
            assert thread.is_alive()
        finally:
            operator.config_set("maxmemory", 0)
    thread.join(20)
    assert jobs[0].status().state == "running"
    waits = [message for message in caplog.messages if message.startswith("Waiting for room")]
    assert len(waits) == 1
    assert "Raise its maxmemory" in waits[0]


def test_waiting_goes_on_while_the_broker_is_full(client, corpus, valkey, caplog):
    """It looks on, and says once what to do."""
    job = client.encode(corpus, model=MODEL)
    with broker.connect(valkey) as operator:
        operator.config_set("maxmemory", 1)
        try:
            with pytest.raises(TimeoutError):
                job.wait(timeout_s=1.2)
        finally:
            operator.config_set("maxmemory", 0)
    assert len([message for message in caplog.messages if "is full" in message]) == 1


def test_waiting_tells_what_slots_report(client, corpus, monkeypatch, caplog):
    """Once for each text, with those that say so; a slot that is drained does not count as one that serves."""
    monkeypatch.setattr(job_module, "LONELY_S", 0.0)
    job = client.encode(corpus, model=MODEL)
    for index in range(2):
        status = slot_status(
            slot=f"node/{index}",
            queue=job.spec.queue,
            store_id=client.store_id,
            state="drained",
            error="the store is away",
        )
        client.ledger.workforce.report(status)
    with pytest.raises(TimeoutError):
        job.wait(timeout_s=1.2)
    assert [message for message in caplog.messages if "report" in message] == [
        "Workers report: the store is away (node/0, node/1)"
    ]
    assert len([message for message in caplog.messages if "No live worker serves" in message]) == 1


def test_errors_are_shown_while_a_job_runs_and_after_it_failed(client, tmp_path):
    """Row, id and why, of the chunks that are done."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one\n!raise\nthree\nfour\n")
    job = client.encode(corpus, model=MODEL, on_error="fail")
    work(client, job)
    assert job.status().state == "failed"
    (error,) = job.errors(10)
    assert (error["row"], error["id"]) == (1, "1")
    assert "RuntimeError" in str(error["error"])
    job.retry()
    assert job.errors(10) == []


def test_errors_of_a_damaged_result_are_left_out(client, tmp_path, caplog):
    """The status is shown all the same."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("!raise\ntwo\nthree\n!raise\n")
    job = client.encode(corpus, model=MODEL)
    work(client, job)
    (record,) = client.ledger.recorded(job.id, 0, 1)
    client.store.delete(keys.result_path(job.id, 0, record.token))
    assert [error["row"] for error in job.errors(10)] == [3]
    assert "A result is damaged" in caplog.text


def test_two_that_collect_a_damaged_result_share_the_work(client, corpus, valkey, tmp_path, monkeypatch):
    """One reopens the chunk, both wait for it."""
    job = client.encode(corpus, model=MODEL)
    work(client, job)
    expected = job.vectors()
    (record,) = client.ledger.recorded(job.id, 1, 1)
    client.store.delete(keys.result_path(job.id, 1, record.token))
    have_seen_it, reopen = threading.Barrier(2, timeout=20), Job._reopen

    def reopen_together(job: Job, *damaged: int) -> tuple[str, int, list[int]]:
        have_seen_it.wait()
        return reopen(job, *damaged)

    monkeypatch.setattr(Job, "_reopen", reopen_together)
    found: list[np.ndarray] = []
    with Client(valkey, (tmp_path / "store").as_uri()) as other:
        both = [threading.Thread(target=lambda it=it: found.append(it.job(job.id).vectors())) for it in (client, other)]
        for thread in both:
            thread.start()
        while any(thread.is_alive() for thread in both):
            work(client, job)
    assert len(found) == 2
    for vectors in found:
        np.testing.assert_array_equal(vectors, expected)
    (again,) = client.ledger.recorded(job.id, 1, 1)
    assert again.token > record.token


def test_a_damaged_result_whose_input_is_damaged_too_leaves_the_job_as_it_is(client, corpus):
    """The other results stay readable, and the line says what to do."""
    job = client.encode(corpus, model=MODEL)
    work(client, job)
    (record,) = client.ledger.recorded(job.id, 1, 1)
    client.store.delete(keys.result_path(job.id, 1, record.token))
    client.store.put(keys.input_path(job.id, 1), b"torn")
    with pytest.raises(DamagedObject, match=r"chunk 1 of .* --new"):
        job.vectors()
    assert (job.status().state, job.status().recorded) == ("done", 3)


def test_a_job_without_failed_rows_is_not_opened_again(client, corpus):
    """There is nothing to run again, and nobody would end the job."""
    job = client.encode(corpus, model=MODEL)
    work(client, job)
    before = job.status()
    assert job.retry() == 0
    assert job.status() == before


def test_a_retry_of_a_job_that_runs_names_the_command_that_follows_it(client, corpus, valkey):
    """Nothing is to be run again yet."""
    job = client.encode(corpus, model=MODEL)
    with pytest.raises(UsageError, match=f"penstock wait {job.id}"):
        retry(job.id, valkey, client.store.url)


def test_a_job_that_the_store_could_rebuild_is_not_removed_as_a_rest(client, corpus, valkey):
    """It may be another broker's that uses the same store."""
    job = client.encode(corpus, model=MODEL)
    job.cancel()
    client.store.put(f"{keys.manifest(job.id)}made-0.json", b"{}")
    with broker.connect(valkey) as operator:
        operator.flushall()
    with pytest.raises(UsageError, match="penstock recover"):
        remove(client, job.id)
    assert list(client.store.list_keys(keys.job_folder(job.id)))


@pytest.mark.parametrize("job", ["encode-0000", "../../etc", "jobs/encode-0000", "*"])
def test_there_is_no_such_job_to_remove(client, job):
    """Nothing is touched, whatever the id might name."""
    with pytest.raises(UnknownJob):
        remove(client, job)


def test_the_log_of_a_client_is_quiet_without_troubles(client, corpus, caplog):
    """Nobody reads warnings that come every time."""
    caplog.set_level(logging.WARNING)
    job = client.encode(corpus, model=MODEL)
    work(client, job)
    job.wait()
    job.vectors()
    assert caplog.messages == []
