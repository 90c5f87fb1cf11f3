"""What every bench has: its common options, and contenders that share the cores."""

from __future__ import annotations

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
CROSS_ENCODER = "CrossEncoder"
CEILING = "ceiling"

#: Batch sizes among which the best one of sentence-transformers' ``encode`` or ``predict`` is looked for.
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
#: Of those, how many are run on the whole corpus: what was best on a sample may come second there.
FINALISTS = 2


class BenchPlan(BaseModel):
    """The options of a bench.

    Attributes:
        processes: numbers of processes that penstock and the peers with several are run with.
        out: the JSON file; the plot goes beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
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
        if ModelSpec.parse(plan.model).engine == "fake":
            raise UsageError(f"--model {plan.model}: no peer can run it; name a real one.")
        plan.check()
        return plan

    def check(self) -> None:
        """Look at what one option cannot know of another.

        Raises:
            UsageError: an option is wrong; the line names it.
        """


@dataclass(frozen=True)
class Contender:
    """One way of doing the work."""

    name: str
    processes: int
    threads: int
    precision: str = "fp32"
    batch_size: int | None = None

    @property
    def label(self) -> str:
        """What it is called in tables: its name and how it is spread."""
        size = f", batch {self.batch_size}" if self.name in {SENTENCE_TRANSFORMERS, CROSS_ENCODER} else ""
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


def order(names: Sequence[Contender], round_: int) -> list[Contender]:
    """Return the contenders in the order of a round: another one each round, the same in every bench."""
    return random.Random(round_).sample(list(names), len(names))  # noqa: S311 - no secret
