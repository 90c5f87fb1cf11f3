"""What the operations make of chunk inputs, and of an engine's answers."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import keys, tables
from tasks.blocks import BlockCache
from tasks.errors import DamagedObject
from tasks.operations import FETCHERS, OPERATIONS
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Computed, Pair, Passage


@pytest.fixture
def blocks(tmp_path):
    """Return a cache of three blocks of two texts each, which notes what is fetched."""

    def fetch(key: str) -> bytes:
        number = int(key[-7])
        ids = [f"id {number}-{i}" for i in range(2)]
        return tables.input_bytes(tables.text_block(ids, [f"text of {id_}" for id_ in ids]), key)

    return BlockCache(tmp_path, 2**20, fetch)


def chunk_of(*pairs: tuple[int, int, int, int]):
    """Return the input of a chunk with pairs that lie there, as a slot reads it."""
    path = keys.input_path("score-1", 0)
    data = tables.input_bytes(tables.pair_table(5, [(*pair, 9) for pair in pairs]), path)
    return tables.read_input(data, path, "score")


def test_pairs_are_looked_up_in_their_blocks(blocks, tmp_path):
    """Whatever order they are in; blocks that nothing refers to are not fetched."""
    rows = OPERATIONS["score"].read("score-1", chunk_of((2, 1, 0, 0), (0, 1, 2, 0), (2, 1, 0, 1)), blocks)
    assert [pair.query for pair in rows.rows] == ["text of id 2-1", "text of id 0-1", "text of id 2-1"]
    assert [pair.document for pair in rows.rows] == ["text of id 0-0", "text of id 2-0", "text of id 0-1"]
    assert rows.heads.to_pydict() == {
        "row": [5, 6, 7],
        "query_id": ["id 2-1", "id 0-1", "id 2-1"],
        "doc_id": ["id 0-0", "id 2-0", "id 0-1"],
    }
    assert sorted(file.stem[-1] for file in tmp_path.glob("*.arrow")) == ["0", "2"]


def test_a_text_of_many_pairs_is_in_memory_once(blocks):
    """A query has a thousand documents."""
    rows = OPERATIONS["score"].read("score-1", chunk_of(*[(0, 0, 1, 1)] * 3), blocks).rows
    assert len({id(pair.query) for pair in rows}) == len({id(pair.document) for pair in rows}) == 1


@given(lies=st.lists(st.tuples(*[st.integers(0, 9), st.integers(0, 1)] * 2), min_size=1, max_size=60))
def test_blocks_that_are_fetched_side_by_side_give_each_pair_its_texts(lies):
    """In whatever order they come; each block is asked for once."""
    arrived: list[str] = []

    class Cache:
        def get(self, job: str, block: int):
            arrived.append(f"{job} {block}")
            ids = [f"{block}-{place}" for place in range(2)]
            return tables.text_block(ids, [f"text of {id_}" for id_ in ids])

    rows = OPERATIONS["score"].read("score-1", chunk_of(*lies), Cache())
    expected = [(f"{query}-{at}", f"{document}-{place}") for query, at, document, place in lies]
    assert list(zip(*(rows.heads[name].to_pylist() for name in ("query_id", "doc_id")), strict=True)) == expected
    assert rows.rows == [Pair(f"text of {query}", f"text of {document}") for query, document in expected]
    assert len(arrived) == len({lie[0] for lie in lies}) + len({lie[2] for lie in lies})


def test_missing_blocks_are_fetched_side_by_side(tmp_path):
    """A store answers each request late; one after the other, a chunk of many blocks would wait for all of them."""
    together = threading.Barrier(FETCHERS)

    def fetch(key: str) -> bytes:
        together.wait(20)
        return tables.input_bytes(tables.text_block(["a"], ["b"]), key)

    pairs = [(block, 0, block, 0) for block in range(FETCHERS)]
    rows = OPERATIONS["score"].read("score-1", chunk_of(*pairs), BlockCache(tmp_path, 2**20, fetch))
    assert rows.rows == [Pair("b", "b")] * FETCHERS


def test_after_damage_nothing_is_fetched_any_more(tmp_path):
    """A folder that is deleted then would come again, with texts in it."""
    fetched: list[str] = []

    def fetch(key: str) -> bytes:
        if key == keys.texts_path("score-1", 0):
            raise DamagedObject("it is missing", key=key)
        fetched.append(key)
        return tables.input_bytes(tables.text_block(["a"], ["b"]), key)

    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        cache = BlockCache(Path(folder) / "blocks", 2**30, fetch)
        with pytest.raises(DamagedObject, match="it is missing"):
            OPERATIONS["score"].read("score-1", chunk_of(*[(block, 0, block, 0) for block in range(500)]), cache)
        n_fetched = len(fetched)
    assert len(fetched) == n_fetched
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pair", [(0, 2, 0, 0), (0, 0, 1, 7), (0, 0, 1, -1)])
def test_a_place_without_a_text_is_damage(blocks, pair):
    """Rather than another pair's score."""
    with pytest.raises(DamagedObject, match="has fewer texts than a chunk refers to"):
        OPERATIONS["score"].read("score-1", chunk_of(pair), blocks)


def test_the_inputs_of_operations_are_told_apart():
    """By their columns, whatever a ticket says."""
    path = keys.input_path("score-1", 0)
    data = tables.input_bytes(tables.pair_table(0, [(0, 0, 0, 0, 4)]), path)
    with pytest.raises(DamagedObject, match="does not begin with the columns row, id, text"):
        tables.read_input(data, path)
    with pytest.raises(DamagedObject, match="does not begin with the columns id, text"):
        tables.read_block(data, path)


def test_sizes_are_those_of_the_work():
    """Time limits count both texts of each pair; the job's bytes are those of its documents."""
    score = OPERATIONS["score"]
    assert score.size([Pair("ab", "cde"), Pair("ab", "")]) == 7
    assert OPERATIONS["encode"].size([Passage("ab"), Passage("cde")]) == 5
    assert tables.input_size(chunk_of((0, 0, 0, 0), (0, 0, 0, 1))) == 18
    assert tables.input_size(tables.input_table(0, ["a", "b"], ["x", "é"])) == 3
    assert score.row_of("a") == Pair("a", "a")


def test_a_result_keeps_ids_and_leaves_failed_scores_out(blocks):
    """The same columns as for vectors, but the score."""
    rows = OPERATIONS["score"].read("score-1", chunk_of((0, 0, 1, 0), (0, 0, 1, 1)), blocks)
    computed = Computed(
        values=np.array([[0.25], [0.0]], np.float32),
        n_tokens=np.array([3, 0], np.int32),
        truncated=np.array([True, False]),
        errors=[None, "it failed"],
    )
    result = OPERATIONS["score"].result(rows.heads, computed, ScoreOptions())
    assert result.to_pylist() == [
        {
            "row": 5,
            "query_id": "id 0-0",
            "doc_id": "id 1-0",
            "score": 0.25,
            "n_tokens": 3,
            "truncated": True,
            "error": None,
        },
        {
            "row": 6,
            "query_id": "id 0-0",
            "doc_id": "id 1-1",
            "score": None,
            "n_tokens": 0,
            "truncated": False,
            "error": "it failed",
        },
    ]
    whole = tables.read_whole(tables.to_bytes(result, {"a": "b"}), "result")
    assert whole.equals(result)


def test_a_vector_that_does_not_fit_is_an_error():
    """The other rows keep theirs."""

    class Encoder:
        def encode(self, texts, options, on_batch):
            vectors = np.array([[1.0, 2.0], [1e6, 0.0]], np.float32)
            return Computed(vectors, np.ones(2, np.int32), np.zeros(2, bool), [None, None])

    computed = OPERATIONS["encode"].run(
        Encoder(), [Passage("a"), Passage("b")], EncodeOptions(vector_dtype="float16"), lambda _: None
    )
    assert computed.errors[0] is None
    assert "--vector-dtype float32" in str(computed.errors[1])
