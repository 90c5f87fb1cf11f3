"""Arrow tables of chunk inputs and chunk results, and their bytes.

Chunk input: one row per record of the corpus.

======== ======== ==========================================================================
row      int64    number of the record in the corpus, from 0
id       string   the record's own id, or its row number
text     string   what is encoded
language string   of the text, empty if its record names none; only there with ``--language-field``
kept     string   JSON array with the values of ``--keep-fields``; only there with that option
======== ======== ==========================================================================

Chunk input of ``score``: one row per pair. Its texts lie in text blocks, each sent once however many pairs it is in.

============== ======== ====================================================================
row            int64    number of the pair in the job, from 0
query_block    int32    the text block with the query
query_place    int32    its place there, from 0
document_block int32    as above, of the document
document_place int32
n_bytes        int32    UTF-8 bytes of the document
============== ======== ====================================================================

Text block: ``id`` string and ``text`` string.

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

Chunk result of ``score``: ``row``, ``query_id`` and ``doc_id`` string, ``score`` float32 (null in a row with an error),
then ``n_tokens``, ``truncated`` and ``error`` as above.

A table is stored as one Arrow IPC file, so a torn object has no footer and cannot be read as a whole one. The schema's
metadata holds a hash of the content, ``penstock.content``, so that an altered object is noticed without the ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DamagedObject
from tasks.options import Operation, VectorDtype

if TYPE_CHECKING:
    from tasks.ports import Computed

# pyarrow looks for pandas once, at an early array, and drops whatever is raised meanwhile. Now, so that it is no Ctrl-C
# to a command at work.
pa.array([""])

#: Where a table's metadata holds the hash of its content.
CONTENT = "penstock.content"

#: Where a chunk input's metadata holds its own key.
_KEY = "penstock.object"
#: The columns that the chunk inputs of each operation begin with.
_INPUTS: dict[Operation, pa.Schema] = {
    "encode": pa.schema({"row": pa.int64(), "id": pa.string(), "text": pa.string()}),
    "score": pa.schema(
        {
            "row": pa.int64(),
            "query_block": pa.int32(),
            "query_place": pa.int32(),
            "document_block": pa.int32(),
            "document_place": pa.int32(),
            "n_bytes": pa.int32(),
        }
    ),
}
_BLOCK = pa.schema({"id": pa.string(), "text": pa.string()})


def input_table(
    first_row: int,
    ids: Sequence[str],
    texts: Sequence[str],
    kept: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
) -> pa.Table:
    """Build a chunk input from rows that follow each other in the corpus."""
    columns: dict[str, Any] = {
        "row": pa.array(np.arange(first_row, first_row + len(ids), dtype=np.int64)),
        "id": pa.array(ids, pa.string()),
        "text": pa.array(texts, pa.string()),
    }
    if languages is not None:
        columns["language"] = pa.array(languages, pa.string())
    if kept is not None:
        columns["kept"] = pa.array(kept, pa.string())
    return pa.table(columns)


def pair_table(first_row: int, pairs: Sequence[Sequence[int]]) -> pa.Table:
    """Build the chunk input of pairs that follow each other in the job.

    Args:
        first_row: number of the first one.
        pairs: (n_rows, 5): what each has in the columns after ``row``, in their order.
    """
    schema = _INPUTS["score"]
    columns = [pa.array(column) for column in np.array(pairs, np.int32).T]
    rows = pa.array(np.arange(first_row, first_row + len(pairs), dtype=np.int64))
    return pa.Table.from_arrays([rows, *columns], schema=schema)


def text_block(ids: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Build a text block."""
    return pa.table({"id": ids, "text": texts}, schema=_BLOCK)


def input_size(inputs: pa.Table) -> int:
    """Return the UTF-8 bytes of the texts, or documents, of a chunk input."""
    sizes = inputs["n_bytes"] if "n_bytes" in inputs.column_names else pc.binary_length(inputs["text"])
    return pc.sum(sizes).as_py() or 0


def score_result(heads: pa.Table, computed: Computed) -> pa.Table:
    """Join the ids of n pairs with what the engine made of them.

    Args:
        heads: row, query_id and doc_id.
        computed: the engine's answer, with values (n, 1).
    """
    is_error = np.array([error is not None for error in computed.errors], dtype=bool)
    return pa.table(
        {
            **{name: heads[name] for name in heads.column_names},
            "score": pa.array(computed.values[:, 0], pa.float32(), mask=is_error),
            "n_tokens": pa.array(computed.n_tokens, pa.int32()),
            "truncated": pa.array(computed.truncated, pa.bool_()),
            "error": pa.array(computed.errors, pa.string()),
        }
    )


def encode_result(inputs: pa.Table, encoded: Computed, dtype: VectorDtype) -> pa.Table:
    """Join a chunk input with what the engine made of it.

    Args:
        inputs: a chunk input of n rows.
        encoded: the engine's answer: vectors (n, dim) float32 and a note per row.
        dtype: type of the stored vector.
    """
    is_error = np.array([error is not None for error in encoded.errors], dtype=bool)
    # (n, dim): a list array over the flat buffer, without a Python object per number
    flat = pa.array(np.ascontiguousarray(encoded.values, dtype=np.dtype(dtype)).reshape(-1))
    mask = pa.array(is_error) if is_error.any() else None
    vectors = pa.FixedSizeListArray.from_arrays(flat, encoded.values.shape[1], mask=mask)
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
    """Serialise a table as one Arrow IPC file, with string metadata and the content's hash in its schema.

    The same table and metadata give the same bytes.
    """
    table = table.replace_schema_metadata(dict(metadata or {}))
    table = table.replace_schema_metadata({**metadata_of(table), CONTENT: content_hash(table)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def from_bytes(data: bytes | pa.Buffer, name: str) -> pa.Table:
    """Read a table back whose bytes are known to be right.

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


def read_whole(data: bytes | pa.Buffer, name: str) -> pa.Table:
    """Read a table back whose bytes may have suffered, and compare its content with its hash.

    Raises:
        DamagedObject: the bytes are torn or altered.
    """
    table = from_bytes(data, name)
    try:
        table.validate(full=True)  # offsets that lead out of the bytes would end the process later on
        is_whole = metadata_of(table).get(CONTENT) == content_hash(table)
    except (pa.ArrowException, ValueError) as exc:
        raise DamagedObject(f"{name} is damaged: {len(data)} bytes that make no sense.", key=name) from exc
    if not is_whole:
        raise DamagedObject(f"{name} is damaged: its content is not what was written.", key=name)
    return table


def input_bytes(table: pa.Table, key: str) -> bytes:
    """Serialise a chunk input or text block with the key under which it is stored, so that no other takes its place."""
    return to_bytes(table, {_KEY: key})


def read_input(data: bytes, name: str, operation: Operation = "encode") -> pa.Table:
    """Read the chunk input of an operation back.

    Raises:
        DamagedObject: it is not what the client wrote; the line says what to do.
    """
    return _read_sent(data, name, _INPUTS[operation])


def read_block(data: bytes, name: str) -> pa.Table:
    """Do the same for a text block."""
    return _read_sent(data, name, _BLOCK)


def read_local_block(data: pa.Buffer, name: str) -> pa.Table:
    """Read a host's copy of a text block back.

    Raises:
        DamagedObject: it is not what the client wrote; the store may have it whole.
    """
    return _as_sent(read_whole(data, name), name, _BLOCK)


def _read_sent(data: bytes, name: str, schema: pa.Schema) -> pa.Table:
    try:
        return _as_sent(read_whole(data, name), name, schema)
    except DamagedObject as exc:
        line = f"{exc} Only the corpus has these rows: submit it again."
        raise DamagedObject(line, **exc.data) from exc


def _as_sent(table: pa.Table, name: str, schema: pa.Schema) -> pa.Table:
    n_columns = len(schema)
    if table.schema.names[:n_columns] != schema.names or table.schema.types[:n_columns] != schema.types:
        wanted = ", ".join(schema.names)
        raise DamagedObject(f"{name} is damaged: it does not begin with the columns {wanted}.", key=name)
    if metadata_of(table).get(_KEY) != name:
        raise DamagedObject(f"{name} is another object of that kind.", key=name)
    return table


def metadata_of(table: pa.Table) -> dict[str, str]:
    """Return the strings in a table's schema."""
    return {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}


def content_hash(table: pa.Table) -> str:
    """Return 32 hex digits of what a table holds, however it lies in memory.

    SHA-256 over its metadata, and over name, type, nulls, lengths of texts and values of each column.
    """
    metadata = {name: value for name, value in metadata_of(table).items() if name != CONTENT}
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name} {column.type} {len(column)};".encode())
        _hash_array(digest, _one_array(column))
    return digest.hexdigest()[:32]


def _hash_array(digest: hashlib._Hash, array: pa.Array) -> None:
    digest.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_fixed_size_list(array.type):
        _hash_array(digest, array.flatten())  # without what lies under nulls
        return
    array = array.drop_null()
    if pa.types.is_string(array.type):
        digest.update(pc.binary_length(array).to_numpy(zero_copy_only=False).tobytes())
        digest.update(_text_bytes(array))
    elif pa.types.is_primitive(array.type):
        digest.update(array.to_numpy(zero_copy_only=False).tobytes())
    else:
        raise ValueError(f"a column of type {array.type}")


def _text_bytes(array: pa.Array) -> memoryview:
    """Return the bytes of all texts of an array, one after the other."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[ends[0] : ends[-1]]


def vectors_of(table: pa.Table) -> np.ndarray:
    """Return the vectors of a result table as (n_rows, dim), NaN in rows with an error."""
    column = _one_array(table["vector"])
    dim = column.type.list_size
    flat = column.values.slice(column.offset * dim, len(column) * dim).to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(column), dim)
    if column.null_count:
        vectors = vectors.copy()
        vectors[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return vectors  # type: ignore[no-any-return]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without copying where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
