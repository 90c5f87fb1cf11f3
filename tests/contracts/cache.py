"""What every cache does, whatever it keeps the values in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

#: Names as long as SHA-256's, and values with every byte there is.
NAMES = [bytes([i % 256, i // 256]) * 16 for i in range(2500)]
VALUES = {name: bytes(range(256)) + name for name in NAMES}


class CacheContract:
    """A subclass has a fixture ``open_one`` that opens the same cache each time."""

    @pytest.fixture
    def cache(self, open_one):
        """Return an empty cache."""
        return open_one()

    def test_what_was_put_is_there(self, cache):
        """Of many names the known ones are found, more than one query or exchange takes."""
        assert cache.get(NAMES) == {}
        cache.put({name: VALUES[name] for name in NAMES[::2]})
        assert cache.get(NAMES) == {name: VALUES[name] for name in NAMES[::2]}

    def test_nothing_is_asked_and_kept(self, cache):
        """A chunk without new texts puts nothing."""
        cache.put({})
        assert cache.get([]) == {}

    def test_a_name_may_be_asked_twice(self, cache):
        """Where equal texts are not left out before."""
        cache.put({NAMES[0]: b"value"})
        assert cache.get([NAMES[0], NAMES[1], NAMES[0]]) == {NAMES[0]: b"value"}

    def test_the_newest_value_stays(self, cache):
        """A damaged one is written over."""
        cache.put({NAMES[0]: b"old", NAMES[1]: b"one"})
        cache.put({NAMES[0]: b"new"})
        assert cache.get(NAMES[:2]) == {NAMES[0]: b"new", NAMES[1]: b"one"}

    def test_others_see_what_was_put(self, cache, open_one):
        """Slots share it, and the next job finds it."""
        cache.put({NAMES[0]: b"value"})
        other = open_one()
        assert other.get(NAMES[:1]) == {NAMES[0]: b"value"}

    def test_many_may_open_and_write_at_once(self, open_one):
        """As the slots of a node do when they start."""

        def work(start):
            cache = open_one()
            for i in range(start, len(NAMES), 80):
                cache.put({name: VALUES[name] for name in NAMES[i : i + 20]})

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(0, 80, 10)))
        assert open_one().get(NAMES) == VALUES
