"""The task body: claim, read, run, write, record."""

from __future__ import annotations

import json
import logging
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from tasks import chunk, delivery, keys, slot, tables
from tasks.chunk import run_chunk
from tasks.endings import Ending
from tasks.errors import BrokerUnavailable, EngineBroken, Permanent, StoreUnavailable
from tasks.ledger import Ledger
from tasks.limits import TimeLimits
from tasks.messages import ModelSpec, Ticket
from tasks.options import EncodeOptions
from tasks.pulse import Pulse
from tasks.settings import Settings
from tasks.slot import Slot
from tasks.store import Store, checked, open_store, store_id
from tests.conftest import wait_until
from tests.contracts.desk import DIED, Desk, wait_ms
from tests.contracts.ledger import slot_status
from workers.engines.fake import FakeEncoder

TEXTS = ["one", "two words", "a text of five words"]


@dataclass
class Site:
    """A ledger, a store, and one job of chunks with three rows each; slots come as they are asked for."""

    ledger: Ledger
    store: Store
    desk: Desk
    published: list[int]
    pulses: list[Pulse] = field(default_factory=list)
    max_attempts: int = 2

    def slot(self, name="node/0", encoder=None, store=None, lease_s=20, **status) -> Slot:
        """Return a slot that is ready; keyword arguments replace fields of its status."""
        encoder = encoder or FakeEncoder("fake:dim=4,limit=4", Settings(max_batch_tokens=100))
        settings = Settings(heartbeat_s=0.005, max_attempts=self.max_attempts, lease_s=lease_s)
        ready = slot_status(
            slot=name,
            **{"queue": self.desk.spec.queue, "store_id": store_id(self.store), "model": "fake:dim=4", **status},
        )
        pulse = Pulse(self.ledger, settings, ready)
        pulse.start()
        self.pulses.append(pulse)
        limits = TimeLimits(settings.stall_s)
        return Slot(settings, self.ledger, store or self.store, None, encoder, pulse, limits)

    def send(self, *chunks: int) -> None:
        """Put chunk inputs into the store, announce them and seal the job."""
        job = self.desk.spec.job
        for number in chunks:
            first = 3 * number
            ids = [f"id-{first + i}" for i in range(3)]
            data = tables.input_bytes(tables.input_table(first, ids, TEXTS), keys.input_path(job, number))
            self.store.put(keys.input_path(job, number), data)
            self.desk.announce(number)
        self.desk.seal(len(chunks))

    def ticket(self, number=0) -> Ticket:
        """Return a ticket of the job."""
        return Ticket(version=1, job=self.desk.spec.job, chunk=number)

    def result(self, number=0):
        """Return the recorded result of a chunk, checked."""
        (note,) = self.ledger.recorded(self.desk.spec.job, number, 1)
        path = keys.result_path(self.desk.spec.job, number, note.token)
        return tables.from_bytes(checked(self.store, path, note.size_bytes, note.crc32), path)


@pytest.fixture
def make_site(fake_ledger, make_spec, tmp_path, monkeypatch):
    """Return a function that makes the site of a new job; keyword arguments replace fields of its spec."""
    published = []
    monkeypatch.setattr(slot, "PATIENCE_S", 0.0)
    monkeypatch.setattr(chunk, "AGAIN_S", 0.0)
    monkeypatch.setattr(delivery, "publish", lambda _app, _spec, chunks: published.extend(chunks))
    store = open_store(f"file://{tmp_path}/store")
    sites = []

    def make(**fields):
        model = ModelSpec.parse("fake:dim=4,limit=4")
        spec = make_spec(**{"model": model, "store_id": store_id(store), **fields})
        sites.append(Site(fake_ledger, store, Desk(fake_ledger, spec, gate=2).create(), published))
        return sites[-1]

    yield make
    for site in sites:
        for pulse in site.pulses:
            pulse.stop()


@pytest.fixture
def site(make_site):
    """Return a job with one chunk."""
    site = make_site()
    site.send(0)
    return site


class Faulty:
    """A store that fails now and then."""

    def __init__(self, store, **faults) -> None:
        self._store = store
        self._faults = faults
        self.url = store.url

    def __getattr__(self, name):
        """Fail, or do what the store does."""
        if name in self._faults:
            raise self._faults[name]
        return getattr(self._store, name)


class Doing(FakeEncoder):
    """An engine that does something else first."""

    def __init__(self, act) -> None:
        super().__init__("fake:dim=4,limit=4", Settings(max_batch_tokens=100))
        self._act = act

    def encode(self, texts, options, on_batch=lambda _: None):
        """Act, then encode."""
        self._act()
        return super().encode(texts, options, on_batch)


def failing(error):
    """Return an engine that raises."""

    def act():
        raise error

    return Doing(act)


# -- when all is well --------------------------------------------------------------------------------------------


def test_a_chunk_is_read_run_written_and_recorded(site):
    """The result is what the engine made of the texts, in their order, beside their rows and ids."""
    assert run_chunk(site.slot(), site.ticket()) == "recorded: 3 rows"
    table = site.result()
    expected = FakeEncoder("fake:dim=4,limit=4", Settings(max_batch_tokens=100)).encode(TEXTS, EncodeOptions())
    np.testing.assert_array_equal(tables.vectors_of(table), expected.values)
    assert table["row"].to_pylist() == [0, 1, 2]
    assert table["id"].to_pylist() == ["id-0", "id-1", "id-2"]
    assert table["n_tokens"].to_pylist() == [1, 2, 4]
    assert table["truncated"].to_pylist() == [False, False, True]
    assert table["error"].to_pylist() == [None] * 3
    assert site.desk.status.state == "done"


def test_options_of_the_job_reach_the_engine_and_the_table(make_site):
    """Normalised, cut and stored in half precision."""
    site = make_site(options=EncodeOptions(normalize=True, truncate_dim=2, vector_dtype="float16"))
    site.send(0)
    run_chunk(site.slot(), site.ticket())
    vectors = tables.vectors_of(site.result())
    assert (vectors.shape, vectors.dtype) == ((3, 2), np.float16)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)


def test_the_ledger_counts_what_the_receipt_says(site):
    """Rows, tokens, dimension, weights and seconds per stage."""
    run_chunk(site.slot(), site.ticket())
    status = site.desk.status
    assert (status.rows_done, status.failed_rows, status.truncated_rows, status.tokens) == (3, 0, 1, 7)
    assert (status.dim, status.weights) == (4, "fake-4-4")
    assert status.padded_tokens >= status.tokens
    assert status.seconds["read"] > 0
    assert status.seconds["write"] > 0


def test_a_result_says_where_it_came_from(site):
    """With the receipt in it, the ledger can be rebuilt from the store."""
    run_chunk(site.slot(), site.ticket())
    metadata = {name.decode(): value.decode() for name, value in site.result().schema.metadata.items()}
    spec = site.desk.spec
    assert metadata["penstock.job"] == spec.job
    assert metadata["penstock.chunk"] == "0"
    (note,) = site.ledger.recorded(spec.job, 0, 1)
    assert metadata["penstock.token"] == str(note.token)
    assert metadata["penstock.model"] == "fake:dim=4,limit=4"
    assert metadata["penstock.weights"] == "fake-4-4"
    assert EncodeOptions.model_validate_json(metadata["penstock.options"]) == spec.options
    assert metadata["penstock.version"]
    receipt = json.loads(metadata["penstock.receipt"])
    assert (receipt["rows"], receipt["tokens"], receipt["slot"], receipt["dim"]) == (3, 7, "node/0", 4)


def test_the_recorded_checksum_is_that_of_the_object(site):
    """Collecting compares both."""
    run_chunk(site.slot(), site.ticket())
    (note,) = site.ledger.recorded(site.desk.spec.job, 0, 1)
    data = site.store.get(keys.result_path(site.desk.spec.job, 0, note.token))
    assert (note.size_bytes, note.crc32) == (len(data), zlib.crc32(data))


def test_whoever_finishes_publishes_the_next_ticket(make_site):
    """A sealed job needs no living client."""
    site = make_site()
    site.send(0, 1, 2, 3)
    assert [run_chunk(site.slot(), site.ticket(number)) for number in (0, 1)] == ["recorded: 3 rows"] * 2
    assert site.published == [2, 3]


def test_tickets_that_cannot_be_published_do_not_undo_the_work(site, monkeypatch):
    """The reconciler issues them again."""

    def fail(*_):
        raise BrokerUnavailable

    monkeypatch.setattr(delivery, "publish", fail)
    assert run_chunk(site.slot(), site.ticket()) == "recorded: 3 rows"


def test_a_slot_counts_what_it_did(site):
    """Its report shows chunks, tokens and its rate, and no claim that is over."""
    slot = site.slot()
    run_chunk(slot, site.ticket())
    assert (slot.status.chunks, slot.status.tokens, slot.status.claim) == (1, 7, "")
    assert slot.status.tokens_per_s > 0


def test_a_slot_reports_its_claim_while_it_works(site):
    """If it dies, its node knows which lease to free."""
    seen = []
    slot = site.slot(encoder=Doing(lambda: seen.extend(site.ledger.workforce.slots())))
    run_chunk(slot, site.ticket())
    (note,) = site.ledger.recorded(site.desk.spec.job, 0, 1)
    assert [status.claim for status in seen] == [f"{site.desk.spec.job} 0 {note.token}"]


def test_no_text_of_a_record_is_logged(site, caplog):
    """Not even at the level of single steps."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EngineBroken) as raised:
        run_chunk(site.slot(encoder=failing(RuntimeError(TEXTS[2]))), site.ticket())
    assert TEXTS[2] not in str(raised.value)
    run_chunk(site.slot(), site.ticket())
    assert caplog.records
    assert not any(text in caplog.text for text in TEXTS[1:])


# -- void tickets ------------------------------------------------------------------------------------------------


def test_a_receipt_tells_when_the_model_was_idle(make_site):
    """Between two chunks of a job the idle seconds go on; model and idle seconds are the slot's whole time."""
    site = make_site()
    site.send(0, 1)
    slot = site.slot()
    before = time.time()
    run_chunk(slot, site.ticket(0))
    time.sleep(0.05)
    run_chunk(slot, site.ticket(1))
    first, second = (json.loads(tables.metadata_of(site.result(i))["penstock.receipt"]) for i in range(2))
    assert before <= first["started_s"] < second["started_s"] <= time.time()
    assert second["idle_s"] >= 0.05 > first["idle_s"]
    assert first["wall_s"] == pytest.approx(first["model_s"] + first["idle_s"], abs=1e-3)
    assert (first["batch_tokens"], first["loads"]) == (100, 0)
    assert slot.status.idle_s == pytest.approx(first["idle_s"] + second["idle_s"])
    assert site.ledger.status(site.desk.spec.job).seconds["idle"] == pytest.approx(slot.status.idle_s, abs=1e-5)


def test_a_double_ticket_is_void(site):
    """The second slot does nothing."""
    run_chunk(site.slot(), site.ticket())
    encoder = failing(AssertionError("worked on it again"))
    assert run_chunk(site.slot("node/1", encoder), site.ticket()) == "void: done"


def test_a_ticket_for_a_leased_chunk_is_void(site):
    """Somebody is at it."""
    site.desk.take(0, slot="node/1")
    assert run_chunk(site.slot(), site.ticket()) == "void: leased"


@pytest.mark.parametrize("state", ["cancelled", "failed"])
def test_a_ticket_of_a_job_that_ended_is_void(site, state):
    """Cancelling reaches the slots in this way."""
    site.desk.end(state)
    assert run_chunk(site.slot(), site.ticket()) == f"void: {state}"


def test_a_ticket_of_an_unknown_job_is_void(site):
    """The broker outlived the ledger."""
    ticket = Ticket(version=1, job="encode-gone", chunk=0)
    assert run_chunk(site.slot(), ticket) == "void: unknown job"


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_slot_with_another_store_refuses_by_name(site):
    """The chunk is offered again, the attempt does not count, and people read why."""
    slot = site.slot("node/1", store_id="another-store")
    assert run_chunk(slot, site.ticket()) == "refused"
    (why,) = site.ledger.refusals(site.desk.spec.job).values()
    assert "another-store" in why
    assert site.desk.spec.store_id in why
    assert "--store" in why
    assert site.desk.attempts == {"0": "0"}
    assert site.published == [0]
    assert run_chunk(site.slot("node/2"), site.ticket()) == "recorded: 3 rows"


def test_a_slot_that_refuses_rests_while_others_take_the_chunk(site, monkeypatch):
    """Otherwise it would take nearly every ticket from the slots that can do the job."""
    monkeypatch.setattr(chunk, "AGAIN_S", 60)
    done = []
    sleep = time.sleep

    def rest(seconds):
        if seconds != 60:
            sleep(seconds)  # of something else in this process
        elif not done:
            done.append(run_chunk(site.slot("node/2"), site.ticket()))

    monkeypatch.setattr(chunk.time, "sleep", rest)
    assert run_chunk(site.slot("node/1", store_id="another-store"), site.ticket()) == "refused"
    assert site.published == [0]
    assert done == ["recorded: 3 rows"]


def test_a_slot_with_other_weights_refuses_by_name(make_site):
    """Vectors of two models do not mix in one job."""
    site = make_site()
    site.send(0, 1)
    run_chunk(site.slot(), site.ticket(0))
    other = site.slot("node/1", FakeEncoder("fake:dim=8", Settings(max_batch_tokens=100)))
    assert run_chunk(other, site.ticket(1)) == "refused"
    why = site.ledger.refusals(site.desk.spec.job)["node/1"]
    assert "fake-8-256" in why
    assert "--template" in why  # a causal reranker's fingerprint holds its own template
    assert "fake-4-4" in why
    assert run_chunk(site.slot("node/2"), site.ticket(1)) == "recorded: 3 rows"


def test_weights_that_another_slot_pinned_meanwhile_are_refused_at_the_record(make_site):
    """Both began before anything was recorded; the first one to record decides."""
    site = make_site()
    site.send(0, 1)

    def overtake():
        assert run_chunk(site.slot("node/0"), site.ticket(0)) == "recorded: 3 rows"

    other = Doing(overtake)
    other.weights = "other"
    assert run_chunk(site.slot("node/1", other), site.ticket(1)) == "refused"
    assert "(other)" in site.ledger.refusals(site.desk.spec.job)["node/1"]
    assert site.desk.status.recorded == 1
    # What the other one computed is gone: a recovery could take it for the result that began the job.
    assert len(list(site.store.list_keys(keys.results(site.desk.spec.job)))) == 1


def test_a_vector_that_overflows_the_stored_type_is_an_error_row(make_site):
    """Half precision ends at 65504; infinity never passes for a number."""
    site = make_site(options=EncodeOptions(vector_dtype="float16"))
    site.send(0)
    engine = FakeEncoder("fake:dim=4", Settings(max_batch_tokens=100))
    encode = engine.encode

    def large(texts, options, on_batch):
        encoded = encode(texts, options)
        encoded.values[1, 2] = 1e6
        return encoded

    engine.encode = large
    assert run_chunk(site.slot("node/0", engine), site.ticket()) == "recorded: 3 rows"
    assert site.desk.status.failed_rows == 1
    errors = site.result()["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, True]
    assert "does not fit into float16" in errors[1]


def test_a_ticket_in_the_queue_of_another_model_is_refused(site):
    """Whoever put it there, this model does not answer for the other."""
    slot = site.slot("node/1", queue="penstock.encode.0123456789abcdef", model="org/other")
    assert run_chunk(slot, site.ticket()) == "refused"
    assert site.ledger.refusals(site.desk.spec.job) == {
        "node/1": "it serves org/other, the job wants fake:dim=4,limit=4"
    }
    assert site.desk.attempts == {"0": "0"}


# -- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["get", "put"])
def test_a_chunk_is_handed_back_when_the_store_stays_away(site, step):
    """It is no fault of the chunk, so the attempt does not count."""
    store = Faulty(site.store, **{step: StoreUnavailable("down")})
    assert run_chunk(site.slot(store=store), site.ticket()) == "handed back"
    assert site.desk.attempts == {"0": "0"}
    assert site.desk.status.state == "running"
    assert run_chunk(site.slot("node/1"), site.ticket()) == "recorded: 3 rows"


def test_a_chunk_that_cannot_be_handed_back_lapses(site, monkeypatch):
    """Store and broker may be gone together; the lease is the last resort."""

    def fail(*_args, **_options):
        raise BrokerUnavailable

    monkeypatch.setattr(site.ledger, "free", fail)
    store = Faulty(site.store, get=StoreUnavailable("down"))
    assert run_chunk(site.slot(store=store), site.ticket()) == "handed back"


def test_a_broker_that_stays_away_ends_the_task(site, monkeypatch):
    """Nothing was claimed, so nothing is lost."""

    def fail(*_args, **_options):
        raise BrokerUnavailable("down")

    monkeypatch.setattr(site.ledger, "claim", fail)
    with pytest.raises(BrokerUnavailable):
        run_chunk(site.slot(), site.ticket())


def test_an_engine_that_fails_on_everything_counts_an_attempt_and_ends_its_process(site):
    """The chunk goes out again, to whichever slot comes first; EngineBroken makes the task end the process."""
    with pytest.raises(EngineBroken, match="fails on everything, first with RuntimeError in act"):
        run_chunk(site.slot(encoder=failing(RuntimeError("oops"))), site.ticket())
    assert site.desk.attempts == {"0": "1"}
    assert site.desk.status.state == "running"
    assert run_chunk(site.slot("node/1"), site.ticket()) == "recorded: 3 rows"
    assert site.desk.status.failed_rows == 0


def test_a_row_that_raises_is_an_error_row_and_the_others_have_vectors(site):
    """It is found within the process, in one attempt."""

    class Picky(FakeEncoder):
        def encode(self, texts, options, on_batch=lambda _: None):
            if TEXTS[1] in texts:
                raise ValueError(TEXTS[1])
            return super().encode(texts, options, on_batch)

    assert (
        run_chunk(site.slot(encoder=Picky("fake:dim=4,limit=4", Settings(max_batch_tokens=100))), site.ticket())
        == "recorded: 3 rows"
    )
    table = site.result()
    first, error, last = table["error"].to_pylist()
    assert (first, last) == (None, None)
    assert error.startswith("the engine failed on this row: ValueError in encode, test_chunk.py:")
    assert TEXTS[1] not in error
    assert table["vector"].null_count == 1
    assert site.desk.status.failed_rows == 1


class ProcessEndedError(BaseException):
    """Stands in for the end of a process, which nothing in it survives."""


def end_processes(site, encoder, until="recorded: 3 rows"):
    """Run a chunk whose process ends, again and again as nodes would, and return how many processes it took."""
    for ended in range(20):
        slot = site.slot(encoder=encoder)
        try:
            assert run_chunk(slot, site.ticket()) == until
        except ProcessEndedError:
            (lease,) = site.ledger.leases(site.desk.spec)
            site.ledger.free(site.desk.spec, *lease, Ending("died", "its process was killed by SIGSEGV"))
        else:
            return ended
    pytest.fail("the chunk ends processes for ever")


class Deadly(FakeEncoder):
    """An engine whose process some texts end."""

    def __init__(self, *texts) -> None:
        super().__init__("fake:dim=4,limit=4", Settings(max_batch_tokens=100))
        self._texts = texts

    def encode(self, texts, options, on_batch=lambda _: None):
        """End, or encode."""
        if set(self._texts) & set(texts):
            raise ProcessEndedError
        return super().encode(texts, options, on_batch)


def test_a_row_that_ends_its_process_is_found_and_the_others_have_vectors(make_site):
    """The chunk is taken apart over a few attempts; the error says how the processes ended."""
    site = make_site()
    site.send(0)
    site.max_attempts = 10
    ended = end_processes(site, Deadly(TEXTS[1]))
    assert ended == 3  # the whole chunk, and the row alone, twice
    assert site.result()["error"].to_pylist() == [
        None,
        "this row alone ended 2 processes, the last so: its process was killed by SIGSEGV",
        None,
    ]
    assert site.desk.snapshot()["journal"] == {}


def test_several_rows_that_end_their_process_are_all_found(make_site):
    """One after the other."""
    site = make_site()
    site.send(0)
    site.max_attempts = 10
    assert end_processes(site, Deadly(TEXTS[0], TEXTS[2])) == 5
    errors = site.result()["error"].to_pylist()
    assert [error is None for error in errors] == [False, True, False]


def test_a_process_that_is_ended_on_purpose_is_no_evidence(site):
    """The rows that were at work are not suspected, and the attempt does not count."""
    lease = site.desk.take(0)
    site.ledger.journal(lease, lease.journal, (1, 2))
    site.desk.free(lease)
    again = site.desk.take(0)
    assert (again.attempts, again.journal.suspects) == (1, None)


def test_a_slot_that_is_told_to_end_hands_its_chunk_back(site):
    """SIGTERM arrives in the middle of a batch as SystemExit."""
    with pytest.raises(SystemExit):
        run_chunk(site.slot(encoder=failing(SystemExit(0))), site.ticket())
    assert site.ledger.leases(site.desk.spec) == []
    assert site.desk.take(0).attempts == 1


def test_a_slot_that_fell_silent_is_evidence(site):
    """A host may die of a row, with nobody left to say so."""
    lease = site.desk.take(0, lease_s=0.001)
    site.ledger.journal(lease, lease.journal, (1, 2))
    wait_ms(site.ledger, 2)
    site.desk.reconcile()
    again = site.desk.take(0)
    assert (again.attempts, again.journal.suspects, again.journal.strikes) == (2, (1, 2), 1)
    assert again.journal.why == "its slot fell silent"


def test_a_chunk_that_ends_too_many_processes_is_finished_with_error_rows(site):
    """After two attempts of two it is given up: every row is there, none has a vector."""
    assert end_processes(site, Deadly(*TEXTS)) == 2
    table = site.result()
    assert table["vector"].null_count == 3
    assert table["id"].to_pylist() == ["id-0", "id-1", "id-2"]
    assert set(table["error"].to_pylist()) == {
        "given up: 2 attempts at its chunk ended without a result, the last so: its process was killed by SIGSEGV"
    }
    status = site.desk.status
    assert (status.state, status.rows_done, status.failed_rows, status.dim) == ("done", 3, 3, 4)


def test_a_job_that_shall_fail_fails_with_the_chunk_that_is_given_up(make_site):
    """With ``--on-error fail``."""
    site = make_site(on_error="fail")
    site.send(0)
    end_processes(site, Deadly(*TEXTS))
    assert (site.desk.status.state, site.desk.status.reason) == ("failed", "3 rows of chunk 0 failed")


def test_a_permanent_fault_fails_the_job(site):
    """It would be the same on every slot; the reason is the error's own line."""
    slot = site.slot(encoder=failing(Permanent("the model has no such layer")))
    assert run_chunk(slot, site.ticket()) == "failed"
    assert (site.desk.status.state, site.desk.status.reason) == ("failed", "the model has no such layer")
    # A ledger that loses its data learns of it from the store.
    assert list(site.store.list_keys(keys.manifest(site.desk.spec.job))) == [keys.manifest_ended(site.desk.spec.job)]


def test_options_that_the_model_cannot_serve_fail_the_job(make_site):
    """Before anything is read."""
    site = make_site(options=EncodeOptions(prompt_name="query"))
    site.send(0)
    store = Faulty(site.store, get=AssertionError("read"))
    assert run_chunk(site.slot(store=store), site.ticket()) == "failed"
    assert "'query'" in site.desk.status.reason


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_input_fails_the_job(site, damage):
    """It does not heal; the reason names the object."""
    path = keys.input_path(site.desk.spec.job, 0)
    if damage == "missing":
        site.store.delete(path)
    else:
        site.store.put(path, site.store.get(path)[:-7])
    assert run_chunk(site.slot(), site.ticket()) == "failed"
    assert path in site.desk.status.reason
    assert damage == "torn" or "is missing" in site.desk.status.reason


# -- lost leases -------------------------------------------------------------------------------------------------


def test_a_slot_that_lost_its_lease_records_nothing(site):
    """The pulse tells it while it works, and it leaves the chunk to the new holder."""
    slot = site.slot()

    def lose():
        ((number, token),) = site.ledger.leases(site.desk.spec)
        site.ledger.free(site.desk.spec, number, token, DIED)
        site.desk.take(0, slot="node/1")
        wait_until(lambda: slot.pulse.has_lost_lease, "the pulse notices")

    slot.engine = Doing(lose)
    assert run_chunk(slot, site.ticket()) == "lease lost"
    assert site.desk.status.recorded == 0
    assert list(site.desk.ledger.redis.hgetall(f"{keys.job(site.desk.spec.job)}:leases")) == ["0"]


def test_a_slot_whose_job_was_cancelled_stops(site, make_site):
    """Its work would be for nothing; with the next job it begins anew."""
    slot = site.slot()

    def cancel():
        site.desk.end("cancelled")
        wait_until(lambda: slot.pulse.has_lost_lease, "the pulse notices")

    slot.engine = Doing(cancel)
    assert run_chunk(slot, site.ticket()) == "lease lost"
    other = make_site()
    other.send(0)
    slot.engine = other.slot("node/1").engine
    assert run_chunk(slot, other.ticket()) == "recorded: 3 rows"


def test_a_slot_without_a_chunk_renews_nothing(site, monkeypatch):
    """It reports that it lives and no more."""
    slot = site.slot()
    run_chunk(slot, site.ticket())
    touched, reported = [], []
    monkeypatch.setattr(site.ledger, "touch", lambda *_: touched.append(1))
    monkeypatch.setattr(site.ledger.workforce, "report", reported.append)
    wait_until(lambda: len(reported) > 2, "the pulse beats")
    assert touched == []


def test_a_slot_that_did_not_notice_in_time_comes_late(make_site):
    """The first record stands; the result under the other token is garbage."""
    site = make_site()
    site.send(0, 1)
    other = site.slot("node/1")

    lost = []

    def overtake():
        ((number, token),) = site.ledger.leases(site.desk.spec)
        lost.append(token)
        site.ledger.free(site.desk.spec, number, token, DIED)
        assert run_chunk(other, site.ticket()) == "recorded: 3 rows"

    slot = site.slot(encoder=Doing(overtake))
    slot.pulse.stop()
    assert run_chunk(slot, site.ticket()) == "late: 3 rows"
    (note,) = site.ledger.recorded(site.desk.spec.job, 0, 1)
    assert note.token > lost[0]
    assert site.desk.status.rows_done == 3


def test_a_pulse_renews_the_lease_while_the_engine_works(site):
    """A chunk may take longer than its lease."""
    slot = site.slot(lease_s=0.2)

    def take_long():
        wait_ms(site.ledger, 400)
        assert site.desk.reconcile() == []

    slot.engine = Doing(take_long)
    assert run_chunk(slot, site.ticket()) == "recorded: 3 rows"


def test_a_pulse_outlives_a_broker_that_is_away_for_a_while(site, monkeypatch):
    """A heartbeat that fails is a warning; the next one is tried all the same."""
    slot = site.slot()
    touched = []

    def touch(*_):
        touched.append(1)
        if len(touched) == 1:
            raise BrokerUnavailable("down")
        return True

    monkeypatch.setattr(site.ledger, "touch", touch)
    slot.engine = Doing(lambda: wait_until(lambda: len(touched) > 2, "the pulse goes on"))
    assert run_chunk(slot, site.ticket()) == "recorded: 3 rows"


def test_an_altered_input_fails_the_job_by_its_name(site):
    """Its texts would be others, and nobody would notice: a whole Arrow file it is still."""
    path = keys.input_path(site.desk.spec.job, 0)
    data = site.store.get(path)
    site.store.put(path, data.replace(b"two words", b"two swords"[:9]))
    assert run_chunk(site.slot(), site.ticket()) == "failed"
    assert site.ledger.status(site.desk.spec.job).reason.startswith(f"{path} is damaged: its content is not what was")


def test_a_chunk_of_which_not_even_error_rows_can_be_made_fails_the_job(site):
    """It would be tried for ever otherwise."""
    store = Faulty(site.store, get=KeyError("secret"))
    attempts = site.max_attempts + chunk.GIVE_UPS
    outcomes = [run_chunk(site.slot(store=store), site.ticket()) for _ in range(attempts + 1)]
    assert outcomes == ["attempt failed"] * attempts + ["failed"]
    assert site.desk.status.reason.startswith("chunk 0 can neither be done nor given up, the last so: KeyError in ")
    assert "secret" not in site.desk.status.reason


def test_options_that_end_every_process_that_looks_at_them_fail_the_job(site):
    """Slots would be replaced for ever otherwise; a template that is tokenised is a text of somebody's too."""

    class Mortal(FakeEncoder):
        def check(self, options):
            raise EngineBroken("the tokenizer crashed")

    looks = site.max_attempts + chunk.GIVE_UPS
    for _ in range(looks):
        with pytest.raises(EngineBroken):
            run_chunk(site.slot(encoder=Mortal("fake", Settings())), site.ticket())
    assert run_chunk(site.slot(encoder=Mortal("fake", Settings())), site.ticket()) == "failed"
    assert "can neither be done nor given up" in site.desk.status.reason
    assert "the tokenizer crashed" in site.desk.status.reason


def test_the_time_of_a_look_at_options_is_limited(site):
    """A slot that hangs there would keep its lease alive for ever."""
    said = []

    class Slow(FakeEncoder):
        def check(self, options):
            wait_until(lambda: said, "the look is overdue")
            return super().check(options)

    ready = site.slot(encoder=Slow("fake:dim=4,limit=4", Settings(max_batch_tokens=100)))
    ready.limits = TimeLimits(0.001, said.append)
    ready.limits.start()
    assert run_chunk(ready, site.ticket()) == "recorded: 3 rows"
    assert "characters of options take longer than" in said[0]
