"""penstock from scripts, with the fake engine and local workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from producer import Client
from producer.runs import Run
from tasks.errors import BadInput, JobFailed, UsageError
from tasks.records import Lease
from tasks.settings import Settings
from tasks.workforce import SlotStatus


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An embedded client with two slots."""
    state = tmp_path_factory.mktemp("state")
    with Client.embedded(model="fake:dim=8", workers=2, state_dir=state, chunk_rows=7) as opened:
        yield opened
    assert list((state / "runs").iterdir()) == []


def test_a_file_is_encoded_waited_for_and_collected(client: Client, tmp_path: Path) -> None:
    """Vectors, tables and files of one job agree."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"doc_id": f"d{i}", "body": f"text {i}"}) + "\n" for i in range(40)))
    job = client.encode(str(corpus), model="fake:dim=8", text_field="body", id_field="doc_id")
    status = job.wait(progress=True)
    assert (status.state, status.rows_done, status.chunks) == ("done", 40, 6)
    vectors = job.vectors()
    assert (vectors.shape, vectors.dtype) == ((40, 8), np.dtype("float32"))
    tables = list(job.results())
    assert [table.num_rows for table in tables] == [7, 7, 7, 7, 7, 5]
    assert [name for table in tables for name in table["id"].to_pylist()] == [f"d{i}" for i in range(40)]
    job.collect(str(tmp_path / "vectors.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), vectors)


def test_records_name_their_languages(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Rows keep their order; a field that none of them has is a warning."""
    records = [{"text": f"text {i}", "lang": ["eng_Latn", "fra_Latn", ""][i % 3]} for i in range(9)]
    plain = client.encode([record["text"] for record in records], model="fake:dim=8")
    whole = client.encode(records, model="fake:dim=8", language_field="lang", language="deu_Latn")
    for job in (plain, whole):
        job.wait()
    np.testing.assert_array_equal(whole.vectors(), plain.vectors())
    assert not caplog.records
    misspelled = client.encode(records, model="fake:dim=8", language_field="lnag", language="deu_Latn")
    misspelled.wait()
    np.testing.assert_array_equal(misspelled.vectors(), plain.vectors())
    (record,) = caplog.records
    assert record.message == (
        'No record has a language in field "lnag": correct --language-field (language_field), unless --language '
        "(language) is meant for all."
    )


def test_any_iterable_is_streamed(client: Client) -> None:
    """Strings, mappings and (id, text) pairs; the same text has the same vector."""
    forms = [
        (text for text in ("one", "two", "three")),
        [{"id": str(i), "text": text} for i, text in enumerate(("one", "two", "three"))],
        [("0", "one"), ("1", "two"), ("2", "three")],
    ]
    found = []
    for corpus in forms:
        job = client.encode(corpus, model="fake:dim=8")
        job.wait()
        found.append(job.vectors())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_options_reach_the_engine(client: Client) -> None:
    """Half precision, fewer dimensions, unit length."""
    job = client.encode(["a b c"], model="fake:dim=8", vector_dtype="float16", truncate_dim=4, normalize=True)
    job.wait()
    vectors = job.vectors()
    assert (vectors.shape, vectors.dtype) == ((1, 4), np.dtype("float16"))
    assert np.linalg.norm(vectors.astype(np.float32)) == pytest.approx(1.0, abs=1e-3)


def test_kept_fields_and_truncation_are_in_the_results(client: Client) -> None:
    """A row whose text was longer than the model takes says so."""
    corpus = [{"text": "word " * 300, "year": 1}, {"text": "", "year": 2}]
    job = client.encode(corpus, model="fake:dim=8", keep_fields=["year"])
    job.wait()
    (table,) = job.results()
    assert table["truncated"].to_pylist() == [True, False]
    assert table["n_tokens"].to_pylist() == [256, 0]
    assert job.status().kept_types == {"year": "int64"}


def test_a_corpus_without_records_is_refused(client: Client) -> None:
    """Before anything is submitted."""
    before = len(client.jobs())
    with pytest.raises(BadInput):
        client.encode([], model="fake:dim=8")
    assert len(client.jobs()) == before


def test_a_job_that_fails_raises_with_its_reason(client: Client) -> None:
    """What the engine refuses comes back by name, at the latest to who waits."""
    with pytest.raises(JobFailed, match="more than the model's 8 dimensions") as caught:
        client.encode(["a"], model="fake:dim=8", truncate_dim=9).wait()
    client.note_collected(caught.value.data["job"])


def test_waiting_stops_when_the_time_is_up(tmp_path: Path) -> None:
    """The job goes on; nobody serves it."""
    with Client.embedded(state_dir=tmp_path) as client:
        job = client.encode(["a"], model="fake")
        with pytest.raises(TimeoutError):
            job.wait(timeout_s=0.3)
        assert job.cancel() == "cancelled"
        client.note_collected(job.id)


def test_another_model_than_that_of_the_workers_is_refused(client: Client) -> None:
    """They would never take the job."""
    with pytest.raises(UsageError, match=r"this client encode with fake:dim=8, job .* encode with fake:dim=9: open"):
        client.encode(["a"], model="fake:dim=9")


def test_settings_and_single_ones_are_not_mixed() -> None:
    """One of both would count for nothing, in silence."""
    with pytest.raises(UsageError, match=r"single ones \(operation, chunk_rows\), not both"):
        Client.embedded(settings=Settings(), operation="score", chunk_rows=7)


def test_an_interruption_does_not_count_as_an_attempt(tmp_path: Path) -> None:
    """What slots held when their run was ended is done at once by the next one, and never given up for it."""
    run = Run.at(tmp_path, "one")
    with Client.embedded(run=run, max_attempts=1) as client:
        job = client.encode([("a", "one"), ("b", "two")], model="fake")
        lease = client.ledger.claim(job.id, 0, queue=job.spec.queue, slot="gone/0", lease_s=600)
        assert isinstance(lease, Lease)
        claim = f"{job.id} 0 {lease.token}"
        gone = SlotStatus("gone/0", "gone", "host", 1, "cpu", "fake", job.spec.queue, "", "ready", claim=claim)
        client.ledger.workforce.report(gone)
        client.start_workers("fake", 1)
        status = job.wait(timeout_s=30)
        assert (status.rows_done, status.failed_rows) == (2, 0)
        assert job.vectors().shape == (2, 32)


def test_a_run_with_results_survives_a_model_that_is_gone(tmp_path: Path) -> None:
    """Whatever fails at a later start, what was computed stays; a run without anything goes."""
    kept, fresh = Run.at(tmp_path, "kept"), Run.at(tmp_path, "fresh")
    with Client.embedded("fake", 1, run=kept) as client:
        client.encode(["one"]).wait()
    for run in (kept, fresh):
        with pytest.raises(UsageError, match="no such folder"):
            Client.embedded("/no/such/model", run=run)
    assert kept.folder.is_dir()
    assert not fresh.folder.exists()
    with Client.embedded(run=kept) as client:
        (job,) = client.jobs()
        assert job.vectors().shape == (1, 32)
    assert not kept.folder.exists()


def test_a_list_of_file_names_is_not_taken_for_texts(client: Client, tmp_path: Path) -> None:
    """It would be embedded as it stands."""
    file = tmp_path / "a.txt"
    file.write_text("one\n")
    with pytest.raises(UsageError, match="Path objects"):
        client.encode([str(file)])
    job = client.encode([file, file])
    assert job.wait().rows_done == 2
    job.vectors()


def test_a_wrong_option_is_a_usage_error(client: Client) -> None:
    """One line instead of a validation report."""
    with pytest.raises(UsageError, match="not both"):
        client.encode(["a"], prompt="a", prompt_name="b")


def test_without_a_broker_the_cluster_client_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the option and the setting."""
    monkeypatch.delenv("PENSTOCK_BROKER_URL", raising=False)
    with pytest.raises(UsageError, match="--broker"):
        Client()
