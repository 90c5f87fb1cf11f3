"""What ``penstock bench encode`` compares: its options, and the contenders that follow from them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.errors import UsageError
from workers.bench.plan import CEILING, PENSTOCK, SENTENCE_TRANSFORMERS, BenchPlan, Contender, cores, spread
from workers.bench.ways import cut, share

#: Peers that run on several processes or threads. sentence-transformers itself is one process with all cores.
PARALLEL_PEERS = ("pool", "threads", "processes", "ray")
PEERS = (SENTENCE_TRANSFORMERS, *PARALLEL_PEERS)

#: Pieces that each process gets: the rule of sentence-transformers' own pool, and here everybody's.
PIECES_A_PROCESS = 10


def installed_peers() -> tuple[str, ...]:
    """Return all peers that can run here: Ray is no dependency."""
    return tuple(name for name in PEERS if name != "ray" or importlib.util.find_spec("ray") is not None)


class EncodePlan(BenchPlan):
    """The options of ``penstock bench encode``.

    Attributes:
        corpus: JSON Lines with a ``text`` each; without it, a corpus is made up.
        corpus_name: what to call it.
        max_rows: rows that a made-up corpus has.
    """

    corpus: Path | None = None
    corpus_name: str = "made up"
    max_rows: Annotated[int, Field(ge=1)] = 2000
    peers: Annotated[tuple[str, ...], Field(default_factory=installed_peers)]

    def check(self) -> None:
        """Refuse peers that do not exist, and a bench without the one that the others are compared with."""
        unknown = [name for name in self.peers if name not in PEERS]
        if unknown:
            raise UsageError(f"--peers {unknown[0]}: there is no such peer; there are {', '.join(PEERS)}.")
        if SENTENCE_TRANSFORMERS not in self.peers:
            raise UsageError(f"--peers: {SENTENCE_TRANSFORMERS} is what the others are compared with; add it.")


def contenders(plan: EncodePlan, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
    """Return who is compared in one precision.

    Args:
        plan: the options.
        precision: fp32 or fp16.
        batch_sizes: those of sentence-transformers that are run, the best one first; the other peers take that one.
    """
    shapes = spread(plan)
    found = [Contender(PENSTOCK, n, threads, precision) for n, threads in shapes]
    found += [Contender(SENTENCE_TRANSFORMERS, 1, cores(), precision, size) for size in batch_sizes]
    for name in PARALLEL_PEERS:
        if name in plan.peers:
            found += [Contender(name, n, threads, precision, batch_sizes[0]) for n, threads in shapes]
    found.append(Contender(CEILING, *shapes[-1], precision))
    return found


def rows_of_a_piece(n_rows: int, processes: int) -> int:
    """Return the rows of a piece, when each process gets ten of them."""
    return max(1, math.ceil(n_rows / processes / PIECES_A_PROCESS))


def pieces(name: str, n_rows: int, processes: int) -> list[range]:
    """Return the rows of each call of ``encode`` that a peer makes, in order."""
    if name in {"threads", "processes"}:
        return share(n_rows, processes)
    if name in {"pool", "ray"}:
        return cut(n_rows, rows_of_a_piece(n_rows, processes))
    return [range(n_rows)]
