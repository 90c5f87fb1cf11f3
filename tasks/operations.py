"""What the operations differ in: how a chunk input becomes rows, what the engine does with them, what is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import keys, tables
from tasks.blocks import BlockCache
from tasks.errors import DamagedObject
from tasks.languages import encode_by_language
from tasks.options import EncodeOptions, Operation, ScoreOptions
from tasks.ports import Computed, Encoder, Pair, Passage, Scorer

R = TypeVar("R")
OnBatch = Callable[[int], None]

#: Text blocks of a chunk that are fetched at a time. A store answers a request in some 20 to 100 ms.
FETCHERS = 8


class Rows(Generic[R]):
    """The rows of a chunk.

    Attributes:
        rows: what the engine gets.
        heads: the columns that go from the input to the result.
    """

    def __init__(self, rows: Sequence[R], heads: pa.Table) -> None:
        self.rows = rows
        self.heads = heads


class Work(ABC, Generic[R]):
    """One operation, as the task body needs it."""

    @abstractmethod
    def read(self, job: str, inputs: pa.Table, blocks: BlockCache) -> Rows[R]:
        """Return the rows of a chunk input.

        Raises:
            DamagedObject: a text block is missing or damaged.
        """

    @abstractmethod
    def row_of(self, text: str, like: R | None = None) -> R:
        """Make a row of a text, to try an engine with.

        Args:
            text: what is in it.
            like: a row of a job that the engine takes; without it, the row is for options that say all.
        """

    @abstractmethod
    def size(self, rows: Sequence[R]) -> int:
        """Return the characters of rows, by which their time is limited."""

    @abstractmethod
    def run(self, engine: Any, rows: Sequence[R], options: Any, on_batch: OnBatch) -> Computed:
        """Let an engine compute rows."""

    @abstractmethod
    def result(self, heads: pa.Table, computed: Computed, options: Any) -> pa.Table:
        """Return the chunk result."""


class Encode(Work[Passage]):
    """Texts become vectors."""

    def read(self, job: str, inputs: pa.Table, blocks: BlockCache) -> Rows[Passage]:  # noqa: ARG002 - it has its texts
        """Take the texts out of the input, and their languages where it has them."""
        texts = inputs["text"].to_pylist()
        if "language" not in inputs.column_names:
            return Rows(list(map(Passage, texts)), inputs.drop_columns("text"))
        languages = pc.fill_null(inputs["language"], "").to_pylist()
        return Rows(list(map(Passage, texts, languages)), inputs.drop_columns(["text", "language"]))

    def row_of(self, text: str, like: Passage | None = None) -> Passage:
        """Make a row of a text, in the language of another row: the model has that one."""
        return Passage(text, like.language if like else "")

    def size(self, rows: Sequence[Passage]) -> int:
        """Count characters."""
        return sum(len(row.text) for row in rows)

    def run(self, engine: Encoder, rows: Sequence[Passage], options: EncodeOptions, on_batch: OnBatch) -> Computed:
        """Encode texts. Rows whose numbers the stored type cannot hold are error rows, rather than infinities."""
        computed = encode_by_language(engine, rows, options, on_batch)
        dtype = options.vector_dtype
        for i in np.flatnonzero(np.abs(computed.values).max(axis=1) > np.finfo(dtype).max):
            computed.errors[i] = f"a number of the vector does not fit into {dtype}; use --vector-dtype float32"
            computed.values[i] = 0.0
        return computed

    def result(self, heads: pa.Table, computed: Computed, options: EncodeOptions) -> pa.Table:
        """Put vectors beside their rows' ids."""
        return tables.encode_result(heads, computed, options.vector_dtype)


class Score(Work[Pair]):
    """Pairs of query and document become scores."""

    def read(self, job: str, inputs: pa.Table, blocks: BlockCache) -> Rows[Pair]:
        """Look up the texts; each is one string in memory, however many pairs have it."""
        query_ids, queries = _look_up(job, inputs["query_block"], inputs["query_place"], blocks)
        doc_ids, documents = _look_up(job, inputs["document_block"], inputs["document_place"], blocks)
        heads = pa.table({"row": inputs["row"], "query_id": query_ids, "doc_id": doc_ids})
        return Rows(list(map(Pair, queries, documents)), heads)

    def row_of(self, text: str, like: Pair | None = None) -> Pair:  # noqa: ARG002 - all pairs are alike
        """Make a pair of a text and itself."""
        return Pair(text, text)

    def size(self, rows: Sequence[Pair]) -> int:
        """Count characters, of a query once for each document."""
        return sum(len(query) + len(document) for query, document in rows)

    def run(self, engine: Scorer, rows: Sequence[Pair], options: ScoreOptions, on_batch: OnBatch) -> Computed:
        """Score pairs."""
        return engine.score(rows, options, on_batch)

    def result(self, heads: pa.Table, computed: Computed, options: ScoreOptions) -> pa.Table:  # noqa: ARG002
        """Put scores beside their pairs' ids."""
        return tables.score_result(heads, computed)


OPERATIONS: dict[Operation, Work[Any]] = {"encode": Encode(), "score": Score()}


def _look_up(
    job: str, in_blocks: pa.ChunkedArray, places: pa.ChunkedArray, cache: BlockCache
) -> tuple[list[str], list[str]]:
    """Return ids and texts by block and place."""
    wanted = np.stack([in_blocks.to_numpy(), places.to_numpy()], axis=1)  # (n_rows, 2)
    distinct, at = np.unique(wanted, axis=0, return_inverse=True)
    blocks, starts = np.unique(distinct[:, 0], return_index=True)

    def take(block: int, some: np.ndarray) -> pa.Table:
        return _take(cache.get(job, block), some, keys.texts_path(job, block))

    with ThreadPoolExecutor(FETCHERS) as threads:
        taken = list(threads.map(take, blocks.tolist(), np.split(distinct[:, 1], starts[1:])))
    ids = [id_ for found in taken for id_ in found["id"].to_pylist()]
    texts = [text for found in taken for text in found["text"].to_pylist()]
    order = at.reshape(-1).tolist()  # NumPy 2.0 alone returns (n_rows, 1)
    return [ids[i] for i in order], [texts[i] for i in order]


def _take(block: pa.Table, places: np.ndarray, key: str) -> pa.Table:
    try:
        return block.take(places)
    except IndexError as exc:
        raise DamagedObject(f"{key} has fewer texts than a chunk refers to.", key=key) from exc
