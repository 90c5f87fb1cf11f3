"""A sample of a job's rows, and how far its results are from what the same rows give one at a time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from producer import collect
from producer.chunk_inputs import fetch_input, temporary_blocks
from tasks import tables
from tasks.blocks import BlockCache
from tasks.errors import DamagedObject, JobFailed, UsageError
from tasks.ledger import Ledger
from tasks.messages import JobSpec
from tasks.operations import OPERATIONS
from tasks.options import EncodeOptions
from tasks.store import Store

#: Chunks that rows are drawn from at most: each is read whole, but for the texts of rows that are not drawn.
MOST_CHUNKS = 20
#: Ranks of a query that are compared.
TOP = 10
#: Largest difference that other batches explain in fp32; other devices and precisions have larger ones.
TOLERANCE = 1e-4
#: The same with quantised weights: an input that differs by its last bit may be rounded to another step.
QUANTISED_TOLERANCE = 0.01


@dataclass(frozen=True)
class Sample:
    """Rows of a job with their results.

    Attributes:
        rows: (n,) texts, or pairs.
        values: (n, dim) the job's vectors or scores.
        queries: (n,) the query of each pair; empty strings for texts.
        documents: (n,) likewise.
    """

    rows: list[Any]
    values: np.ndarray
    queries: list[str]
    documents: list[str]


def draw(ledger: Ledger, store: Store, spec: JobSpec, *, size: int, seed: int) -> Sample:
    """Draw rows without error from random chunks; of a scoring job whole queries, as far as a chunk holds them.

    Raises:
        JobFailed: the job has no results yet.
        UsageError: every row drawn is an error row.
    """
    status = ledger.status(spec.job)
    if status.state != "done":
        raise JobFailed(f"Job {spec.job} is {status.state}; verify it when it is done.", job=spec.job)
    choice = random.Random(seed)  # noqa: S311 - a sample, not a secret
    chunks = choice.sample(range(status.chunks), min(status.chunks, MOST_CHUNKS, size))
    with temporary_blocks(store) as blocks:
        parts: list[Sample] = []
        for i, chunk in enumerate(chunks):
            missing = size - sum(len(part.rows) for part in parts)
            parts.append(_draw_from(ledger, store, spec, blocks, chunk, -(-missing // (len(chunks) - i)), choice))
    sample = Sample(
        rows=list(itertools.chain.from_iterable(part.rows for part in parts)),
        values=np.concatenate([part.values for part in parts]),
        queries=list(itertools.chain.from_iterable(part.queries for part in parts)),
        documents=list(itertools.chain.from_iterable(part.documents for part in parts)),
    )
    if not sample.rows:
        raise UsageError(f"Job {spec.job}: all rows drawn are error rows; `penstock status {spec.job}` shows why.")
    return sample


def _draw_from(  # noqa: PLR0913 - where from, and how much
    ledger: Ledger, store: Store, spec: JobSpec, blocks: BlockCache, chunk: int, size: int, choice: random.Random
) -> Sample:
    result = next(collect.fetch(ledger, store, spec.job, [chunk]), None)
    if result is None:
        raise DamagedObject(
            f"The result of chunk {chunk} of job {spec.job} is damaged; `penstock collect {spec.job}` computes it "
            "again."
        )
    values = tables.vectors_of(result) if spec.operation == "encode" else _scores_of(result)
    has_pairs = "query_id" in result.column_names
    queries = result["query_id"].to_pylist() if has_pairs else [""] * len(result)
    documents = result["doc_id"].to_pylist() if has_pairs else [""] * len(result)
    usable = [i for i, error in enumerate(result["error"].to_pylist()) if error is None]
    chosen = (
        _whole_queries(usable, queries, size, choice) if has_pairs else choice.sample(usable, min(size, len(usable)))
    )
    inputs = fetch_input(store, spec, chunk).take(chosen)  # of texts that many rows share, only those of the few
    return Sample(
        rows=list(OPERATIONS[spec.operation].read(spec.job, inputs, blocks).rows) if chosen else [],
        values=values[chosen],
        queries=[queries[i] for i in chosen],
        documents=[documents[i] for i in chosen],
    )


def _scores_of(result: pa.Table) -> np.ndarray:
    return result["score"].to_numpy()[:, None]  # type: ignore[no-any-return]


def _whole_queries(usable: Sequence[int], queries: Sequence[str], size: int, choice: random.Random) -> list[int]:
    """Choose rows query by query, until there are enough; of the last query as many as are missing."""
    by_query: dict[str, list[int]] = {}
    for i in usable:
        by_query.setdefault(queries[i], []).append(i)
    chosen: list[int] = []
    for query in choice.sample(sorted(by_query), len(by_query)):
        chosen += by_query[query][: size - len(chosen)]
    return chosen


@dataclass(frozen=True)
class Verdict:
    """How far a job's results are from the recomputed ones.

    Attributes:
        rows: that were compared.
        failed: that could not be computed here, though the job has results for them.
        largest: largest difference of any number; mean: over all numbers.
        least_cosine: of a vector with its counterpart; mean_cosine: of all; None for scores.
        queries: with two pairs or more in the sample; equal_ranks: mean share of the first ten ranks that hold the
            same document; None for vectors.
    """

    rows: int
    failed: int
    largest: float
    mean: float
    least_cosine: float | None
    mean_cosine: float | None
    queries: int
    equal_ranks: float | None

    def passes(self, tolerance: float) -> bool:
        """Whether every row could be computed, and none is further off than that."""
        return not self.failed and self.largest <= tolerance


def compare(sample: Sample, table: pa.Table, spec: JobSpec) -> Verdict:
    """Compare a sample with what was recomputed of it.

    Args:
        sample: of n rows.
        table: ``value`` and ``error``, n rows.
        spec: the job's.
    """
    again = np.array(table["value"].to_pylist(), np.float32)  # (n, dim)
    if isinstance(spec.options, EncodeOptions):
        again = again.astype(spec.options.vector_dtype).astype(np.float32)
    before = sample.values.astype(np.float32)
    fine = table["error"].is_null().to_numpy(zero_copy_only=False)
    differences = np.abs(again - before)[fine]
    cosines = None if spec.operation == "score" else _cosines(again[fine], before[fine])
    shares = [_equal_ranks(sample, before, again, rows) for rows in _queries(sample, fine)]
    return Verdict(
        rows=len(differences),
        failed=int((~fine).sum()),
        largest=float(differences.max(initial=0.0)),
        mean=float(differences.mean()) if len(differences) else 0.0,
        least_cosine=None if cosines is None else float(cosines.min(initial=1.0)),
        mean_cosine=None if cosines is None else float(cosines.mean()) if len(cosines) else 1.0,
        queries=len(shares),
        equal_ranks=float(np.mean(shares)) if shares else None,
    )


def _cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of (n, dim) with its counterpart; 1 for two vectors of zeros."""
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    products: np.ndarray = (some * others).sum(axis=1)
    cosines: np.ndarray = np.divide(products, lengths, out=np.ones(len(some), np.float32), where=lengths > 0)
    return cosines


def _queries(sample: Sample, fine: np.ndarray) -> list[list[int]]:
    """Return the rows of each query that has two or more."""
    by_query: dict[str, list[int]] = {}
    for i in np.flatnonzero(fine):
        by_query.setdefault(sample.queries[i], []).append(int(i))
    return [rows for query, rows in by_query.items() if query and len(rows) > 1]


def _equal_ranks(sample: Sample, before: np.ndarray, again: np.ndarray, rows: list[int]) -> float:
    """Return the share of a query's first ranks that hold the same document."""
    ranked = [sorted(rows, key=lambda i: (-scores[i, 0], sample.documents[i]))[:TOP] for scores in (before, again)]
    return float(np.mean([one == other for one, other in zip(*ranked, strict=True)]))
