"""Which format the extension of ``--out`` stands for: those of vectors, and those of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa

from producer.packing import Opener, gzipped, zstd
from producer.ranked_formats import query_lines, trec_run
from producer.ranking import Ranking, best_rows, rank
from producer.result_formats import arrow, jsonl, npy, parquet
from tasks.errors import UsageError
from tasks.options import Operation

T = TypeVar("T")


@dataclass(frozen=True)
class Format(Generic[T]):
    """How results become a file.

    Attributes:
        open: turns an open file into a function that appends an item to it.
        arrange: makes the items of chunk results and ``--top-k``.
        lists_errors: whether rows with an error are named in a file beside, because the file itself cannot say them.
        needs_plain_ids: whether ids are fields of a line.
    """

    open: Opener[T]
    arrange: Callable[[Iterable[pa.Table], int | None], Iterable[T]]
    lists_errors: bool = False
    needs_plain_ids: bool = False


_TABLES = {
    ".parquet": Format[pa.Table](parquet, best_rows),
    ".arrow": Format[pa.Table](arrow, best_rows),
}
_NPY = {".npy": Format[pa.Table](npy, best_rows, lists_errors=True)}

#: Extension of a file name -> its format, for each operation.
FORMATS: dict[Operation, dict[str, Format[Any]]] = {
    "encode": {
        **_NPY,
        **_TABLES,
        ".jsonl": Format[pa.Table](jsonl, best_rows),
        ".jsonl.gz": Format[pa.Table](gzipped(jsonl), best_rows),
        ".jsonl.zst": Format[pa.Table](zstd(jsonl), best_rows),
    },
    "score": {
        **{
            f"{extension}{packed}": Format[Ranking](
                write_as, rank, lists_errors=extension != ".jsonl", needs_plain_ids=extension != ".jsonl"
            )
            for extension, plain in ((".trec", trec_run), (".run", trec_run), (".jsonl", query_lines))
            for packed, write_as in (("", plain), (".gz", gzipped(plain)), (".zst", zstd(plain)))
        },
        **_TABLES,
        **_NPY,
    },
}


def format_of(name: str, operation: Operation, top_k: int | None) -> Format[Any]:
    """Return the format that a file name's extension stands for.

    Raises:
        UsageError: results of this operation have no such format, or it cannot be cut at ``--top-k``.
    """
    known = FORMATS[operation]
    extension = next((extension for extension in known if name.endswith(extension)), None)
    if extension is None:
        raise UsageError(
            f"--out {name}: no format has that extension. Known are {', '.join(known)} for {operation} results; "
            "or a folder, with a slash at its end.",
            name=name,
        )
    if extension in _NPY and top_k is not None:
        raise UsageError(
            f"--out {name}: .npy has the scores of all pairs in their order, so --top-k cannot go with it. "
            "Write .trec, .jsonl or .parquet.",
            name=name,
        )
    return known[extension]


def check_top_k(top_k: int | None, operation: Operation) -> None:
    """Refuse a cut that cannot be made.

    Raises:
        UsageError: it is not at least 1, or there are no queries to rank by.
    """
    if top_k is None:
        return
    if operation != "score":
        raise UsageError(f"--top-k is for scoring jobs; this is an {operation} job, whose rows have no ranks.")
    if top_k < 1:
        raise UsageError(f"--top-k {top_k}: keep at least 1 document of a query.")
