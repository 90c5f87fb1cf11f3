"""Stores: whatever becomes of an object under a job's keys, results are right or there are none."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from producer import Client
from producer import client as client_module
from tasks import broker, chunk, delivery
from tasks.chunk import run_chunk
from tasks.errors import DamagedObject, UnknownJob
from tasks.ledger import Ledger
from tasks.limits import TimeLimits
from tasks.messages import ModelSpec, Ticket
from tasks.pulse import Pulse
from tasks.recovery import Office, rebuild
from tasks.settings import Settings
from tasks.slot import Slot
from tests.contracts.ledger import slot_status
from tests.fuzz.cases import fuzz
from tests.fuzz.commands import SECRET, Outcome, call, check_line, leftovers
from tests.fuzz.mutations import mutate, noise
from workers.engines.fake import FakeEncoder

MODEL = "fake:dim=4"
N_ROWS, CHUNK_ROWS = 20, 5


@dataclass
class Site:
    """A finished job of four chunks, its ledger and its store, which both can be set back to how they were."""

    folder: Path
    url: str
    client: Client
    slot: Slot
    job: str = ""
    dump: dict[bytes, bytes] = field(default_factory=dict)
    objects: dict[Path, bytes] = field(default_factory=dict)

    def submit(self) -> None:
        """Submit the corpus."""
        rows = [{"id": f"id-{i}", "text": f"{SECRET} {i}", "n": i} for i in range(N_ROWS)]
        self.job = self.client.encode(rows, model=MODEL, keep_fields=["n"]).id

    def work(self, job: str, chunks: Iterable[int]) -> None:
        """Do what tickets ask for."""
        for number in chunks:
            run_chunk(self.slot, Ticket(version=1, job=job, chunk=number))

    def keep(self) -> None:
        """Note how all is now."""
        with broker.connect(self.url, decode=False) as raw:
            self.dump = {key: raw.dump(key) for key in raw.scan_iter()}
        self.objects = {path: path.read_bytes() for path in (self.folder / "store").rglob("*") if path.is_file()}

    def set_back(self) -> None:
        """Make all as it was."""
        with broker.connect(self.url, decode=False) as raw:
            raw.flushall()
            for key, value in self.dump.items():
                raw.restore(key, 0, value)
        for path in (self.folder / "store").rglob("*"):
            if path.is_file() and path not in self.objects:
                path.unlink()
        for path, data in self.objects.items():
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)

    def call(self, *arguments: str) -> Outcome:
        """Run a command on this cluster."""
        environment = {"PENSTOCK_BROKER_URL": self.url, "PENSTOCK_STORE_URL": (self.folder / "store").as_uri()}
        return call(*arguments, folder=self.folder, environment=environment)

    def collect(self) -> Outcome:
        """Collect the job."""
        return self.call("collect", self.job, "--out", "out.jsonl", "--overwrite")

    def finish(self) -> bytes:
        """Submit the corpus, do it, and return what is collected."""
        self.submit()
        assert self.collect().check().code == 0
        expected = (self.folder / "out.jsonl").read_bytes()
        assert expected.count(b"\n") == N_ROWS
        return expected

    def lose_ledger(self) -> None:
        """Empty the broker; the slot lives on."""
        with broker.connect(self.url) as raw:
            raw.flushall()
        self.slot.pulse.report()

    def paths(self, kind: str) -> list[Path]:
        """Return the objects of one kind: input, result or manifests."""
        return sorted(path for path in self.objects if kind in path.parts)


@pytest.fixture
def site(valkey, tmp_path, monkeypatch) -> Iterator[Site]:
    """A finished job, and a slot that does at once whatever is asked for."""
    monkeypatch.setattr(chunk, "AGAIN_S", 0.0)
    monkeypatch.setattr(client_module, "new_job_id", lambda _: "encode-0123456789")  # the same bytes in every run
    settings = Settings(
        broker_url=valkey, store_url=(tmp_path / "store").as_uri(), chunk_rows=CHUNK_ROWS, heartbeat_s=900, lease_s=1000
    )
    with Client(settings=settings) as client, broker.connect(valkey) as connection:
        queue = ModelSpec.parse(MODEL).queue("encode")
        status = slot_status(queue=queue, store_id=client.store_id, model=MODEL)
        ledger = Ledger(connection, valkey)
        pulse = Pulse(ledger, settings, status)
        encoder = FakeEncoder(MODEL, Settings(max_batch_tokens=100))
        slot = Slot(settings, ledger, client.store, client.app, encoder, pulse, TimeLimits(settings.stall_s))
        here = Site(tmp_path, valkey, client, slot)
        for name in ("publish", "publish_or_leave"):
            monkeypatch.setattr(delivery, name, lambda _, spec, chunks: here.work(spec.job, chunks))
        pulse.report()
        yield here


def _damage(path: Path, others: list[bytes], rng: random.Random) -> None:
    """Do something to an object."""
    data = path.read_bytes()
    kind = rng.random()
    if kind < 0.1:
        path.unlink()
    elif kind < 0.2:
        path.write_bytes(rng.choice(others))
    elif kind < 0.3:
        path.write_bytes(noise(rng))
    else:
        path.write_bytes(mutate(data, rng))


def _damage_some(site: Site, paths: list[Path], rng: random.Random) -> None:
    """Set all back, and damage some objects of a kind."""
    site.set_back()
    (site.folder / "out.jsonl").unlink(missing_ok=True)
    for path in rng.sample(paths, rng.choice([1, 1, len(paths)])):
        _damage(path, [site.objects[path] for path in paths], rng)


def _is_right_or_refused(site: Site, expected: bytes) -> bool:
    """Collect; return whether there are no results, and fail if there are wrong ones."""
    outcome = site.collect().check()
    assert not leftovers(site.folder)
    if outcome.code == 0:
        assert (site.folder / "out.jsonl").read_bytes() == expected
    else:
        assert not (site.folder / "out.jsonl").exists()
    return outcome.is_refused


def test_a_damaged_result_is_computed_again(site):
    """Torn, altered, swapped or missing: what is collected is what was computed first."""
    expected = site.finish()
    site.keep()

    def attempt(rng: random.Random) -> bool:
        _damage_some(site, site.paths("result"), rng)
        assert not _is_right_or_refused(site, expected)
        return False

    fuzz("stores, results", 3, attempt)


def test_a_damaged_input_gives_the_right_result_or_none(site, monkeypatch):
    """The slot that reads it notices, and the job fails with its name; no vector of other texts is ever stored."""
    expected = site.finish()
    site.lose_ledger()
    monkeypatch.setattr(delivery, "publish_or_leave", lambda *_: None)
    site.submit()
    site.keep()

    def attempt(rng: random.Random) -> bool:
        _damage_some(site, site.paths("input"), rng)
        site.work(site.job, range(N_ROWS // CHUNK_ROWS))
        return _is_right_or_refused(site, expected)

    fuzz("stores, inputs", 3, attempt)


def test_a_ledger_rebuilt_from_damaged_objects_gives_the_right_result_or_none(site):
    """Manifest, inputs and results may all be damaged when the ledger is lost."""
    expected = site.finish()
    site.keep()

    def attempt(rng: random.Random) -> bool:
        paths = rng.choice([site.paths("result"), site.paths("result") + site.paths("input"), site.paths("manifests")])
        _damage_some(site, paths, rng)
        site.lose_ledger()
        try:
            rebuild(Office(site.slot.ledger, site.client.store, site.client.app), site.job)
        except (DamagedObject, UnknownJob) as exc:
            check_line(exc)
            return True
        return _is_right_or_refused(site, expected)

    fuzz("stores, lost ledgers", 3, attempt)
