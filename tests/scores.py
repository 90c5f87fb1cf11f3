"""Chunk results of scoring jobs, as workers make them, for tests of what becomes of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from producer.columns import ResultInfo
from tasks.ports import Computed
from tasks.tables import score_result

METADATA = {"model": "reranker", "job": "score-0123", "options": '{"template": {"name": "plain"}}'}


class Scored(NamedTuple):
    """A pair and what the model made of it; None is an error."""

    query: str
    doc: str
    score: float | None


def chunk(first_row: int, pairs: Sequence[Scored]) -> pa.Table:
    """Build the result of a chunk."""
    heads = pa.table(
        {
            "row": pa.array(range(first_row, first_row + len(pairs)), pa.int64()),
            "query_id": pa.array([pair.query for pair in pairs], pa.string()),
            "doc_id": pa.array([pair.doc for pair in pairs], pa.string()),
        }
    )
    computed = Computed(
        values=np.array([[0.0 if pair.score is None else pair.score] for pair in pairs], np.float32).reshape(
            len(pairs), 1
        ),
        n_tokens=np.full(len(pairs), 7, np.int32),
        truncated=np.zeros(len(pairs), bool),
        errors=["it failed" if pair.score is None else None for pair in pairs],
    )
    return score_result(heads, computed)


def chunks(pairs: Sequence[Scored], cuts: Iterable[int] = ()) -> list[pa.Table]:
    """Build the results of a job whose chunks end at these rows."""
    borders = [0, *sorted(cut for cut in cuts if cut < len(pairs)), len(pairs)]
    return [chunk(start, pairs[start:stop]) for start, stop in itertools.pairwise(borders)]


def info_of(pairs: Sequence[Scored], name: str = "") -> ResultInfo:
    """Return what is known of a job's results."""
    return ResultInfo(len(pairs), 1, "float32", {}, METADATA, operation="score", name=name)
