"""Running rows so that one that fails takes no other along.

Two mechanisms, for two ways to fail. An exception is bisected within the process, down to the row. What ends the
process itself is found over several attempts, from the ledger's journal of the rows at work (tasks/journal.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from tasks.errors import EngineBroken, PenstockError, place_of
from tasks.journal import STRIKES, Journal, Span
from tasks.ports import Encoded

log = logging.getLogger(__name__)

#: Encodes some rows; whatever it raises is the fault of one of them, or of the engine.
Encode = Callable[[Sequence[str]], Encoded]
#: Notes the rows that go to work next. False: the lease was lost.
Note = Callable[[Span], bool]

#: What every engine can encode. A number is put behind it, so that no cache knows its vector.
PROBE = "probe"


class LeaseLost(Exception):
    """The rows belong to another slot by now, or their job ended."""


def encode_bisecting(encode: Encode, texts: Sequence[str], dim: int) -> Encoded:
    """Encode rows; if that fails, encode them in halves, down to the rows that fail, which get an error.

    Args:
        encode: encodes n texts.
        texts: n of them.
        dim: length of a vector, for error rows.

    Raises:
        EngineBroken: a text that every engine can encode fails as well.
        PenstockError: the engine knows what is wrong, and that it is no row's fault.
    """
    try:
        return encode(texts)
    except PenstockError:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever an engine raises, the other rows go on
        if len(texts) > 1:
            log.warning("Rows failed, running them in halves", extra={"action": "split", "rows": len(texts)})
            middle = len(texts) // 2
            halves = [encode_bisecting(encode, half, dim) for half in (texts[:middle], texts[middle:])]
            return join(halves)
        _check_alive(encode, exc)
        return error_rows([f"the engine failed on this row: {place_of(exc)}"], dim)


def encode_in_probation(encode: Encode, texts: Sequence[str], dim: int, journal: Journal, note: Note) -> Encoded:
    """Encode the rows of a chunk that ended processes: in groups that are noted before, condemned rows left out.

    Raises:
        LeaseLost: a group could not be noted.
    """
    parts = {
        (row, row + 1): error_rows([f"this row alone ended {STRIKES} processes, the last so: {how}"], dim)
        for row, how in journal.condemned.items()
        if row < len(texts)
    }
    for first, stop in journal.groups(len(texts)):
        if not note((first, stop)):
            raise LeaseLost
        parts[first, stop] = encode_bisecting(encode, texts[first:stop], dim)
    return join([parts[span] for span in sorted(parts)])


def error_rows(errors: Sequence[str], dim: int) -> Encoded:
    """Return what an engine would for rows that all have an error."""
    n_rows = len(errors)
    return Encoded(
        vectors=np.zeros((n_rows, dim), np.float32),
        n_tokens=np.zeros(n_rows, np.int32),
        truncated=np.zeros(n_rows, bool),
        errors=list(errors),
    )


def join(parts: Sequence[Encoded]) -> Encoded:
    """Put parts of a chunk together, in their order."""
    return Encoded(
        vectors=np.concatenate([part.vectors for part in parts]),
        n_tokens=np.concatenate([part.n_tokens for part in parts]),
        truncated=np.concatenate([part.truncated for part in parts]),
        errors=[error for part in parts for error in part.errors],
        padded_tokens=sum(part.padded_tokens for part in parts),
        duplicate_rows=sum(part.duplicate_rows for part in parts),
        cached_rows=sum(part.cached_rows for part in parts),
        memory_splits=sum(part.memory_splits for part in parts),
        tokenise_s=sum(part.tokenise_s for part in parts),
        model_s=sum(part.model_s for part in parts),
    )


def _check_alive(encode: Encode, fault: Exception) -> None:
    """Tell a bad row from a broken device, which fails on everything."""
    try:
        encode([f"{PROBE} {time.time_ns()}"])
    except Exception as exc:
        raise EngineBroken(f"The engine fails on everything, first with {place_of(fault)}.") from exc
