"""Job specs in the ledger that nobody should work on: of other releases, of other jobs, forged."""

import json

import pytest

from tasks import keys
from tasks.errors import UnreadableJob
from tasks.ledger import Ledger
from tasks.records import Refusal
from tasks.signing import Signer
from tests.contracts.desk import Desk

KEYED = Signer((b"k" * 32,))


def rewrite(ledger, spec, **changes):
    """Change a spec as it stands in the ledger."""
    text = json.dumps({**json.loads(spec.model_dump_json()), **changes})
    ledger.redis.hset(keys.job(spec.job), "spec", text)


def claim(ledger, spec, chunk=0):
    """Ask for a chunk, as a slot of the job's model does."""
    return ledger.claim(spec.job, chunk, queue=spec.queue, slot="node/0", lease_s=60)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2}, "has a spec of version 2; this release reads version 1"),
        ({"version": 2, "compression": "zstd"}, "has a spec of version 2"),
        ({"version": None}, "cannot be read: version"),
        ({"job": "encode-of-another"}, "has the spec of another job"),
        ({"job": "../../etc"}, "cannot be read: job"),
        ({"code": "import os"}, "cannot be read: code: Extra inputs"),
        ({"model": {"engine": "pickle", "name": "/tmp/x"}}, "cannot be read: model.engine"),  # noqa: S108 - a name
        ({"store_id": "../up"}, "cannot be read: store_id"),
        ({"keep_fields": ["f"] * 1000}, "cannot be read: keep_fields"),
    ],
)
def test_a_spec_that_cannot_be_believed_costs_its_chunk_nothing(fake_ledger, make_spec, changes, why):
    """It is refused by name, the attempt does not count, and the chunk stays there for those who can read it."""
    spec = make_spec()
    desk = Desk(fake_ledger, spec, gate=2).create()
    desk.announce(0, 1, 2)
    rewrite(fake_ledger, spec, **changes)
    with pytest.raises(UnreadableJob, match=why):
        fake_ledger.spec(spec.job)
    answer = claim(fake_ledger, spec)
    assert isinstance(answer, Refusal)
    assert why in answer.why
    assert why in fake_ledger.refusals(spec.job)["node/0"]
    assert fake_ledger.redis.hget(f"{keys.job(spec.job)}:attempts", "0") == "0"
    rewrite(fake_ledger, spec)
    fake_ledger.redis.zadd(f"{keys.job(spec.job)}:open", {"0": 0})  # the pause is over
    assert claim(fake_ledger, spec).attempts == 1


def test_a_spec_that_is_no_json_is_refused(fake_ledger, make_spec):
    """Whatever stands there."""
    spec = make_spec()
    Desk(fake_ledger, spec, gate=2).create()
    for text in ("", "null", "[" * 5000, "\x00"):
        fake_ledger.redis.hset(keys.job(spec.job), "spec", text)
        with pytest.raises(UnreadableJob, match="cannot be read"):
            fake_ledger.spec(spec.job)


def test_a_spec_of_the_first_release_is_read(fake_ledger, make_spec):
    """What a client leaves out that knows less has its default."""
    spec = make_spec()
    Desk(fake_ledger, spec, gate=2).create()
    least = {"version", "job", "model", "options", "store_id", "key"}
    text = json.dumps({name: value for name, value in json.loads(spec.model_dump_json()).items() if name in least})
    fake_ledger.redis.hset(keys.job(spec.job), "spec", text)
    assert fake_ledger.spec(spec.job) == spec


def test_a_ledger_with_a_key_takes_jobs_that_are_signed_with_it(fake_ledger, make_spec):
    """The client signs what the slot checks."""
    ledger = Ledger(fake_ledger.redis, signer=KEYED)
    spec = make_spec()
    desk = Desk(ledger, spec, gate=2).create()
    desk.announce(0, 1, 2)
    assert ledger.spec(spec.job) == spec
    assert claim(ledger, spec).spec == spec
    assert fake_ledger.spec(spec.job) == spec  # without a key nothing is asked


def test_a_ledger_with_a_key_takes_no_other_job(fake_ledger, make_spec):
    """Unsigned, signed with another key, or altered."""
    ledger = Ledger(fake_ledger.redis, signer=KEYED)
    unsigned, foreign, altered = make_spec(), make_spec(), make_spec()
    Desk(fake_ledger, unsigned, gate=2).create().announce(0, 1, 2)
    Desk(Ledger(fake_ledger.redis, signer=Signer((b"o" * 32,))), foreign, gate=2).create().announce(0, 1, 2)
    Desk(ledger, altered, gate=2).create().announce(0, 1, 2)
    rewrite(fake_ledger, altered, on_error="fail")
    for spec, why in ((unsigned, "is not signed"), (foreign, "is wrongly signed"), (altered, "is wrongly signed")):
        with pytest.raises(UnreadableJob, match=why):
            ledger.spec(spec.job)
        assert why in claim(ledger, spec).why


def test_a_recovered_job_is_signed_anew(fake_ledger, make_spec):
    """By whoever recovers it, who has a key and believes the store."""
    ledger = Ledger(fake_ledger.redis, signer=KEYED)
    spec = make_spec()
    ledger.restore(spec, ticket_s=60, created_ms=1, totals=None)
    assert ledger.spec(spec.job) == spec
