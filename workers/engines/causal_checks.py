"""What is checked of a causal reranker before it takes work: that it computes what transformers and its template do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tasks.errors import UsageError, place_of
from tasks.messages import ModelSpec
from tasks.options import ScoreOptions
from tasks.ports import Computed, Pair
from tasks.templates import TemplateFile
from workers.engines.causal_model import CausalModel
from workers.engines.prompts import Prompt, tokens_of
from workers.engines.question import Question
from workers.memory import is_out_of_memory

log = logging.getLogger(__name__)

#: A pair for templates without an example of their own.
PAIR = Pair("Why was the road to the mill closed?", "It rained for a week, and the river rose above the road.")
#: Largest difference of a logit, relative to the largest of the vocabulary, that another order of sums explains, by the
#: bytes of a number.
TOLERANCES = {4: 1e-4, 2: 0.05}


class Example:
    """A prompt and its logits as transformers alone computes them, taken before the model's layers are replaced.

    Args:
        spec: of the model.
        causal: the model.
        question: how the worker asks it; None if nobody told.
        tokenizer: of the model.
        pair: what to ask about.

    Raises:
        UsageError: the worker's template does not go with the model.
    """

    def __init__(
        self, spec: ModelSpec, causal: CausalModel, question: Question | None, tokenizer: Any, pair: Pair
    ) -> None:
        if question and question.problem:
            raise UsageError(f"--model {spec}: {question.problem}.")
        self._spec = spec
        self._causal = causal
        self._prompt, self._tokens = _example(question, tokenizer, pair, causal.most)
        with torch.inference_mode():
            ids = torch.from_numpy(self._prompt.ids)[None].to(causal.model.device)
            logits = causal.model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu()
        self._expected = logits[self._tokens].numpy()
        self._tolerance = TOLERANCES[causal.n_bytes] * float(logits.abs().max())

    def check(self) -> None:
        """Compare with what the engine computes. If only reused prefixes give something else, none are reused.

        Raises:
            UsageError: whole prompts give something else.
        """
        found = self._logits(self._causal.read([self._prompt.ids]))
        if not self._is_expected(found):
            raise UsageError(
                f"--model {self._spec}: its logits are {_shown(self._expected)} in transformers and {_shown(found[0])} "
                "in penstock, which does not know what this model does with them. It cannot be used."
            )
        if self._causal.reuses and (fault := self._fault_of_reuse()):
            self._causal.reuses = False
            log.warning("Prompts' beginnings are not reused with this model: %s", fault, extra={"action": "load"})

    def _fault_of_reuse(self) -> str | None:
        """Say what is wrong with prompts that are read behind their prefixes, or return None."""
        try:
            found = self._logits(self._read_behind_prefixes())
        except Exception as exc:
            if is_out_of_memory(exc):
                raise
            return place_of(exc)
        if self._is_expected(found):
            return None
        return f"its logits were {_shown(found[0])} with, {_shown(self._expected)} without"

    def _read_behind_prefixes(self) -> torch.Tensor:
        """Read the prompt twice in one batch, behind prefixes of different lengths, so that there are holes."""
        ids, longer = self._prompt.ids, self._prompt.prefix
        starts = np.array([longer, max(1, longer // 2)])
        cache = self._causal.read_prefixes([ids[:longer], ids[:longer]])
        return self._causal.read_rests(cache, np.arange(2), starts, [ids[start:] for start in starts])

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        logits: np.ndarray = self._causal.logits(hidden, self._tokens).cpu().numpy()
        return logits

    def _is_expected(self, found: np.ndarray) -> bool:
        return bool(np.abs(found - self._expected).max() <= self._tolerance)  # not so for NaN


def _example(question: Question | None, tokenizer: Any, pair: Pair, most: int) -> tuple[Prompt, list[int]]:
    """Return a prompt, and the tokens whose logits are compared."""
    if question is None:  # any text serves, and any tokens
        ids = np.array(tokens_of(tokenizer, " ".join(pair))[:most], np.int64)
        return Prompt(ids, len(ids) // 2, 0), ids[:2].tolist()
    prepared = question.prompts.prepare([pair], most)
    if prepared.errors:
        raise UsageError(f"The template {question.template.name} alone is longer than the {most} tokens of the model.")
    return prepared.rows[0], question.tokens


def check_references(
    spec: ModelSpec, template: TemplateFile, score: Callable[[list[Pair], ScoreOptions], Computed]
) -> None:
    """Compare with the scores that are published for the model.

    Raises:
        UsageError: one of them differs by more than its tolerance.
    """
    for reference in template.references:
        if reference.model != spec.name:
            continue
        options = ScoreOptions(template=template, instruction=reference.instruction)
        found = float(score([Pair(reference.query, reference.document)], options).values[0, 0])
        if not abs(found - reference.score) <= reference.tolerance:
            raise UsageError(
                f"--model {spec}: it gives a reference pair of the template {template.name} the score {found:.6f}, the "
                f"published one is {reference.score:.6f}. These are other weights, or another template is needed."
            )


def _shown(logits: np.ndarray) -> str:
    return " and ".join(f"{logit:.5f}" for logit in logits)
