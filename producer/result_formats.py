"""File formats of rows. Each turns an open file into a function that appends a chunk's table to it.

========== ==========================================================================
.npy       the vectors (n_rows, dim) or scores (n_rows,) alone; a row with an error is NaN
.parquet   all columns; zstd, row groups of bounded size
.arrow     all columns; Arrow IPC file, uncompressed so that it can be memory-mapped
.jsonl     an object a row, with its vector
========== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.columns import ResultInfo, cut, kept_values, schema_of, values_of, with_kept_columns
from producer.json_lines import number_texts, to_json
from tasks.tables import vectors_of

Append = Callable[[pa.Table], object]

#: A Parquet row group is written once it has so many rows or bytes: whichever comes first bounds the memory.
ROW_GROUP_ROWS = 100_000
ROW_GROUP_BYTES = 64 * 2**20

#: Rows whose numbers are text at one time: some 5 MB at 384 numbers a vector.
JSONL_ROWS = 1_000


@contextmanager
def npy(file: IO[bytes], info: ResultInfo) -> Iterator[Append]:
    """Write NumPy's header, then rows. Not through a memory map, whose pages would count as memory in use."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(info.vector_dtype)),
        "fortran_order": False,
        "shape": (info.n_rows, *info.value_shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    yield lambda table: file.write(values_of(table, info).data)


@contextmanager
def arrow(file: IO[bytes], info: ResultInfo) -> Iterator[Append]:
    """Write an Arrow IPC file, one record batch a chunk."""
    schema = schema_of(info)
    with pa.ipc.new_file(file, schema) as writer:
        yield lambda table: writer.write_table(with_kept_columns(table, info, schema))


@contextmanager
def parquet(file: IO[bytes], info: ResultInfo, *, has_vector: bool = True) -> Iterator[Append]:
    """Write a Parquet file, several chunks a row group."""
    schema = schema_of(info, has_vector=has_vector)
    # no dictionary where nearly every value is another: it costs time and is thrown away when it is full
    repeating = [name for name in schema.names if name not in {"row", "id", "vector"}]
    ordered = [name for name in schema.names if name != "vector"]
    with pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=repeating, write_statistics=ordered
    ) as writer:
        groups = _RowGroups(writer)
        yield lambda table: groups.append(with_kept_columns(table, info, schema))
        groups.flush()


class _RowGroups:
    """Gathers tables until they fill a row group."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pa.Table] = []

    def append(self, table: pa.Table) -> None:
        """Take a table in, and write what is full."""
        for piece in cut([table], ROW_GROUP_ROWS):
            if sum(map(len, self._tables)) + len(piece) > ROW_GROUP_ROWS:
                self.flush()
            self._tables.append(piece)
            if sum(held.nbytes for held in self._tables) >= ROW_GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write what was taken in as one row group."""
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
            self._tables.clear()


@contextmanager
def jsonl(file: IO[bytes], info: ResultInfo) -> Iterator[Append]:
    """Write an object a row, in lines."""
    yield lambda table: [file.write(_json_lines(piece, info)) for piece in cut([table], JSONL_ROWS)]


def _json_lines(table: pa.Table, info: ResultInfo) -> bytes:
    heads = table.select(["row", "id"]).to_pylist()
    tails = table.select(["n_tokens", "truncated", "error"]).to_pylist()
    kept = kept_values(table, info)
    lines = []
    for index, (head, vector, tail) in enumerate(zip(heads, _vector_texts(table), tails, strict=True)):
        tail.update((name, values[index]) for name, values in kept.items())
        lines.append(f'{to_json(head)[:-1]}, "vector": {vector}, {to_json(tail)[1:]}\n')
    return "".join(lines).encode()


def _vector_texts(table: pa.Table) -> list[str]:
    """Return each row's vector as JSON, ``null`` where there is none."""
    vectors = vectors_of(table).astype(np.float32, copy=False)  # (n_rows, dim)
    n_rows, dim = vectors.shape
    starts = pa.array(np.arange(n_rows + 1, dtype=np.int32) * dim, pa.int32())
    lists = pa.ListArray.from_arrays(starts, number_texts(vectors.reshape(-1)))
    has_vector = table["vector"].is_valid().to_pylist()
    texts = pc.binary_join(lists, ", ").to_pylist()
    return [f"[{text}]" if there else "null" for text, there in zip(texts, has_vector, strict=True)]
