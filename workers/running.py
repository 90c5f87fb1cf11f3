"""Running tokenised rows in batches within the budget. Running out of memory is a normal event here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from workers.batching import cost, plan_batches
from workers.budget import TokenBudget
from workers.memory import is_out_of_memory

log = logging.getLogger(__name__)

#: Seconds before a single row without memory is tried once more.
PAUSE_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class Ran(Generic[T]):
    """A batch that was run.

    Attributes:
        rows: (n_rows,) numbers of its rows.
        tokens: what it cost.
        output: what the model made of it; None for a single row for which the device has no memory.
    """

    rows: np.ndarray
    tokens: int
    output: T | None


def run_batches(
    lengths: np.ndarray,
    budget: TokenBudget,
    run: Callable[[np.ndarray], T],
    on_batch: Callable[[int], None],
    *,
    pads: bool,
) -> Iterator[Ran[T]]:
    """Run all rows, longest first, and yield each batch when it is done.

    A batch for which there is no memory is run in halves, down to one row, and the rows behind it go in smaller batches
    too, since the budget was lowered.

    Args:
        lengths: (n_rows,) tokens of each row.
        budget: of a batch; lowered and raised as batches fail and pass.
        run: runs the rows of these numbers.
        on_batch: told the tokens of each batch before it runs.
        pads: whether the model pads a batch to its longest row.
    """
    waiting = plan_batches(lengths, budget.tokens, pads=pads)[::-1]
    while waiting:
        batch = waiting.pop()
        tokens = cost(lengths[batch], pads=pads)
        if tokens > budget.tokens and len(batch) > 1:  # it has become less since the batches were planned
            rest = np.concatenate([batch, *waiting[::-1]])
            waiting = [rest[rows] for rows in plan_batches(lengths[rest], budget.tokens, pads=pads)][::-1]
            continue
        on_batch(tokens)
        if len(batch) == 1:
            output = run_patiently(partial(run, batch), budget)
        else:
            output = attempt(partial(run, batch))
            if output is None:
                log.warning("No memory for a batch", extra={"action": "split", "rows": len(batch), "tokens": tokens})
                budget.lower()
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]
                continue
        if output is not None:
            budget.passed(tokens)
        yield Ran(batch, tokens, output)


def run_patiently(run: Callable[[], T], budget: TokenBudget) -> T | None:
    """Run what cannot be halved; if there is no memory, once more after a pause. Returns None if there is none then."""
    output = attempt(run)
    if output is not None:
        return output
    log.warning("No memory for what cannot be halved", extra={"action": "retry"})
    budget.lower()
    time.sleep(PAUSE_S)  # somebody else may have needed the memory for a moment
    return attempt(run)


def attempt(run: Callable[[], T]) -> T | None:
    """Run something; None if there is no memory for it. The exception, which holds its tensors, is gone then."""
    try:
        return run()
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
    return None
