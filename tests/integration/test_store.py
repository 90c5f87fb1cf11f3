"""Bytes by key: one contract for a folder, a bucket and a small store in Redis."""

from __future__ import annotations

import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks import broker, keys, object_store
from tasks.errors import BrokerFull, DamagedObject, StoreFull, StoreUnavailable, UsageError
from tasks.store import checked, open_store, store_id

KEY = "jobs/encode-0001/input/00000000.arrow"
#: Every byte there is, and the sequences that line-oriented protocols stumble over.
DATA = bytes(range(256)) + b"\r\n$-1\r\n\0" * 100
#: What a slot waits for a dead store before it hears of it, at most.
SOON_S = 15.0


@pytest.fixture
def aws(make_bucket, s3):
    """Return a client of an S3 server with an empty bucket."""
    make_bucket("bucket")
    return s3


@pytest.fixture(params=["file", "s3", "redis"])
def url(request, tmp_path):
    """Return the URL of an empty store of each kind."""
    if request.param == "file":
        return f"file://{tmp_path}/some%20store"
    if request.param == "s3":
        request.getfixturevalue("aws")
        return "s3://bucket/folder"
    return request.getfixturevalue("valkey")


def close(store):
    """Close the connections of a store in Redis; the others close theirs themselves."""
    if hasattr(store, "_redis"):
        store._redis.close()


@pytest.fixture
def new_store(url):
    """Return a store of each kind that nobody used yet."""
    store = open_store(url)
    yield store
    close(store)


@pytest.fixture
def store(new_store):
    """Return an empty store of each kind, as clients and workers have it."""
    store_id(new_store)
    return new_store


def test_an_object_comes_back_byte_for_byte(store):
    """Whatever the bytes are, also none and many."""
    for data in (DATA, b"", DATA * 2000):
        store.put(KEY, data)
        assert store.get(KEY) == data


def test_a_part_of_an_object_is_read_by_its_place(store):
    """Up to its end at most; what begins behind that is damage, as a missing object is."""
    store.put(KEY, DATA)
    assert store.get_range(KEY, 10, 300) == DATA[10:300]
    assert store.get_range(KEY, 10, len(DATA) + 50) == DATA[10:]
    for key in (KEY, f"{KEY}-not"):
        with pytest.raises(DamagedObject):
            store.get_range(key, len(DATA), len(DATA) + 1)


def test_a_later_object_replaces_an_older_one(store):
    """Writing a chunk input again after an interruption is harmless."""
    store.put(KEY, b"older and longer")
    store.put(KEY, b"newer")
    assert store.get(KEY) == b"newer"


def test_objects_do_not_mix(store):
    """Keys that begin alike are different objects."""
    names = ["a.b", "a/b.c", "a/b/c", "a/b/c.d", "jobs/J/input/00000001.arrow", "jobs/J/input/00000010.arrow"]
    for name in names:
        store.put(name, name.encode())
    assert [store.get(name) for name in names] == [name.encode() for name in names]


def test_a_missing_object_is_a_damaged_one(store):
    """The error names the key and the store, and trying again would not help."""
    with pytest.raises(DamagedObject, match=f"^{KEY} is missing in ") as caught:
        store.get(KEY)
    assert caught.value.data == {"key": KEY}
    assert store.url in str(caught.value)


def test_creating_takes_the_key_once(store):
    """Whoever comes second neither writes nor fails."""
    assert store.create(KEY, b"first")
    assert not store.create(KEY, b"second")
    assert store.get(KEY) == b"first"


def test_one_of_many_creators_wins(store):
    """Sixteen at once, several times: one is told so, and its bytes are those that stay."""
    with ThreadPoolExecutor(16) as pool:
        for turn in range(5):
            key = f"turn-{turn}"
            won = list(pool.map(lambda i, key=key: store.create(key, b"%d" % i), range(16)))
            assert sum(won) == 1
            assert store.get(key) == b"%d" % won.index(True)


def test_many_writers_of_different_objects_do_not_disturb_each_other(store):
    """As slots write the results of one job."""
    names = [keys.result_path("encode-0001", chunk, chunk + 1) for chunk in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, name.encode()), names))
        assert list(pool.map(store.get, names)) == [name.encode() for name in names]


def test_an_object_can_be_deleted_twice(store):
    """The second time there is nothing to do."""
    store.put(KEY, DATA)
    store.delete(KEY)
    store.delete(KEY)
    with pytest.raises(DamagedObject):
        store.get(KEY)
    assert store.create(KEY, b"again")


def test_a_folder_is_listed_with_all_that_is_below_it(store):
    """And with nothing beside it whose name begins alike; what was listed can be read."""
    inside = ["jobs/J/job.json", *(keys.input_path("J", chunk) for chunk in range(3)), keys.result_path("J", 0, 7)]
    for name in (*inside, "jobs/J2/input/00000000.arrow", "jobs/JJ", "penstock-store-id"):
        store.put(name, name.encode())
    found = list(store.list_keys("jobs/J/"))
    assert sorted(found) == sorted(inside)
    assert [store.get(name) for name in found] == [name.encode() for name in found]
    assert list(store.list_keys("jobs/K/")) == []


def test_a_folder_is_measured(store):
    """Its objects and their bytes, before somebody removes them."""
    store.put(keys.input_path("J", 0), b"123")
    store.put(keys.result_path("J", 0, 7), b"4567")
    store.put(keys.input_path("J2", 0), b"89")
    assert store.measure_folder("jobs/J/") == (2, 7)
    assert store.measure_folder("jobs/K/") == (0, 0)


def test_many_objects_are_listed_each_once(store):
    """More than a page of a listing."""
    names = {keys.input_path("J", chunk) for chunk in range(1100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    found = list(store.list_keys("jobs/"))
    assert (len(found), set(found)) == (1100, names)
    store.delete_folder("jobs/J/")
    assert list(store.list_keys("jobs/")) == []


def test_a_folder_is_deleted_with_all_that_is_below_it(store):
    """A second time, or with nothing in it, is as good; its neighbours stay, and it can be filled again."""
    inside, beside = keys.input_path("J", 0), keys.input_path("J2", 0)
    for name in (inside, beside, keys.result_path("J", 0, 7)):
        store.put(name, DATA)
    for _ in range(2):
        store.delete_folder("jobs/J/")
        assert list(store.list_keys("jobs/J/")) == []
    with pytest.raises(DamagedObject):
        store.get(inside)
    assert store.get(beside) == DATA
    store.put(inside, DATA)
    assert list(store.list_keys("jobs/J/")) == [inside]


def test_a_store_has_one_id_for_everybody(new_store, url):
    """Client and worker learn that they use the same store, whoever asks first."""
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: store_id(new_store), range(8)))
    again = open_store(url)
    ids.add(store_id(again))
    close(again)
    (found,) = ids
    assert len(found) == 16


def test_two_stores_have_two_ids(store, url, tmp_path):
    """A worker with another one notices; a folder beside it is another store."""
    other = open_store(f"file://{tmp_path}/other" if url.startswith("unix") else f"{url}/other")
    assert store_id(other) != store_id(store)


def test_a_whole_object_passes_its_check(store):
    """Length and checksum are those that were recorded."""
    store.put(KEY, DATA)
    assert checked(store, KEY, len(DATA), zlib.crc32(DATA)) == DATA


@pytest.mark.parametrize(
    "altered", [DATA[:-1], DATA + b"\0", b"", DATA[:100] + b"\x01" + DATA[101:]], ids=["cut", "longer", "empty", "bit"]
)
def test_an_altered_object_is_noticed(store, altered):
    """Both checksums are in the line, so that it can be followed up."""
    assert altered != DATA
    store.put(KEY, altered)
    with pytest.raises(DamagedObject, match=f"{KEY} in .* is damaged: {len(altered)} bytes") as caught:
        checked(store, KEY, len(DATA), zlib.crc32(DATA))
    assert f"{zlib.crc32(DATA):08x}" in str(caught.value)


def test_what_is_wrong_is_read_once_more(store, monkeypatch):
    """A shared folder may show a new file late; only what stays wrong is damaged."""
    get, answers = store.get, [b"torn", DATA]
    store.put(KEY, DATA)
    monkeypatch.setattr(store, "get", lambda key: answers.pop(0) if answers else get(key))
    assert checked(store, KEY, len(DATA), zlib.crc32(DATA)) == DATA
    answers[:] = [b"torn", b"torn", DATA]
    with pytest.raises(DamagedObject, match="is damaged: 4 bytes"):
        checked(store, KEY, len(DATA), zlib.crc32(DATA))


# -- Redis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_store(valkey):
    """Return a store in Redis that takes a hundred bytes a folder."""
    store = open_store(valkey, redis_limit_bytes=100)
    yield store
    close(store)


def test_a_store_in_redis_takes_so_much_and_no_more(small_store):
    """The line says what to do instead; what is in it stays readable."""
    small_store.put("jobs/J/input/1", b"x" * 60)
    with pytest.raises(StoreFull, match="Name object storage or a shared folder with --store") as caught:
        small_store.put("jobs/J/input/2", b"x" * 41)
    assert caught.value.data == {"limit_bytes": 100}
    assert small_store.get("jobs/J/input/1") == b"x" * 60
    with pytest.raises(DamagedObject):
        small_store.get("jobs/J/input/2")
    small_store.put("jobs/J/input/2", b"x" * 40)


def test_inputs_and_results_have_limits_of_their_own(small_store):
    """And so has every job."""
    for folder in ("jobs/J/input", "jobs/J/result", "jobs/K/input"):
        small_store.put(f"{folder}/1", b"x" * 100)


def test_an_object_that_is_written_again_counts_once(small_store):
    """A submission that goes on after an interruption does not fill the store."""
    for size in (90, 90, 10, 100):
        small_store.put("jobs/J/input/1", b"x" * size)
    with pytest.raises(StoreFull):
        small_store.put("jobs/J/input/1", b"x" * 101)


def test_what_was_deleted_does_not_count(small_store):
    """Room that was made can be used."""
    for number in range(5):
        small_store.put(f"jobs/J/input/{number}", b"x" * 100)
        small_store.delete(f"jobs/J/input/{number}")
        small_store.delete(f"jobs/J/input/{number}")
    assert small_store.create("jobs/J/input/5", b"x" * 70)
    with pytest.raises(StoreFull):
        small_store.put("jobs/J/input/6", b"x" * 31)


def test_a_deleted_folder_does_not_count(small_store):
    """Its size goes along with it."""
    small_store.put("jobs/J/input/1", b"x" * 100)
    small_store.delete_folder("jobs/J/")
    small_store.put("jobs/J/input/2", b"x" * 100)


def test_many_writers_together_stay_below_the_limit(small_store):
    """Looking and writing are one step."""

    def put(number):
        try:
            small_store.put(f"jobs/J/input/{number}", b"x" * 30)
        except StoreFull:
            return 0
        return 1

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(put, range(16))) == 3


# -- faults ------------------------------------------------------------------------------------------------------


def soon(call):
    """Return what StoreUnavailable says, which must come before long."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        call()
    assert time.monotonic() - started < SOON_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_redis_that_is_full_is_waited_for(small_store, valkey):
    """As the broker is that it may be: nothing is lost, and what is there can be read and removed."""
    small_store.put("jobs/J/input/1", b"one")
    with broker.connect(valkey) as operator:
        operator.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerFull, match=r"is full\. Raise its maxmemory"):
                small_store.put("jobs/J/input/2", b"two")
            assert small_store.get("jobs/J/input/1") == b"one"
            small_store.delete_folder("jobs/J/")
        finally:
            operator.config_set("maxmemory", 0)


def test_a_redis_that_is_not_there_is_a_passing_fault(tmp_path):
    """Its address is in the line, its password is not."""
    store = open_store(f"unix://:secret@{tmp_path}/nothing.sock")
    for call in (lambda: store.get(KEY), lambda: store.put(KEY, DATA)):
        line = soon(call)
        assert f"The store unix://***@{tmp_path}/nothing.sock failed" in line
        assert "secret" not in line
    close(store)


def test_an_endpoint_that_is_not_there_is_a_passing_fault(aws, monkeypatch):
    """Nobody listens on port 1; as many tries as usual take up to a minute."""
    assert object_store.RETRIES["retry_timeout"].total_seconds() <= 60
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket/folder")
    assert f"The store s3://bucket/folder failed on {KEY}" in soon(lambda: store.get(KEY))


def test_a_folder_that_cannot_be_written_is_a_passing_fault(tmp_path):
    """A file stands where a folder is needed, as on a disk that is mounted wrongly."""
    (tmp_path / "jobs").write_text("no folder")
    store = open_store(f"file://{tmp_path}")
    store_id(store)
    assert f"The store file://{tmp_path} failed on {KEY}" in soon(lambda: store.put(KEY, DATA))


def test_a_bucket_that_is_not_there_is_named(aws):
    """Nobody makes it meanwhile, so nobody waits for it."""
    store = open_store("s3://no-such-bucket/folder")
    for call in (lambda: store_id(store), lambda: store.put(KEY, DATA), lambda: store.create(KEY, DATA)):
        with pytest.raises(UsageError, match=r"^The store s3://no-such-bucket/folder is not there: make its bucket"):
            call()


@pytest.mark.parametrize(
    "url",
    [
        "", "/data", "data", "http://host/bucket", "ftp://host/x", "s3://", "gs://", "az://", "file://", "file://data",
        "file://data/x", "memory://",
    ],
)  # fmt: skip
def test_what_names_no_store_is_refused_in_one_line(url):
    """Before anything is written anywhere."""
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_objects_are_for_no_more_users_than_their_folder(tmp_path):
    """Whoever made the folder of a store says who may read it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o710)
    store = open_store(folder.as_uri())
    store_id(store)
    store.put("jobs/J/input/0.arrow", b"data")
    assert (folder / "jobs/J/input").stat().st_mode & 0o777 == 0o710
    assert (folder / "jobs/J/input/0.arrow").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    """The line names it."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"file://{tmp_path}/file"):
        open_store(f"file://{tmp_path}/file")


def test_a_store_is_shown_without_its_password(valkey_server):
    """Results name the store that they came from."""
    store = open_store(valkey_server.replace("unix://", "unix://user:secret@"))
    assert store.url == valkey_server.replace("unix://", "unix://***@")
    close(store)
