"""Ways of running a loaded model over rows: in this process, in threads that share it, in processes with one each."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

#: Seconds that all processes of a peer get to load their model.
LOAD_S = 600.0


@dataclass(frozen=True)
class Setup:
    """How a peer works.

    Attributes:
        devices: one for each process; ``cpu`` or ``cuda:0``.
        threads: of each process.
    """

    model: str
    devices: tuple[str, ...]
    threads: int
    precision: str
    batch_size: int

    @property
    def processes(self) -> int:
        """How many."""
        return len(self.devices)


class Timed(NamedTuple):
    """What the rows became.

    Attributes:
        values: (n_rows, dim) vectors or (n_rows,) scores, in the order of the rows.
        began: when the work began, in seconds of the clock.
        ended: likewise.
    """

    values: np.ndarray
    began: float
    ended: float


S = TypeVar("S", bound=Setup)
#: Computes rows.
Run = Callable[[Sequence[Any]], np.ndarray]
#: Loads the model of a setup onto a device, and returns what runs it.
Begin = Callable[[S, str], Run]
#: Has a setup ready to run rows.
Way = Callable[[S, Begin[S]], AbstractContextManager[Run]]


def time_rows(ready: AbstractContextManager[Run], rows: Sequence[Any], *, n_warm: int) -> Timed:
    """Load a peer, warm it up, and time how it computes the rows once. Loading and warming up do not count.

    Args:
        ready: has the peer loaded.
        rows: n of them.
        n_warm: how many it runs before.
    """
    with ready as run:
        run(list(itertools.islice(itertools.cycle(rows), n_warm)))
        began = time.time()
        values = run(rows)
        return Timed(values, began, time.time())


@contextmanager
def alone(setup: S, begin: Begin[S]) -> Iterator[Run]:
    """One process, all cores."""
    yield begin(setup, setup.devices[0])


@contextmanager
def threads(setup: S, begin: Begin[S]) -> Iterator[Run]:
    """Threads that share one model, each with its share of the rows."""
    run = begin(setup, setup.devices[0])
    with ThreadPoolExecutor(setup.processes) as executor:
        yield lambda rows: np.concatenate(list(executor.map(run, _shares(rows, setup.processes))))


@contextmanager
def processes(setup: S, begin: Begin[S]) -> Iterator[Run]:
    """Processes with a model each, each with its share of the rows."""
    context = multiprocessing.get_context("spawn")
    all_ready = context.Barrier(setup.processes + 1)
    devices = context.SimpleQueue()
    for device in setup.devices:
        devices.put(device)
    with context.Pool(setup.processes, _begin, (setup, begin, devices, all_ready)) as pool:
        all_ready.wait(LOAD_S)
        yield lambda rows: np.concatenate(pool.map(_run_share, _shares(rows, setup.processes), chunksize=1))


#: In a process of ``processes``: what runs its model.
_own: list[Run] = []


def _begin(setup: S, begin: Begin[S], devices: Any, all_ready: Any) -> None:
    _own.append(begin(setup, devices.get()))
    all_ready.wait(LOAD_S)


def _run_share(rows: Sequence[Any]) -> np.ndarray:
    return _own[0](rows)


def _shares(rows: Sequence[Any], n_shares: int) -> list[Sequence[Any]]:
    return [rows[piece.start : piece.stop] for piece in share(len(rows), n_shares)]


def share(n_rows: int, n_shares: int) -> list[range]:
    """Return the rows of equal shares, in order."""
    return cut(n_rows, math.ceil(n_rows / n_shares))


def cut(n_rows: int, size: int) -> list[range]:
    """Return the rows of pieces of a size, in order."""
    return [range(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
