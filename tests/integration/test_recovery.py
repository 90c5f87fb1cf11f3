"""Jobs that a ledger lost come back from the store, whatever of them was lost and whoever dies on the way."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from tasks import delivery, keys, ledger, losses, manifest, recovery, tables
from tasks.errors import BrokerUnavailable, DamagedObject, StoreUnavailable, UnknownJob, UnreadableJob
from tasks.ledger import Ledger
from tasks.manifest import Sealed
from tasks.messages import Receipt
from tasks.ports import Computed
from tasks.reconciler import Reconciler
from tasks.recovery import Office, rebuild
from tasks.signing import Signer
from tasks.store import Store, open_store, store_id
from tests.conftest import wait_until
from tests.contracts.desk import Desk

#: Rows of a chunk, and what its texts weigh.
ROWS = 3
TEXT_BYTES = sum(len(f"text {i} é".encode()) for i in range(ROWS))


@dataclass
class Site:
    """A ledger, a store, and one job as a client and a slot would treat it."""

    office: Office
    desk: Desk
    published: list[int]
    on_record: dict[int, int] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """The job's id."""
        return self.desk.spec.job

    @property
    def store(self) -> Store:
        """The store."""
        return self.office.store

    def begin(self) -> None:
        """Make the job."""
        self.desk.create()
        manifest.note_made(
            self.store, self.desk.ledger, self.desk.spec, gate=self.desk.gate, ticket_s=self.desk.ticket_s
        )

    def send(self, *chunks: int) -> None:
        """Put chunk inputs into the store and announce them."""
        for chunk in chunks:
            ids, texts = [f"id-{i}" for i in range(ROWS)], [f"text {i} é" for i in range(ROWS)]
            path = keys.input_path(self.job, chunk)
            self.store.put(path, tables.input_bytes(tables.input_table(ROWS * chunk, ids, texts), path))
            self.desk.ledger.announce(self.desk.spec, chunk, ROWS, TEXT_BYTES)

    def seal(self, chunks: int) -> None:
        """Say that this was all."""
        totals = Sealed(chunks=chunks, rows=ROWS * chunks, input_bytes=TEXT_BYTES * chunks, kept_types={"a": "int64"})
        manifest.note_sealed(self.store, self.desk.spec, totals)
        self.desk.ledger.seal(self.desk.spec, chunks, totals.kept_types)

    def write(self, chunk: int, token: int, *, failed: int = 0, weights: str = "w1", **metadata) -> Receipt:
        """Put a result into the store, and return its receipt."""
        path = keys.input_path(self.job, chunk)
        inputs = tables.read_input(self.store.get(path), path)
        errors = ["odd" if i < failed else None for i in range(ROWS)]
        encoded = Computed(
            values=np.ones((ROWS, 4), np.float32),
            n_tokens=np.ones(ROWS, np.int32),
            truncated=np.zeros(ROWS, bool),
            errors=errors,
        )
        receipt = Receipt(rows=ROWS, failed_rows=failed, tokens=7, padded_tokens=9, weights=weights, dim=4)
        names = {"job": self.job, "chunk": str(chunk), "token": str(token), **metadata}
        written = {f"penstock.{name}": value for name, value in names.items()}
        written |= {"penstock.receipt": json.dumps(receipt.model_dump(exclude={"size_bytes", "crc32", "write_s"}))}
        data = tables.to_bytes(tables.encode_result(inputs, encoded, "float32"), written)
        self.store.put(keys.result_path(self.job, chunk, token), data)
        return receipt.model_copy(update={"size_bytes": len(data), "crc32": zlib.crc32(data)})

    def do(self, *chunks: int, **fields) -> None:
        """Take chunks, write their results and record them."""
        for chunk in chunks:
            lease = self.desk.take(chunk)
            outcome, _ = self.desk.ledger.record(lease, self.write(chunk, lease.token, **fields))
            assert outcome == "recorded"
            self.on_record[chunk] = lease.token

    def lose(self) -> None:
        """Empty the ledger."""
        self.desk.ledger.redis.flushall()

    def tokens(self) -> dict[int, int]:
        """Return the recorded token of each chunk."""
        return {note.chunk: note.token for note in self.desk.ledger.recorded(self.job, 0, 100)}

    def finish(self) -> None:
        """Do whatever tickets are out, until the job is over."""
        while not self.desk.status.is_over:
            assert self.published, "the job stands still"
            chunks, self.published[:] = list(self.published), []
            for chunk in chunks:
                lease = self.desk.take(chunk)
                _, tickets = self.desk.ledger.record(lease, self.write(chunk, lease.token))
                self.published += [*lease.released, *tickets]


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    """Return a store that outlives the ledger."""
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store")
    request.getfixturevalue("make_bucket")("bucket")
    return open_store("s3://bucket/folder")


@pytest.fixture
def make_site(valkey_ledger, store, make_spec, monkeypatch):
    """Return a function that makes the site of a new job; keyword arguments replace fields of its spec."""
    published = []
    monkeypatch.setattr(delivery, "publish", lambda _app, _spec, chunks: published.extend(chunks))
    office = Office(valkey_ledger, store, None)

    def make(**fields):
        site = Site(office, Desk(valkey_ledger, make_spec(store_id=store_id(store), **fields)), published)
        site.begin()
        return site

    return make


@pytest.fixture
def site(make_site):
    """Return a sealed job of six chunks, two of which are done."""
    site = make_site()
    site.send(*range(6))
    site.seal(6)
    site.do(0, 1)
    return site


def same(before, after) -> bool:
    """Compare two states of a job but for what nobody needs back."""
    forgotten = {"created_ms": 0, "finished_ms": 0, "work_s": 0, "seconds": {}}
    return before.__dict__ | forgotten == after.__dict__ | forgotten


# -- one job -----------------------------------------------------------------------------------------------------


def test_a_running_job_comes_back_with_its_results(site):
    """What was done is not done again, what was open is, and nothing else of its state is lost."""
    before = site.desk.status
    site.lose()
    found = rebuild(site.office, site.job)
    assert (found.state, found.chunks, found.results, found.damaged) == ("running", 6, 2, 0)
    assert same(before, site.desk.status)
    assert site.tokens() == site.on_record
    assert site.published == [2, 3, 4, 5]
    site.finish()
    assert (site.desk.status.state, site.desk.status.rows_done) == ("done", 6 * ROWS)


def test_files_of_others_beside_the_results_and_the_manifest_are_no_hindrance(site):
    """People leave notes, and sync tools their own files."""
    for folder in (keys.results(site.job), keys.manifest(site.job)):
        for name in ("a.txt", "00000000-1.arrow", ".made-x.json.swp"):
            site.store.put(f"{folder}{name}", b"?")
    site.lose()
    assert rebuild(site.office, site.job).results == 2


def test_a_job_that_is_not_signed_does_not_come_back_where_a_key_is_needed(site):
    """Else whoever may write to the store could have nodes sign what they find there."""
    site.lose()
    signed = Ledger(site.desk.ledger.redis, "", Signer((b"k" * 32,)))
    with pytest.raises(UnreadableJob, match="is not signed with this side's key"):
        rebuild(Office(signed, site.store, None), site.job)
    assert signed.redis.keys("penstock:job:*") == []


def test_a_signed_job_comes_back_signed(make_site):
    """Its manifest carries the signature."""
    site = make_site()
    signed = Ledger(site.desk.ledger.redis, "", Signer((b"k" * 32,)))
    spec = site.desk.spec.model_copy(update={"job": "encode-signed"})
    signed.create(spec, gate=2, ticket_s=60)
    manifest.note_made(site.store, signed, spec, gate=2, ticket_s=60)
    site.lose()
    rebuild(Office(signed, site.store, None), spec.job)
    signature = signed.redis.hget(keys.job(spec.job), "signature")
    assert signed.signer.takes_spec(spec.model_dump_json(), signature)


def test_a_done_job_comes_back_done(site):
    """It can be collected; length and checksum are those of the objects."""
    site.do(2, 3, 4, 5)
    before, notes = site.desk.status, site.desk.ledger.recorded(site.job, 0, 6)
    site.lose()
    rebuild(site.office, site.job)
    assert before.state == "done"
    assert same(before, site.desk.status)
    assert site.desk.ledger.recorded(site.job, 0, 6) == notes
    assert site.published == []


def test_a_job_without_a_result_comes_back(make_site):
    """Everything is done again."""
    site = make_site()
    site.send(0, 1)
    site.seal(2)
    site.lose()
    assert rebuild(site.office, site.job).results == 0
    assert site.published == [0, 1]


def test_an_unfinished_submission_comes_back_for_its_client(make_site):
    """What lies in the store is announced and worked on, and the client goes on with the rest."""
    site = make_site()
    site.send(0, 1, 2)
    site.do(0)
    site.lose()
    found = rebuild(site.office, site.job)
    assert (found.state, found.chunks, found.results) == ("submitting", 3, 1)
    assert (site.desk.status.rows, site.desk.status.input_bytes) == (3 * ROWS, 3 * TEXT_BYTES)
    assert sorted(site.published) == [1, 2]
    site.send(3)
    site.seal(4)
    site.published.append(3)
    site.finish()
    assert site.desk.status.rows_done == 4 * ROWS


def test_a_torn_input_ends_what_is_announced(make_site):
    """The client writes it again."""
    site = make_site()
    site.send(0, 1, 2)
    path = keys.input_path(site.job, 1)
    site.store.put(path, site.store.get(path)[:-1])
    site.lose()
    assert rebuild(site.office, site.job).chunks == 1


@pytest.mark.parametrize("state", ["cancelled", "failed"])
def test_what_was_ended_stays_ended(site, state):
    """With its reason."""
    manifest.end_job(site.store, site.desk.ledger, site.desk.spec, state, "because")
    site.lose()
    assert rebuild(site.office, site.job).state == state
    assert site.desk.status.reason == "because"
    assert site.published == []
    assert site.desk.ledger.active_jobs() == []


def test_a_failed_job_comes_back_with_its_results(site):
    """So that a retry has to do only the rest."""
    manifest.end_job(site.store, site.desk.ledger, site.desk.spec, "failed", "because")
    site.lose()
    rebuild(site.office, site.job)
    assert site.tokens() == site.on_record
    manifest.note_reopened(site.store, site.desk.spec)
    site.lose()
    assert rebuild(site.office, site.job).state == "running"


def test_a_job_that_may_have_no_error_rows_stays_failed(make_site):
    """It failed in the ledger alone, by the record of a chunk."""
    site = make_site(on_error="fail")
    site.send(0, 1)
    site.seal(2)
    site.do(0, failed=1)
    assert site.desk.status.state == "failed"
    site.lose()
    assert rebuild(site.office, site.job).state == "failed"


def test_error_rows_are_still_to_be_retried(site):
    """The ledger knows again which chunks have some."""
    site.do(2, failed=2)
    site.lose()
    rebuild(site.office, site.job)
    assert site.desk.status.failed_rows == 2
    assert site.desk.ledger.failed_chunks(site.job) == [2]


# -- results of every kind ---------------------------------------------------------------------------------------


def test_of_several_results_the_latest_counts(site):
    """A retry wrote it, or the heir of a slot that was given up."""
    site.write(2, 10)
    site.write(2, 30, failed=1)
    site.write(2, 20)
    site.lose()
    rebuild(site.office, site.job)
    assert site.tokens() == {**site.on_record, 2: 30}


def test_a_damaged_result_gives_way_to_an_older_one(site):
    """Which is as good, as nobody knows which of them was recorded."""
    site.write(2, 20)
    site.write(2, 30)
    path = keys.result_path(site.job, 2, 30)
    site.store.put(path, site.store.get(path)[:-8])
    site.lose()
    assert rebuild(site.office, site.job).damaged == 0
    assert site.tokens()[2] == 20


def cut(data, site):
    """Lose the end of a result."""
    return data[: len(data) // 2]


def altered(data, site):
    """Change one number of a vector."""
    return data.replace(np.ones(4, np.float32).tobytes(), np.full(4, 2, np.float32).tobytes(), 1)


def empty(data, site):
    """Lose all of it."""
    return b""


def misplaced(data, site):
    """Put another chunk's result in its place."""
    return site.store.get(keys.result_path(site.job, 0, site.on_record[0]))


@pytest.mark.parametrize("damage", [cut, altered, empty, misplaced])
def test_a_damaged_result_is_done_again(site, damage):
    """Torn, altered, or another object than its name says: it is not recorded, and the chunk is open."""
    path = keys.result_path(site.job, 1, site.on_record[1])
    data = site.store.get(path)
    assert damage(data, site) != data
    site.store.put(path, damage(data, site))
    site.lose()
    found = rebuild(site.office, site.job)
    assert (found.results, found.damaged) == (1, 1)
    assert site.published == [1, 2, 3, 4]
    site.published.append(5)
    site.finish()
    assert site.desk.status.rows_done == 6 * ROWS


def test_results_of_other_weights_do_not_mix(site):
    """The first ones that count pin them, as those that are recorded do."""
    site.write(2, 10, weights="w2")
    site.lose()
    assert rebuild(site.office, site.job).results == 2
    assert site.desk.status.weights == "w1"


def test_a_result_without_a_receipt_is_done_again(site):
    """Nothing is known of it."""
    path = keys.result_path(site.job, 1, site.on_record[1])
    site.store.put(path, tables.to_bytes(tables.from_bytes(site.store.get(path), path)))
    site.lose()
    assert rebuild(site.office, site.job).damaged == 1


# -- twice, at once, and in pieces -------------------------------------------------------------------------------


def test_rebuilding_again_changes_nothing(site):
    """Nor does it publish tickets that are out already, or read results that are recorded."""
    site.lose()
    rebuild(site.office, site.job)
    before, site.published[:] = site.desk.snapshot(), []
    read = []
    rebuild(site.office, site.job, lambda: read.append(1))
    assert (site.desk.snapshot(), site.published, read) == (before, [], [])


def test_a_healthy_job_is_left_as_it_is(site):
    """Whoever asks for its recovery does no harm; leases stay."""
    site.desk.take(2)
    before = site.desk.snapshot()
    rebuild(site.office, site.job)
    assert site.desk.snapshot() == before


def test_many_may_rebuild_a_job_at_the_same_time(site):
    """The sums are right, and each open chunk has one ticket."""
    site.lose()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: rebuild(site.office, site.job), range(4)))
    assert (site.desk.status.recorded, site.desk.status.rows_done) == (2, 2 * ROWS)
    assert sorted(site.published) == [2, 3, 4, 5]


class Dying(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("step", ["restore", "announce", "adopt", "failed_chunks", "open_gate"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "unsealed"])
def test_whoever_dies_on_the_way_leaves_a_job_to_go_on_with(make_site, monkeypatch, step, when, is_sealed):
    """Nobody works on it until it is whole, and the next one finds it."""
    site = make_site(on_error="fail")
    site.send(0, 1, 2)
    if is_sealed:
        site.seal(3)
    site.do(0, 1)
    site.lose()
    original = getattr(Ledger, step)

    def die(self, *args, **kwargs):
        if when == "after":
            original(self, *args, **kwargs)
        raise Dying

    with monkeypatch.context() as context:
        context.setattr(Ledger, step, die)
        try:
            rebuild(site.office, site.job)
        except Dying:
            assert site.published == []
        else:
            assert (step, is_sealed) == ("announce", True)  # a sealed job has no use for it
    assert losses.rebuild_lost(site.office, site.office.ledger.identity.ids(), "me", lambda: None)
    assert (site.desk.status.recorded, site.desk.status.chunks) == (2, 3)
    # Who died with the tickets in hand left them to the reconciler.
    monkeypatch.setattr(ledger, "TICKET_GRACE_S", 0.0)
    assert sorted(site.published or site.desk.reconcile()) == [2]


def test_a_job_that_is_removed_meanwhile_does_not_come_back(make_site, monkeypatch):
    """Not even as a hash with a gate and nothing else."""
    site = make_site(on_error="fail")
    site.send(0)
    site.lose()
    original = Ledger.failed_chunks

    def remove(ledger, job):
        ledger.end(site.desk.spec, "cancelled")
        assert ledger.remove(site.desk.spec)
        return original(ledger, job)

    monkeypatch.setattr(Ledger, "failed_chunks", remove)
    with pytest.raises(UnknownJob):
        rebuild(site.office, site.job)
    assert site.desk.ledger.redis.exists(keys.job(site.job)) == 0


# -- what is no manifest -----------------------------------------------------------------------------------------


def test_a_job_without_a_manifest_is_unknown(site):
    """A client that waits for it hears so."""
    site.store.delete_folder(keys.manifest(site.job))
    with pytest.raises(UnknownJob, match=f"No manifest of job '{site.job}'"):
        rebuild(site.office, site.job)


@pytest.mark.parametrize("part", [0, 1])
def test_an_altered_manifest_is_damaged(site, part):
    """A field of another name would be a column of another name, and all else would be right."""
    path = sorted(site.store.list_keys(keys.manifest(site.job)))[part]
    data = site.store.get(path)
    for at in (len(data) // 2, len(data) - 1):
        site.store.put(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedObject, match=f"^{path} in .* is damaged: its checksum is not that of its content"):
            rebuild(site.office, site.job)


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b"\xff" * 9, b'{"version":2}'])
@pytest.mark.parametrize("part", [0, 1])
def test_a_manifest_that_makes_no_sense_is_damaged(site, data, part):
    """The line names the object, and the ledger learns nothing of the job."""
    path = sorted(site.store.list_keys(keys.manifest(site.job)))[part]
    site.store.put(path, data + b"\n%08x" % zlib.crc32(data))
    site.lose()
    with pytest.raises(DamagedObject, match=f"^{path} in .* is damaged, or of a newer release: ") as caught:
        rebuild(site.office, site.job)
    assert "\n" not in str(caught.value)
    assert site.desk.ledger.jobs() == []


def test_another_jobs_manifest_is_damaged(site, make_site):
    """It was copied, or the folder renamed."""
    other = make_site()
    (made,) = other.store.list_keys(keys.manifest(other.job))
    site.store.put(made, site.store.get(next(iter(sorted(site.store.list_keys(keys.manifest(site.job)))))))
    with pytest.raises(DamagedObject, match="is another job's manifest"):
        rebuild(site.office, other.job)


# -- by itself ---------------------------------------------------------------------------------------------------


def move(site):
    """Let another server have done the last comparison."""
    site.desk.ledger.redis.set(keys.compared(store_id(site.store)), "the server before")


@pytest.fixture
def look(site, monkeypatch):
    """Return a function by which a new process looks after the ledger; what it rebuilds is there when it returns."""
    made = []

    def look(reconciler=None):
        reconciler = reconciler or Reconciler(site.office, who="node", every_s=60)
        site.desk.ledger.redis.delete(keys.RECONCILER)
        reconciler.look()
        thread = reconciler._losses._thread
        if thread is not None:
            thread.join(30)
            assert not thread.is_alive()
        made.append(reconciler)
        return reconciler

    return look


def listings(monkeypatch):
    """Return a list that grows with each listing of all manifests."""
    found = []
    original = manifest.listed
    monkeypatch.setattr(manifest, "listed", lambda store: found.append(1) or original(store))
    return found


def test_an_emptied_ledger_is_filled_again_by_who_remembers_it(site, look):
    """All jobs that it had, and no others of the same store."""
    ours = look()
    other = Ledger(site.desk.ledger.redis)
    foreign = site.desk.spec.model_copy(update={"job": "encode-foreign"})
    stranger = Ledger(site.desk.ledger.redis)
    stranger.identity.id = lambda: "another-ledger"
    manifest.note_made(site.store, stranger, foreign, gate=1, ticket_s=1)
    site.lose()
    look(ours)
    assert site.tokens() == site.on_record
    assert site.published == [2, 3, 4, 5]
    assert other.jobs() == [site.job]


def test_a_new_process_does_not_take_over_an_emptied_ledger(site, make_spec, valkey_server):
    """Its jobs may be another ledger's, which shares the store."""
    stranger = Ledger(site.desk.ledger.redis)
    site.lose()
    reconciler = Reconciler(Office(stranger, site.store, None), who="node", every_s=60)
    reconciler.look()
    if reconciler._losses._thread is not None:
        reconciler._losses._thread.join(30)
    assert stranger.jobs() == []


def test_a_store_is_listed_once_and_not_at_each_look(site, look, monkeypatch):
    """A bucket may hold many jobs; another server is a reason to look again."""
    found = listings(monkeypatch)
    ours = look()
    for _ in range(3):
        look(ours)
        look()
    assert len(found) == 1
    monkeypatch.setattr(site.desk.ledger.identity, "server", lambda: "another")
    look(ours)
    look(ours)
    assert len(found) == 2


def test_a_seal_that_a_failover_lost_is_found(site, look, make_site):
    """Nobody else would notice: the client is gone, and the ledger waits for it."""
    late = make_site()
    late.send(0, 1)
    ours = look()
    late.send(2)
    late.seal(3)
    base = keys.job(late.job)
    site.desk.ledger.redis.hset(base, mapping={"state": "submitting", "announced": 2, "rows": 2 * ROWS})
    site.desk.ledger.redis.hset(base, "released", 2)
    site.desk.ledger.redis.hdel(base, "total", "kept_types")
    site.desk.ledger.redis.zrem(f"{base}:open", 2)
    move(site)
    look(ours)
    assert (late.desk.status.state, late.desk.status.chunks, late.desk.status.rows) == ("running", 3, 3 * ROWS)
    assert late.desk.status.kept_types == {"a": "int64"}
    assert 2 in late.published


def test_an_end_that_a_failover_lost_is_found(site, look):
    """A cancelled job stays cancelled."""
    ours = look()
    manifest.end_job(site.store, site.desk.ledger, site.desk.spec, "cancelled", "by will")
    base = keys.job(site.job)
    site.desk.ledger.redis.hset(base, "state", "running")
    site.desk.ledger.redis.sadd(keys.ACTIVE, site.job)
    move(site)
    look(ours)
    assert site.desk.status.state == "cancelled"
    assert site.published == []


def test_a_job_that_another_process_rebuilds_is_left_to_it_until_it_falls_silent(site, look, monkeypatch):
    """The comparison is not over before that."""
    ours = look()
    site.lose()
    monkeypatch.setattr(losses, "SILENCE_S", 0.2)
    assert losses.may_rebuild(site.desk.ledger, site.job, "another")
    look(ours)
    assert site.desk.ledger.jobs() == []
    wait_until(lambda: look(ours) and site.desk.ledger.jobs() == [site.job], "the job is taken over")
    assert site.tokens() == site.on_record


@pytest.mark.parametrize("error", [StoreUnavailable("away"), BrokerUnavailable("away"), OSError()])
def test_a_comparison_that_failed_is_tried_again(site, look, monkeypatch, error):
    """Whatever was wrong; nobody is harmed by it."""
    ours = look()
    site.lose()

    def fail(*_):
        raise error

    with monkeypatch.context() as context:
        context.setattr(recovery, "rebuild", fail)
        look(ours)
    assert site.desk.ledger.jobs() == []
    look(ours)
    assert site.tokens() == site.on_record


def test_a_job_that_makes_no_sense_does_not_keep_others_from_coming_back(site, look, make_site):
    """It is named in the log."""
    other = make_site()
    (made,) = other.store.list_keys(keys.manifest(other.job))
    site.store.put(made, b"{}")
    ours = look()
    site.lose()
    look(ours)
    assert site.desk.ledger.jobs() == [site.job]


def test_the_youngest_job_has_its_key(site, look, make_site):
    """The same command finds the job that it made last, whichever comes back first."""
    ours = look()
    first, second = (make_site(key="the-same", job=name) for name in ("encode-b", "encode-a"))
    assert first.desk.status.created_ms <= second.desk.status.created_ms
    for jobs in ((first, second), (second, first)):
        site.lose()
        for job in jobs:
            rebuild(job.office, job.job)
        assert site.desk.ledger.find("the-same").job == second.job
    assert ours


def test_a_ledger_that_is_emptied_again_meanwhile_is_compared_again(site, look, monkeypatch):
    """What was rebuilt before the second time is lost again."""
    ours = look()
    site.lose()
    original = recovery.rebuild

    def rebuild_and_lose(*args):
        original(*args)
        site.lose()

    with monkeypatch.context() as context:
        context.setattr(recovery, "rebuild", rebuild_and_lose)
        look(ours)
    assert site.desk.ledger.jobs() == []
    look(ours)
    assert site.tokens() == site.on_record


def test_the_ledgers_id_stays_whoever_asks(valkey_ledger):
    """Many may ask at the same time; what one saw, it brings back."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Ledger(valkey_ledger.redis).identity.id(), range(8)))
    mine = Ledger(valkey_ledger.redis)
    ids = mine.identity.ids()
    valkey_ledger.redis.flushall()
    assert mine.identity.ids() == ids
    assert Ledger(valkey_ledger.redis).identity.ids() == ids


def test_the_server_is_named_by_its_replication_id(valkey_ledger):
    """It changes with a restart or a failover."""
    assert len(valkey_ledger.identity.server()) == 40


def test_a_server_that_does_not_tell_counts_as_one_that_stays(fake_ledger):
    """As behind some proxies; an emptied ledger is noticed there all the same."""
    assert fake_ledger.identity.server() == "none"


def test_nodes_go_on_with_a_recovery_by_hand_that_was_interrupted(site, look):
    """Whoever took the store's ids over asked for all of its jobs."""
    theirs = site.desk.ledger.identity.ids()
    site.lose()
    look(Reconciler(Office(Ledger(site.desk.ledger.redis), site.store, None), who="new", every_s=60))
    assert site.desk.ledger.redis.keys("penstock:job:*") == []
    Ledger(site.desk.ledger.redis).identity.add_from(store_id(site.store), theirs)
    look(Reconciler(Office(Ledger(site.desk.ledger.redis), site.store, None), who="node", every_s=60))
    assert site.tokens() == site.on_record
