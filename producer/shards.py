"""Results as a folder of shards: vectors as .npy, the other columns as .parquet, row by row in lockstep.

========================= ======================================================================
vectors-00000.npy         the vectors of the first rows, (rows, dim)
rows-00000.parquet        all other columns of the same rows
errors.jsonl              rows with an error, if there are any
manifest.json             which rows are in which shard; written last: without it the folder is not whole
========================= ======================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from producer.columns import Layout, ResultInfo, check_tables, cut, failures
from producer.drafts import draft_file
from producer.result_formats import json_line, npy, parquet

#: A shard ends at so many rows or bytes of vectors, whichever comes first: what one machine loads with ease.
SHARD_ROWS = 100_000
SHARD_BYTES = 256 * 2**20

MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"

_SHARD_FILE = re.compile(r"(vectors-\d{5,}\.npy|rows-\d{5,}\.parquet|errors\.jsonl|manifest\.json)")


def is_shard_file(name: str) -> bool:
    """Tell whether a file in a folder of shards is one of ours: nothing else is ever replaced or removed."""
    return _SHARD_FILE.fullmatch(name) is not None


def write_shards(tables: Iterable[pa.Table], info: ResultInfo, folder: Path, done: Callable[[Path], object]) -> None:
    """Write the results into a folder, holding one table at a time.

    Args:
        tables: chunk results in the order of the rows.
        info: what they are together.
        folder: an existing, empty folder.
        done: called with each file when it is whole, the manifest last; may take the file away.

    Raises:
        DamagedObject: the tables are not what info says.
    """
    shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // _vector_bytes(info)))
    shards = []
    with draft_file(folder / ERRORS, drop_empty=True) as errors:
        pieces = cut(note_errors(check_tables(tables, info), info.layout, errors), shard_rows)
        for number, first_row in enumerate(range(0, info.n_rows, shard_rows)):
            n_rows = min(shard_rows, info.n_rows - first_row)
            files = folder / f"vectors-{number:05}.npy", folder / f"rows-{number:05}.parquet"
            _write_shard(pieces, replace(info, n_rows=n_rows), *files)
            for file in files:
                done(file)
            shards.append(
                {
                    "vectors": files[0].name,
                    "rows_file": files[1].name,
                    "first_row": first_row,
                    "rows": n_rows,
                }
            )
        list(pieces)  # none is left, or check_tables says so
    if (folder / ERRORS).exists():
        done(folder / ERRORS)
    with draft_file(folder / MANIFEST) as manifest:
        manifest.write(_manifest(info, shards))
    done(folder / MANIFEST)


def _vector_bytes(info: ResultInfo) -> int:
    return max(1, info.dim * np.dtype(info.vector_dtype).itemsize)


def _write_shard(pieces: Iterator[pa.Table], info: ResultInfo, vectors: Path, rows: Path) -> None:
    """Move the next info.n_rows rows into a pair of files."""
    with (
        draft_file(vectors) as vectors_file,
        draft_file(rows) as rows_file,
        npy(vectors_file, info) as append_vectors,
        parquet(rows_file, info, has_vector=False) as append_rows,
    ):
        n_left = info.n_rows
        while n_left:
            piece = next(pieces)
            append_vectors(piece)
            append_rows(piece)
            n_left -= len(piece)


def note_errors(tables: Iterable[pa.Table], layout: Layout, file: IO[bytes]) -> Iterator[pa.Table]:
    """Pass tables on, writing a line for each row with an error."""
    for table in tables:
        if table["error"].null_count < len(table):
            file.writelines(map(json_line, failures(table, layout)))
        yield table


def _manifest(info: ResultInfo, shards: list[dict[str, Any]]) -> bytes:
    manifest = {
        "rows": info.n_rows,
        "dim": info.dim,
        "dtype": info.vector_dtype,
        "metadata": info.metadata,
        "shards": shards,
    }
    return json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n"
