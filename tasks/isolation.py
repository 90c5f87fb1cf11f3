"""Running rows so that one that fails takes no other along.

Two mechanisms, for two ways to fail. An exception is bisected within the process, down to the row. What ends the
process itself is found over several attempts, from the ledger's journal of the rows at work (tasks/journal.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tasks.errors import EngineBroken, PenstockError, place_of
from tasks.journal import STRIKES, Journal, Span
from tasks.ports import Computed

log = logging.getLogger(__name__)

R = TypeVar("R")

#: Notes the rows that go to work next. False: the lease was lost.
Note = Callable[[Span], bool]

#: What every engine can read. A number is put behind it, so that no cache knows its vector.
PROBE = "probe"


class LeaseLost(Exception):
    """The rows belong to another slot by now, or their job ended."""


@dataclass(frozen=True)
class Runner(Generic[R]):
    """Runs rows of one kind.

    Attributes:
        run: computes some rows; whatever it raises is the fault of one of them, or of the engine.
        probe: makes a row of a text that is like another row.
        dim: length of a value, for error rows.
    """

    run: Callable[[Sequence[R]], Computed]
    probe: Callable[[str, R], R]
    dim: int


def run_bisecting(runner: Runner[R], rows: Sequence[R]) -> Computed:
    """Run rows; if that fails, run them in halves, down to the rows that fail, which get an error.

    Raises:
        EngineBroken: a row that every engine can compute fails as well.
        PenstockError: the engine knows what is wrong, and that it is no row's fault.
    """
    try:
        return runner.run(rows)
    except PenstockError:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever an engine raises, the other rows go on
        if len(rows) > 1:
            log.warning("Rows failed, running them in halves", extra={"action": "split", "rows": len(rows)})
            middle = len(rows) // 2
            return join([run_bisecting(runner, half) for half in (rows[:middle], rows[middle:])])
        _check_alive(runner, rows[0], exc)
        return error_rows([f"the engine failed on this row: {place_of(exc)}"], runner.dim)


def run_in_probation(runner: Runner[R], rows: Sequence[R], journal: Journal, note: Note) -> Computed:
    """Run the rows of a chunk that ended processes: in groups that are noted before, condemned rows left out.

    Raises:
        LeaseLost: a group could not be noted.
    """
    parts = {
        (row, row + 1): error_rows([f"this row alone ended {STRIKES} processes, the last so: {how}"], runner.dim)
        for row, how in journal.condemned.items()
        if row < len(rows)
    }
    for first, stop in journal.groups(len(rows)):
        if not note((first, stop)):
            raise LeaseLost
        parts[first, stop] = run_bisecting(runner, rows[first:stop])
    return join([parts[span] for span in sorted(parts)])


def error_rows(errors: Sequence[str], dim: int) -> Computed:
    """Return what an engine would for rows that all have an error."""
    n_rows = len(errors)
    return Computed(
        values=np.zeros((n_rows, dim), np.float32),
        n_tokens=np.zeros(n_rows, np.int32),
        truncated=np.zeros(n_rows, bool),
        errors=list(errors),
    )


def join(parts: Sequence[Computed]) -> Computed:
    """Put parts of a chunk together, in their order."""
    return Computed(
        values=np.concatenate([part.values for part in parts]),
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


def _check_alive(runner: Runner[R], row: R, fault: Exception) -> None:
    """Tell a bad row from a broken device, which fails on everything."""
    try:
        runner.run([runner.probe(f"{PROBE} {time.time_ns()}", row)])
    except Exception as exc:
        raise EngineBroken(f"The engine fails on everything, first with {place_of(fault)}.") from exc
