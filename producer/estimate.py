"""What a job would be: counted from the corpus, and estimated where only the model knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from producer.chunking import cut_chunks
from producer.corpus import Opened
from producer.rows import Row
from producer.text_blocks import TextBlock
from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings

#: UTF-8 bytes of a token, roughly: four to five in English, three in Chinese, two in Cyrillic scripts.
BYTES_PER_TOKEN = 4
#: Bytes of a result row beside its vector: row number, id, token count, flags.
ROW_BYTES = 40


def estimate(rows: Iterable[Row], settings: Settings, how: EncodeOptions) -> dict[str, Any]:
    """Read the whole corpus and return rows, chunks, bytes, estimated tokens and store size."""
    n_rows = n_chunks = n_bytes = 0
    for chunk in cut_chunks(rows, chunk_rows=settings.chunk_rows, chunk_bytes=settings.chunk_bytes, keeps=False):
        n_rows += chunk.n_rows
        n_chunks += 1
        n_bytes += chunk.n_bytes
    dim = how.truncate_dim or _dim_of(str(settings.model))
    width = 2 if how.vector_dtype == "float16" else 4
    return {
        "rows": n_rows,
        "chunks": n_chunks,
        "bytes": n_bytes,
        "estimated_tokens": n_bytes // BYTES_PER_TOKEN,
        "estimated_store_bytes": None if dim is None else 2 * n_bytes + n_rows * (width * dim + ROW_BYTES),
    }


def estimate_pairs(opened: Opened, settings: Settings) -> dict[str, Any]:
    """Read the whole input of a scoring job and return pairs, chunks and bytes."""
    n_pairs = n_chunks = n_bytes = sent_bytes = 0
    for part in opened.parts(settings):
        if isinstance(part, TextBlock):
            sent_bytes += part.table().nbytes
        else:
            n_pairs += part.n_rows
            n_chunks += 1
            n_bytes += part.n_bytes
    return {
        "pairs": n_pairs,
        "chunks": n_chunks,
        "document_bytes": n_bytes,
        "estimated_document_tokens": n_bytes // BYTES_PER_TOKEN,
        "sent_bytes": sent_bytes,
    }


def _dim_of(model: str) -> int | None:
    """Return the vector length that a local model's configuration states, or None."""
    try:
        spec = ModelSpec.parse(model)
        if spec.engine == "laser":
            return weights.LASER_DIM
        folder = Path(weights.locate(spec))
        dim = json.loads((folder / "config.json").read_text()).get("hidden_size")
    except (OSError, ValueError, ModelNotFound):
        return None
    return dim if isinstance(dim, int) else None
