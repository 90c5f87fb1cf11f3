"""``penstock bench encode``: a corpus becomes vectors; tokens a second are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.options import Operation
from workers.bench import corpus
from workers.bench.encoding import agreement, plan
from workers.bench.encoding.figures import Corpus, summarise
from workers.bench.encoding.layout import LAYOUT
from workers.bench.encoding.plan import EncodePlan
from workers.bench.encoding.work import Work
from workers.bench.figures import Outcome, Runs
from workers.bench.plan import CEILING, Contender
from workers.bench.subject import Subject


class EncodeSubject(Subject):
    """Texts of one corpus, and who encodes them."""

    operation: Operation = "encode"
    layout = LAYOUT

    def __init__(self, plan: EncodePlan) -> None:
        self.plan: EncodePlan = plan

    def prepare(self, folder: Path) -> None:
        """Take the corpus that is named, or make one up."""
        self._corpus = (self.plan.corpus or folder / "corpus.jsonl").absolute()
        if self.plan.corpus is None:
            corpus.write_texts(self._corpus, corpus.make_up(self.plan.max_rows))

    def precisions(self, *, on_gpu: bool) -> tuple[str, ...]:
        """Return fp32, and fp16 where it is usual."""
        return ("fp32", "fp16") if on_gpu else ("fp32",)

    def learn(self, surveys: dict[str, dict[str, Any]]) -> None:
        """Take token counts, the reference vectors, and what the model computes."""
        first = surveys["fp32"]
        texts = corpus.read_texts(self._corpus)
        self._counts = Corpus(np.array(first["lengths"]), np.array([len(text) for text in texts]))
        self._reference = np.array(first["vectors"])
        self._work = Work([(n_in, n_out) for n_in, n_out in first["linears"]], first["attention"])

    def contenders(self, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
        """Return penstock, the peers that are asked for, and the ceiling."""
        return plan.contenders(self.plan, precision, batch_sizes)

    def task(self, contender: Contender) -> dict[str, Any]:
        """Name the corpus; the ceiling needs the shapes of the model's layers."""
        shapes = {"linears": self._work.linears, "attention": self._work.attention} if contender.name == CEILING else {}
        return {"corpus": str(self._corpus), **shapes}

    def command(self) -> list[str]:
        """Encode the corpus, with no text spared."""
        return ["encode", str(self._corpus), "--no-deduplicate"]

    def check(self, contender: Contender, values: np.ndarray) -> dict[str, Any]:
        """Compare vectors with those of the survey."""
        agreement.check(contender.label, values, self._reference, len(self._counts.lengths))
        return {}

    def padded_tokens(self, contender: Contender) -> int | None:
        """Count them by how the peers sort and cut."""
        return self._counts.padded_tokens(contender)

    def speed(self, outcome: Outcome) -> str:
        """Say tokens a second, of the ceiling FLOP/s."""
        if outcome.flops_per_s:
            return f"{outcome.flops_per_s / 1e9:,.0f} GFLOP/s by {outcome.kernel}"
        return f"{self._counts.tokens / outcome.seconds:,.0f} tokens/s"

    def describe(self) -> dict[str, Any]:
        """Return the corpus in numbers."""
        n_rows = len(self._counts.lengths)
        return {
            "corpus": {
                "name": self.plan.corpus_name,
                "rows": n_rows,
                "tokens": self._counts.tokens,
                "mean_tokens": self._counts.tokens / n_rows,
                "characters": int(self._counts.n_chars.sum()),
            },
            "flops_per_token": self._work.flops(self._counts.lengths) / self._counts.tokens,
        }

    def summarise(self, runs: Runs) -> list[dict[str, Any]]:
        """Return tokens a second, and ratios to sentence-transformers and the ceiling."""
        return summarise(runs, self._counts, self._work)
