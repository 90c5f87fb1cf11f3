"""``penstock bench score``: pairs of query and document become scores; documents a second are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.options import Operation
from workers.bench.figures import Outcome, Runs
from workers.bench.plan import Contender
from workers.bench.scoring import agreement, article, pairs, plan
from workers.bench.scoring.figures import summarise
from workers.bench.scoring.layout import LAYOUT
from workers.bench.scoring.plan import NAIVE, ScorePlan
from workers.bench.subject import Subject


class ScoreSubject(Subject):
    """Pairs, and who scores them."""

    operation: Operation = "score"
    layout = LAYOUT

    def __init__(self, plan: ScorePlan) -> None:
        self.plan: ScorePlan = plan
        self._reference: np.ndarray | None = None

    def prepare(self, folder: Path) -> None:
        """Take the pairs that are named, or make some up."""
        self._folder = (self.plan.pairs or folder).absolute()
        if self.plan.pairs is None:
            pairs.make_up(folder, self.plan.max_pairs)
        self._pairs = pairs.read(self._folder)

    def precisions(self, *, on_gpu: bool) -> tuple[str, ...]:
        """Return what rerankers are usually run in. Not yet run on a GPU."""
        return ("bf16",) if on_gpu else ("fp32",)

    def learn(self, surveys: dict[str, dict[str, Any]]) -> None:
        """Take token counts."""
        (survey,) = surveys.values()
        self._tokens = sum(survey["lengths"])
        self._kind = survey["kind"]

    def contenders(self, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
        """Return the article's loop, sentence-transformers and penstock."""
        return plan.contenders(self.plan, precision, batch_sizes)

    def is_reference(self, contender: Contender) -> bool:
        """Whether it is the article's loop, in one process."""
        return (contender.name, contender.processes) == (NAIVE, 1)

    def task(self, contender: Contender) -> dict[str, Any]:  # noqa: ARG002 - the same for all
        """Name the pairs."""
        return {"pairs": str(self._folder)}

    def setup(self) -> dict[str, Any]:
        """Return how a causal reranker is asked."""
        template = self.plan.find_template()
        return {"template": template and template.model_dump(), "instruction": self.plan.instruction}

    def command(self) -> list[str]:
        """Score the candidates of each query."""
        told = {"--template": self.plan.template, "--instruction": self.plan.instruction}
        return [
            *("score", "--queries", str(self._folder / pairs.QUERIES), "--docs", str(self._folder / pairs.DOCS)),
            *("--candidates", str(self._folder / pairs.CANDIDATES)),
            *(part for option, value in told.items() if value is not None for part in (option, value)),
        ]

    def check(self, contender: Contender, values: np.ndarray) -> dict[str, Any]:
        """Compare scores with those of one pair at a time, the first run of which is the reference."""
        if self._reference is None:
            self._reference = values
        largest = agreement.check(contender.label, values, self._reference, contender.precision)
        same = agreement.equal_ranks(values, self._reference, self._pairs.query_ids, self._pairs.doc_ids)
        return {"largest_difference": largest, "equal_ranks": same}

    def speed(self, outcome: Outcome) -> str:
        """Say documents a second."""
        return f"{len(self._pairs.pairs) / outcome.seconds:,.1f} documents/s"

    def describe(self) -> dict[str, Any]:
        """Return the pairs in numbers, and the article's figures."""
        n_pairs = len(self._pairs.pairs)
        return {
            "pairs": {
                "name": self.plan.pairs_name,
                "queries": len(set(self._pairs.query_ids)),
                "documents": len(set(self._pairs.doc_ids)),
                "pairs": n_pairs,
                "tokens": self._tokens,
                "mean_tokens": self._tokens / n_pairs,
            },
            "kind": self._kind,
            "published": article.figures(),
        }

    def summarise(self, runs: Runs) -> list[dict[str, Any]]:
        """Return documents a second, and ratios to one pair at a time and to sentence-transformers."""
        return summarise(runs, len(self._pairs.pairs))
