"""Rows of several languages: an engine is called once for each, as models take one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.isolation import error_rows, join
from tasks.options import EncodeOptions
from tasks.ports import Computed, Encoder, Passage


def encode_by_language(
    engine: Encoder, rows: Sequence[Passage], options: EncodeOptions, on_batch: Callable[[int], None]
) -> Computed:
    """Encode rows in their order, language by language if the job's records name them.

    A row is an error row if nothing says its language, or the model does not have it.
    """
    if options.language_field is None:
        return engine.encode([row.text for row in rows], options, on_batch)
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.language or options.language or "", []).append(i)
    parts = [
        _encode(engine, [rows[i].text for i in chosen], language, options, on_batch)
        for language, chosen in places.items()
    ]
    return join(parts).take(np.argsort(np.concatenate(list(places.values()))).tolist())


def _encode(
    engine: Encoder, texts: list[str], language: str, options: EncodeOptions, on_batch: Callable[[int], None]
) -> Computed:
    """Encode texts of one language."""
    if not language:
        problem: str | None = (
            f"the record has no language in field {options.language_field!r}, and no --language is given"
        )
    else:
        options = options.model_copy(update={"language": language, "language_field": None})
        problem = engine.check(options)
    if problem:
        return error_rows([problem] * len(texts), engine.dim(options))
    return engine.encode(texts, options, on_batch)
