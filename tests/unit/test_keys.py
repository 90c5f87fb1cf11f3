"""The table of keys and paths."""

import inspect
import re

import pytest

from tasks import keys
from tasks.parking import park

#: What stands for the arguments of the functions in the table.
ARGUMENTS = {
    "job_id": "J",
    "key": "KEY",
    "slot_id": "S",
    "store_id": "STORE",
    "ledger_id": "LEDGER",
    "queue": "penstock.OPERATION.D",
    "path": "FOLDER/object",
    "chunk": 42,
    "block": 42,
    "token": 7,
}
TYPES = {"hash", "list", "set", "string", "zset"}


def table():
    """Read the docstring: key -> type, and the store paths."""
    types, paths = {}, []
    for line in keys.__doc__.splitlines():
        words = line.split()
        if len(words) > 1 and words[1] in TYPES:
            types[words[0]] = words[1]
        elif re.match(r"(jobs/|manifests/|penstock-)\S+( |$)", line):
            paths.append(words[0])
    return types, paths


def made():
    """Call every function of the module with stand-ins, and collect its constants."""
    found = {value for name, value in vars(keys).items() if name.isupper()}
    for function in vars(keys).values():
        if inspect.isfunction(function):
            result = function(*(ARGUMENTS[name] for name in inspect.signature(function).parameters))
            found.update(result if isinstance(result, list) else [result])
    return found


def test_the_table_lists_every_key_that_the_module_makes():
    """An operator finds whatever is in Redis or in the store; a folder is listed by what is in it."""
    types, paths = table()
    for key in made():
        assert key in types or key in paths or any(path.startswith(f"{key.rstrip('/')}/") for path in paths), key


def test_the_module_makes_every_key_of_the_table():
    """Nothing is listed that is no more."""
    types, paths = table()
    assert {*types, *paths} <= made()


def test_paths_sort_as_chunks_and_tokens_do():
    """A listing of the store shows them in order."""
    inputs = [keys.input_path("J", chunk) for chunk in (0, 9, 10, 99_999_999)]
    results = [keys.result_path("J", chunk, token) for chunk, token in ((0, 9), (0, 10), (1, 1), (10, 1))]
    assert inputs == sorted(inputs)
    assert results == sorted(results)


def test_two_leases_of_a_chunk_write_to_two_places():
    """A slot that was given up never writes over the result of its heir."""
    assert keys.result_path("J", 1, 1) != keys.result_path("J", 1, 2)


@pytest.mark.parametrize("path", ["jobs/J/input/00000042.arrow", "penstock-store-id"])
def test_a_redis_store_keeps_a_folder_in_a_hash(path):
    """Its size stands beside it under the same name."""
    folder = path.rpartition("/")[0]
    assert keys.redis_folder(path) == f"penstock:store:{folder}"
    assert keys.redis_folder_bytes(path) == f"penstock:size:{folder}"


def test_a_job_leaves_only_keys_of_the_table(fake_ledger, make_spec):
    """Each key in use is listed, and has the type that the table says."""
    from tasks import losses
    from tasks.store import RedisStore
    from tests.contracts.desk import Desk
    from tests.contracts.ledger import slot_status
    from workers.caches.redis import RedisCache

    desk = Desk(fake_ledger, make_spec(job="encode-0001", key="abcd"), gate=2).create()
    fake_ledger.workforce.report(slot_status())
    fake_ledger.workforce.drain("node")
    fake_ledger.may_reconcile("node", 60)
    fake_ledger.refuse(desk.spec, "node/0", "why")
    fake_ledger.redis.rpush(desk.spec.queue, "ticket")
    fake_ledger.identity.id()
    park(fake_ledger, "node", desk.spec.queue, b"garbage", "no message of Celery's")
    fake_ledger.identity.compared("STORE")
    RedisCache(fake_ledger.redis, "redis://").put({b"\xab\xcd": b"value"})
    assert losses.may_rebuild(fake_ledger, desk.spec.job, "node")
    RedisStore(fake_ledger.redis, "redis://", 1000).put("jobs/encode-0001/input/00000000.arrow", b"x")
    desk.announce(0, 1, 2)
    desk.do(0, failed_rows=1)
    lease = desk.take(1)
    fake_ledger.journal(lease, lease.journal, (0, 5))
    types, _ = table()
    stand_ins = [
        (desk.spec.job, "J"),
        (":abcd", ":KEY"),
        ("slot:node/0", "slot:S"),
        (desk.spec.queue, "penstock.OPERATION.D"),
        (r"jobs/J/input", "FOLDER"),
    ]
    used = {}
    for key in fake_ledger.redis.keys("*"):
        name = key
        for real, stand_in in stand_ins:
            name = name.replace(real, stand_in)
        used[name] = fake_ledger.redis.type(key)
    assert used == types
