"""Chunk inputs as a slot reads them, for those who look at a job from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from producer.submission import PATIENCE_S
from tasks import keys, tables
from tasks.blocks import BlockCache
from tasks.messages import JobSpec
from tasks.retrying import retry_transient
from tasks.store import Store

#: More than a client fetches of one job.
_NO_LIMIT_BYTES = 2**40


def fetch_input(store: Store, spec: JobSpec, chunk: int) -> pa.Table:
    """Return a chunk input.

    Raises:
        DamagedObject: the store has it not, or not whole.
    """
    path = keys.input_path(spec.job, chunk)
    return tables.read_input(_fetch(store, path), path, spec.operation)


@contextmanager
def temporary_blocks(store: Store) -> Iterator[BlockCache]:
    """Keep text blocks on disk for a while, each fetched once."""
    with tempfile.TemporaryDirectory(prefix="penstock-texts-") as folder:
        yield BlockCache(Path(folder), _NO_LIMIT_BYTES, lambda key: _fetch(store, key))


def _fetch(store: Store, key: str) -> bytes:
    return retry_transient(lambda: store.get(key), for_s=PATIENCE_S)
