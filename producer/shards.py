"""Results as a folder of shards: vectors as .npy, the other columns as .parquet, row by row in lockstep.

========================= ======================================================================
vectors-00000.npy         the vectors of the first rows, (rows, dim); scores have none
rows-00000.parquet        all other columns of the same rows, a score among them
errors.jsonl              rows with an error, if there are any
manifest.json             which rows are in which shard; written last: without it the folder is not whole
========================= ======================================================================
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from producer.columns import Layout, ResultInfo, check_tables, cut, failures
from producer.drafts import draft_file
from producer.json_lines import json_line
from producer.packing import Opener
from producer.ranking import best_rows
from producer.result_formats import npy, parquet

#: A shard ends at so many rows or bytes of vectors, whichever comes first: what one machine loads with ease.
SHARD_ROWS = 100_000
SHARD_BYTES = 256 * 2**20

MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"

#: The files of a shard: what the manifest calls each, where it is, and how it is written.
_Files = dict[str, tuple[Path, Opener[pa.Table]]]

_SHARD_FILE = re.compile(r"(vectors-\d{5,}\.npy|rows-\d{5,}\.parquet|errors\.jsonl|manifest\.json)")


def is_shard_file(name: str) -> bool:
    """Tell whether a file in a folder of shards is one of ours: nothing else is ever replaced or removed."""
    return _SHARD_FILE.fullmatch(name) is not None


def write_shards(
    tables: Iterable[pa.Table], info: ResultInfo, folder: Path, top_k: int | None, done: Callable[[Path], object]
) -> None:
    """Write the results into a folder, holding one table at a time.

    Args:
        tables: chunk results in the order of the rows.
        info: what they are together.
        folder: an existing, empty folder.
        top_k: rank the pairs of each query, and keep so many; all rows in their order if None.
        done: called with each file when it is whole, the manifest last; may take the file away.

    Raises:
        DamagedObject: the tables are not what info says.
    """
    shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // _value_bytes(info)))
    shards: list[dict[str, Any]] = []
    first_row = 0
    with draft_file(folder / ERRORS, drop_empty=True) as errors:
        rows = best_rows(note_errors(check_tables(tables, info), info.layout, errors), top_k)
        for number, pieces in enumerate(_shards(rows, shard_rows)):
            most_rows = min(shard_rows, info.n_rows - first_row)
            files = _files(info, folder, number)
            n_rows = _write_shard(pieces, replace(info, n_rows=most_rows), files)
            for path, _ in files.values():
                done(path)
            names = {kind: path.name for kind, (path, _) in files.items()}
            shards.append({**names, "first_row": first_row, "rows": n_rows})
            first_row += n_rows
    if (folder / ERRORS).exists():
        done(folder / ERRORS)
    with draft_file(folder / MANIFEST) as manifest:
        manifest.write(_manifest(info, first_row, shards))
    done(folder / MANIFEST)


def _value_bytes(info: ResultInfo) -> int:
    return max(1, info.dim * np.dtype(info.vector_dtype).itemsize)


def _shards(tables: Iterable[pa.Table], n_rows: int) -> Iterator[Iterator[pa.Table]]:
    """Yield the pieces of each n_rows rows, the last time of fewer. Pieces are to be read before the next ones."""
    position = 0

    def shard_of(piece: pa.Table) -> int:
        nonlocal position
        position += len(piece)
        return (position - 1) // n_rows

    for _, pieces in itertools.groupby(cut(tables, n_rows), shard_of):
        yield pieces


def _files(info: ResultInfo, folder: Path, number: int) -> _Files:
    """Return the files of a shard."""
    rows: _Files = {"rows_file": (folder / f"rows-{number:05}.parquet", partial(parquet, has_vector=False))}
    if not info.layout.is_vector:
        return rows
    return {"vectors": (folder / f"vectors-{number:05}.npy", npy), **rows}


def _write_shard(pieces: Iterator[pa.Table], info: ResultInfo, files: _Files) -> int:
    """Move rows into the files of a shard. Returns how many."""
    n_rows = 0
    with ExitStack() as opened:
        appends = [
            opened.enter_context(write_as(opened.enter_context(draft_file(path)), info))
            for path, write_as in files.values()
        ]
        for piece in pieces:
            n_rows += len(piece)
            for append in appends:
                append(piece)
    return n_rows


def note_errors(tables: Iterable[pa.Table], layout: Layout, file: IO[bytes]) -> Iterator[pa.Table]:
    """Pass tables on, writing a line for each row with an error."""
    for table in tables:
        if table["error"].null_count < len(table):
            file.writelines(map(json_line, failures(table, layout)))
        yield table


def _manifest(info: ResultInfo, n_rows: int, shards: list[dict[str, Any]]) -> bytes:
    manifest = {
        "rows": n_rows,
        **({"dim": info.dim, "dtype": info.vector_dtype} if info.layout.is_vector else {}),
        "metadata": info.metadata,
        "shards": shards,
    }
    return json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n"
