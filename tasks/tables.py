"""Arrow tables of chunk inputs and chunk results, and their bytes.

Chunk input: one row per record of the corpus.

======== ======== ==========================================================================
row      int64    number of the record in the corpus, from 0
id       string   the record's own id, or its row number
text     string   what is encoded
kept     string   JSON array with the values of ``--keep-fields``; only there with that option
======== ======== ==========================================================================

Chunk result of ``encode``: one row per input row, in the same order.

========= =============================== =================================================
row       int64                           as in the input
id        string                          as in the input
vector    fixed_size_list<float, dim>     float32 or float16; null in a row with an error
n_tokens  int32                           tokens fed to the model, special tokens included
truncated bool                            the text had more tokens than the model takes
error     string                          why there is no vector; null where there is one
kept      string                          as in the input
========= =============================== =================================================

A table is stored as one Arrow IPC file, so a torn object has no footer and cannot be read as a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tasks.errors import DamagedObject
from tasks.messages import VectorDtype

if TYPE_CHECKING:
    from tasks.ports import Encoded


def input_table(
    first_row: int, ids: Sequence[str], texts: Sequence[str], kept: Sequence[str] | None = None
) -> pa.Table:
    """Build a chunk input from rows that follow each other in the corpus."""
    columns: dict[str, Any] = {
        "row": pa.array(np.arange(first_row, first_row + len(ids), dtype=np.int64)),
        "id": pa.array(ids, pa.string()),
        "text": pa.array(texts, pa.string()),
    }
    if kept is not None:
        columns["kept"] = pa.array(kept, pa.string())
    return pa.table(columns)


def encode_result(inputs: pa.Table, encoded: Encoded, dtype: VectorDtype) -> pa.Table:
    """Join a chunk input with what the engine made of it.

    Args:
        inputs: a chunk input of n rows.
        encoded: the engine's answer: vectors (n, dim) float32 and a note per row.
        dtype: type of the stored vector.
    """
    is_error = np.array([error is not None for error in encoded.errors], dtype=bool)
    # (n, dim): a list array over the flat buffer, without a Python object per number
    flat = pa.array(np.ascontiguousarray(encoded.vectors, dtype=np.dtype(dtype)).reshape(-1))
    mask = pa.array(is_error) if is_error.any() else None
    vectors = pa.FixedSizeListArray.from_arrays(flat, encoded.vectors.shape[1], mask=mask)
    columns: dict[str, Any] = {
        "row": inputs["row"],
        "id": inputs["id"],
        "vector": vectors,
        "n_tokens": pa.array(encoded.n_tokens, pa.int32()),
        "truncated": pa.array(encoded.truncated, pa.bool_()),
        "error": pa.array(encoded.errors, pa.string()),
    }
    if "kept" in inputs.column_names:
        columns["kept"] = inputs["kept"]
    return pa.table(columns)


def to_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise a table as one Arrow IPC file, with string metadata in its schema."""
    if metadata:
        table = table.replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def from_bytes(data: bytes, name: str) -> pa.Table:
    """Read a table back.

    Args:
        data: the bytes of one Arrow IPC file.
        name: the object's key, for the error.

    Raises:
        DamagedObject: the bytes are no whole Arrow IPC file.
    """
    try:
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except (pa.ArrowException, OSError) as exc:
        raise DamagedObject(f"{name} is damaged: {len(data)} bytes that are no whole Arrow file.", key=name) from exc


def vectors_of(table: pa.Table) -> np.ndarray:
    """Return the vectors of a result table as (n_rows, dim), NaN in rows with an error."""
    column = table["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # an empty table has no chunk to combine
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    dim = column.type.list_size
    flat = column.values.slice(column.offset * dim, len(column) * dim).to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(column), dim)
    if column.null_count:
        vectors = vectors.copy()
        vectors[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return vectors  # type: ignore[no-any-return]
