"""What is compared: the options of a bench, and the contenders that follow from them."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import explain
from workers import machine

PENSTOCK = "penstock"
SENTENCE_TRANSFORMERS = "sentence-transformers"
CEILING = "ceiling"
#: Peers that run on several processes or threads. sentence-transformers itself is one process with all cores.
PARALLEL_PEERS = ("pool", "threads", "processes", "ray")
PEERS = (SENTENCE_TRANSFORMERS, *PARALLEL_PEERS)

#: Batch sizes among which the best one of sentence-transformers is looked for.
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
#: Of those, how many are run on the whole corpus: what was best on a sample may come second there.
FINALISTS = 2
#: Pieces that each process gets: the rule of sentence-transformers' own pool, and here everybody's.
PIECES_A_PROCESS = 10


def installed_peers() -> tuple[str, ...]:
    """Return all peers that can run here: Ray is no dependency."""
    return tuple(name for name in PEERS if name != "ray" or importlib.util.find_spec("ray") is not None)


class BenchPlan(BaseModel):
    """The options of ``penstock bench encode``.

    Attributes:
        corpus: JSON Lines with a ``text`` each; without it, a corpus is made up.
        corpus_name: what to call it.
        max_rows: rows that a made-up corpus has.
        processes: numbers of processes that penstock and the peers with several are run with.
        out: the JSON file; the plot goes beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    corpus: Path | None = None
    corpus_name: str = "made up"
    max_rows: Annotated[int, Field(ge=1)] = 2000
    peers: Annotated[tuple[str, ...], Field(default_factory=installed_peers)]
    processes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    rounds: Annotated[int, Field(ge=1)] = 3
    out: Path

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a plan.

        Raises:
            UsageError: an option is wrong; the line names it.
        """
        try:
            plan = cls.model_validate_json(text)
        except ValidationError as exc:
            raise UsageError(f"bench: {explain(exc)}.") from exc
        unknown = [name for name in plan.peers if name not in PEERS]
        if unknown:
            raise UsageError(f"--peers {unknown[0]}: there is no such peer; there are {', '.join(PEERS)}.")
        if SENTENCE_TRANSFORMERS not in plan.peers:
            raise UsageError(f"--peers: {SENTENCE_TRANSFORMERS} is what the others are compared with; add it.")
        if ModelSpec.parse(plan.model).engine == "fake":
            raise UsageError(f"--model {plan.model}: no peer can run it; name a real one.")
        return plan


@dataclass(frozen=True)
class Contender:
    """One way of encoding the corpus."""

    name: str
    processes: int
    threads: int
    precision: str = "fp32"
    batch_size: int | None = None

    @property
    def label(self) -> str:
        """What it is called in tables: its name and how it is spread."""
        size = f", batch {self.batch_size}" if self.name == SENTENCE_TRANSFORMERS else ""
        precision = "" if self.precision == "fp32" else f" {self.precision}"
        return f"{self.name} {self.processes} x {self.threads}{size}{precision}"

    def to_json(self) -> dict[str, Any]:
        """Return its fields."""
        return {"label": self.label, **asdict(self)}


def cores() -> int:
    """Return the physical cores that this process may use, as penstock counts them for its slots."""
    n_cores = machine.count_cores(machine.usable_cpus())
    return min(n_cores, machine.cpu_quota() or n_cores)


def spread(plan: BenchPlan) -> list[tuple[int, int]]:
    """Return processes and threads of each, for every number of processes that is asked for, the fewest first."""
    n_cores = cores()
    asked = plan.processes or tuple(n for n in (1, 2, 4, 8) if n <= n_cores)
    return [(n, max(1, n_cores // n)) for n in sorted(set(asked))]


def contenders(plan: BenchPlan, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
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


def order(names: Sequence[Contender], round_: int) -> list[Contender]:
    """Return the contenders in the order of a round: another one each round, the same in every bench."""
    return random.Random(round_).sample(list(names), len(names))  # noqa: S311 - no secret


def rows_of_a_piece(n_rows: int, processes: int) -> int:
    """Return the rows of a piece, when each process gets ten of them."""
    return max(1, math.ceil(n_rows / processes / PIECES_A_PROCESS))


def pieces(name: str, n_rows: int, processes: int) -> list[range]:
    """Return the rows of each call of ``encode`` that a peer makes, in order."""
    if name in {"threads", "processes"}:
        size = math.ceil(n_rows / processes)
    elif name in {"pool", "ray"}:
        size = rows_of_a_piece(n_rows, processes)
    else:
        size = n_rows
    return [range(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
