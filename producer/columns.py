"""The columns of a job's results, and chunk results checked against them.

``row``, what names it, the model's value, ``n_tokens``, ``truncated`` and ``error``, then every field of
``--keep-fields`` as a column of its own. An encode job's rows have ``id`` and ``vector``, those of a scoring job
``query_id``, ``doc_id`` and ``score``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.errors import DamagedObject, UsageError
from tasks.options import Operation, VectorDtype
from tasks.tables import vectors_of


@dataclass(frozen=True)
class Layout:
    """What the results of one operation have, and what people call it.

    Attributes:
        ids: the columns that name a row.
        value: the column with what the model made of it; null in a row with an error.
        is_vector: whether a value is several numbers, or one.
        noun: what rows are called where a person reads of them.
        pace: what rows in a second are called; a pair is one document read.
    """

    ids: tuple[str, ...]
    value: str
    is_vector: bool
    noun: str
    pace: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every result has, in their order."""
        return ("row", *self.ids, self.value, "n_tokens", "truncated", "error")


LAYOUTS: dict[Operation, Layout] = {
    "encode": Layout(("id",), "vector", is_vector=True, noun="rows", pace="rows/s"),
    "score": Layout(("query_id", "doc_id"), "score", is_vector=False, noun="pairs", pace="documents/s"),
}

#: Type of a kept field -> Arrow type of its column.
KEPT_ARROW_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "json": pa.string(),
}

#: Type of a kept field -> what its values may be. Arrow would not complain of 1.5 as int64, but store 1.
KEPT_VALUE_TYPES: dict[str, set[type]] = {
    "int64": {int},
    "float64": {int, float},
    "bool": {bool},
    "string": {str},
}


@dataclass(frozen=True)
class ResultInfo:
    """What is known of the results before the first of them is read.

    Attributes:
        n_rows: rows in all, those with an error included.
        dim: length of a vector; 1 for a score.
        vector_dtype: type of a vector's numbers; float32 for a score.
        kept_types: kept field -> key of KEPT_ARROW_TYPES, in the order of the columns; empty without
            ``--keep-fields``.
        metadata: how the results were made: model, revision, digest, options, penstock version, job.
        operation: what they are results of.
        name: what the job is called.
    """

    n_rows: int
    dim: int
    vector_dtype: VectorDtype
    kept_types: dict[str, str]
    metadata: dict[str, str]
    operation: Operation = "encode"
    name: str = ""

    @property
    def layout(self) -> Layout:
        """The columns of these results."""
        return LAYOUTS[self.operation]

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of a value, in NumPy's sense."""
        return (self.dim,) if self.layout.is_vector else ()


def check_kept(names: Iterable[str]) -> None:
    """Refuse kept fields that cannot be columns beside those of the result.

    Raises:
        UsageError: a field has the name of a result column.
    """
    columns = LAYOUTS["encode"].columns  # other operations keep no fields
    taken = [name for name in names if name in columns]
    if taken:
        raise UsageError(
            f"--keep-fields {','.join(taken)}: results have a column of that name themselves, as they have "
            f"{', '.join(columns)}. Rename the field in the corpus.",
            fields=taken,
        )


def schema_of(info: ResultInfo, *, has_vector: bool = True) -> pa.Schema:
    """Return the Arrow schema of the result columns and the kept fields, with the job's metadata."""
    types = {
        "row": pa.int64(),
        **dict.fromkeys(info.layout.ids, pa.string()),
        info.layout.value: value_type(info),
        "n_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "error": pa.string(),
    } | {name: KEPT_ARROW_TYPES[kind] for name, kind in info.kept_types.items()}
    if not has_vector:
        types.pop("vector", None)
    return pa.schema(types, metadata={f"penstock.{key}": value for key, value in info.metadata.items()})


def value_type(info: ResultInfo) -> pa.DataType:
    """Return the Arrow type of the column with the values."""
    number = pa.from_numpy_dtype(np.dtype(info.vector_dtype))
    return pa.list_(number, info.dim) if info.layout.is_vector else number


def values_of(table: pa.Table, info: ResultInfo) -> np.ndarray:
    """Return the vectors (n_rows, dim) or scores (n_rows,) of a result table, NaN in rows with an error."""
    if info.layout.is_vector:
        return vectors_of(table)
    return table[info.layout.value].combine_chunks().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def failures(table: pa.Table, layout: Layout) -> list[dict[str, Any]]:
    """Return number, ids and error of the rows that failed."""
    failed = table.select(["row", *layout.ids, "error"]).filter(table["error"].is_valid())
    return failed.to_pylist()  # type: ignore[no-any-return]


def check_tables(tables: Iterable[pa.Table], info: ResultInfo) -> Iterator[pa.Table]:
    """Pass chunk results on, as long as they are those that the job must have.

    Raises:
        DamagedObject: rows are missing, too many, doubled or out of order, or values of another type.
    """
    n_rows, last_row = 0, -1
    for table in tables:
        rows = table["row"].to_numpy()
        if not len(rows):
            continue
        if rows[0] <= last_row or (np.diff(rows) <= 0).any():
            raise DamagedObject(f"Rows {rows[0]} to {rows[-1]} of the results are not in order.")
        n_rows, last_row = n_rows + len(rows), rows[-1]
        if n_rows > info.n_rows:
            raise DamagedObject(f"The job has {info.n_rows} rows, its results have {n_rows} or more.")
        yield _conform(table, info)
    if n_rows < info.n_rows:
        raise DamagedObject(f"The job has {info.n_rows} rows, its results have {n_rows}.")


def _conform(table: pa.Table, info: ResultInfo) -> pa.Table:
    """Return the table with values of the job's type: a chunk of errors alone may have null vectors of any length."""
    name, wanted = info.layout.value, value_type(info)
    values = table[name]
    if values.type == wanted:
        return table
    if values.null_count < len(values):
        raise DamagedObject(f"A chunk has {name}s of {values.type}, the job has {name}s of {wanted}.")
    return table.set_column(table.column_names.index(name), name, pa.nulls(len(table), wanted))


def cut(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """Slice tables so that none reaches over a multiple of n_rows, counted from the first row."""
    position = 0
    for table in tables:
        start = 0
        while start < len(table):
            piece = table.slice(start, n_rows - position % n_rows)
            yield piece
            start += len(piece)
            position += len(piece)


def with_kept_columns(table: pa.Table, info: ResultInfo, schema: pa.Schema) -> pa.Table:
    """Return the columns that schema names, with the kept fields taken apart.

    Raises:
        DamagedObject: a kept value is not of its field's type.
    """
    kept = kept_values(table, info)
    columns = [
        _kept_column(name, kept[name], info.kept_types[name]) if name in kept else table[name] for name in schema.names
    ]
    return pa.table(columns, schema=schema)


def kept_values(table: pa.Table, info: ResultInfo) -> dict[str, Sequence[Any]]:
    """Read the JSON arrays of the kept column: field -> its value in every row.

    Raises:
        DamagedObject: the column is missing, or its arrays do not have a value per field.
    """
    if not info.kept_types:
        return {}
    try:
        rows = json.loads(f"[{','.join(table['kept'].to_pylist())}]")
        return dict(zip(info.kept_types, zip(*rows, strict=True), strict=True))
    except (KeyError, TypeError, ValueError) as exc:
        raise DamagedObject(f"A chunk lacks the kept fields {', '.join(info.kept_types)}.") from exc


def _kept_column(name: str, values: Sequence[Any], kind: str) -> pa.Array:
    if kind == "json":
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    elif {type(value) for value in values if value is not None} - KEPT_VALUE_TYPES[kind]:
        raise DamagedObject(f"The kept field {name} is {kind}, but has a value of another type.", field=name)
    elif kind == "float64":  # Arrow takes an int only up to 2**53
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, KEPT_ARROW_TYPES[kind])
