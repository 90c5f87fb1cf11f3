"""What ``penstock bench score`` compares: its options, and the contenders that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.messages import ModelSpec
from tasks.options import Template
from tasks.templates import read_template, template_for
from workers.bench.plan import CROSS_ENCODER, PENSTOCK, BenchPlan, Contender, cores, spread

#: The loop of the article: what all others are compared with, and checked against.
NAIVE = "one pair at a time"


class ScorePlan(BenchPlan):
    """The options of ``penstock bench score``.

    Attributes:
        pairs: a folder as ``pairs`` reads it; without it, a query and documents are made up.
        pairs_name: what to call them.
        max_pairs: documents that are made up.
        template: how a causal reranker is asked, a name or an absolute path; by the model's hub id if None.
        instruction: what it is told to judge by; its template's own if None.
    """

    pairs: Path | None = None
    pairs_name: str = "made up"
    max_pairs: Annotated[int, Field(ge=1)] = 1000
    template: str | None = None
    instruction: str | None = None

    def check(self) -> None:
        """Read the template."""
        self.find_template()

    def find_template(self) -> Template | None:
        """Return the template that a causal reranker is asked with, None if none is known.

        Raises:
            UsageError: what is named is none.
        """
        if self.template is not None:
            return read_template(self.template).plain()
        found = template_for(ModelSpec.parse(self.model, "score").name)
        return found and found.plain()


def contenders(plan: ScorePlan, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
    """Return who is compared: the article's rows, sentence-transformers at its best batch sizes, penstock."""
    shapes = spread(plan)
    return [
        Contender(NAIVE, 1, cores(), precision),
        *(Contender(NAIVE, n, threads, precision) for n, threads in shapes if n > 1),
        *(Contender(CROSS_ENCODER, 1, cores(), precision, size) for size in batch_sizes),
        *(Contender(PENSTOCK, n, threads, precision) for n, threads in shapes),
    ]
