"""What is checked of a causal reranker before it takes work: that it computes what transformers and its template do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tasks.errors import PenstockError, UsageError, place_of
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
#: Largest difference of a logit from that of transformers, relative to the largest of the vocabulary, that another
#: order of sums and a head in fp32 explain, by the bytes of a number.
TOLERANCES = {4: 1e-4, 2: 0.05}
#: The same between two ways in which the engine itself reads a prompt. In bf16 rounding was 0.010 at most with random
#: models and SmolLM2-135M; holes that are seen were 0.029 and more, positions behind another prefix 0.024 (where logits
#: are capped less than 0.01: those pass).
OWN_TOLERANCES = {4: 1e-4, 2: 0.02}


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
        logits = causal.all_logits(self._prompt.ids)
        self._expected = logits[self._tokens].numpy()
        self._largest = float(logits.abs().max())

    def check(self) -> None:
        """Compare with what the engine computes. If only reused prefixes give something else, none are reused.

        Raises:
            UsageError: whole prompts give something else, or something else in a batch than alone; or a rank failed.
        """
        found = self._logits(self._causal.read([self._prompt.ids]))
        if not self._is_close(found, self._expected, TOLERANCES):
            raise UsageError(
                f"--model {self._spec}: its logits are {_shown(self._expected)} in transformers and {_shown(found[0])} "
                "in penstock, which does not know what this model does with them. It cannot be used."
            )
        self._check_batches(found)
        if self._causal.reuses and (fault := self._fault_of_reuse(found)):
            self._causal.reuses = False
            log.warning("Prompts' beginnings are not reused with this model: %s", fault, extra={"action": "load"})

    def _check_batches(self, alone: np.ndarray) -> None:
        """Read prompts of different lengths in a batch, and one that is padded further."""
        if not self._causal.can_pad:
            return
        ids = self._prompt.ids
        shorter = ids[: -(-2 * len(ids) // 3)]
        padded = min(len(ids) + 8, self._causal.most)
        batches = [self._causal.read([ids, shorter]), self._causal.read([ids], padded)]
        expected = np.concatenate([alone, self._logits(self._causal.read([shorter])), alone])
        found = self._logits(torch.cat(batches))
        if not self._is_close(found, expected, OWN_TOLERANCES):
            raise UsageError(
                f"--model {self._spec}: a prompt's logits are {_shown(expected[0])} alone and {_shown(found[0])} or "
                f"{_shown(found[2])} in padded batches. Its scores would depend on other pairs; it cannot be used."
            )

    def _fault_of_reuse(self, alone: np.ndarray) -> str | None:
        """Say what is wrong with prompts that are read behind their prefixes, or return None."""
        try:
            found = self._logits(self._read_behind_prefixes())
        except Exception as exc:
            if is_out_of_memory(exc) or isinstance(exc, PenstockError):
                raise
            if not self._causal.recovers:
                raise UsageError(
                    f"--model {self._spec}: prompts' beginnings cannot be reused with it ({place_of(exc)}), which "
                    "ranks do not survive. Take --shard auto."
                ) from exc
            return place_of(exc)
        if self._is_close(found, alone, OWN_TOLERANCES):
            return None
        shown = "; ".join(map(_shown, found))
        return f"its logits were {shown} with, {_shown(alone[0])} without"

    def _read_behind_prefixes(self) -> torch.Tensor:
        """Read the prompt in one batch behind all of a prefix, behind half of it, and behind one half as long.

        So there are holes, with the prefix's other half in them and with padding.
        """
        ids, longer = self._prompt.ids, self._prompt.prefix
        half = max(1, longer // 2)
        starts = np.array([longer, half, half])
        cache = self._causal.read_prefixes([ids[:longer], ids[:half]])
        return self._causal.read_rests(cache, np.array([0, 0, 1]), starts, [ids[start:] for start in starts])

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        logits: np.ndarray = self._causal.logits(hidden, self._tokens).cpu().numpy()
        return logits

    def _is_close(self, found: np.ndarray, expected: np.ndarray, tolerances: dict[int, float]) -> bool:
        tolerance = tolerances[self._causal.rounding_bytes] * self._largest
        return bool(np.abs(found - expected).max() <= tolerance)  # not so for NaN


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
    spec: ModelSpec, template: TemplateFile, n_bytes: int, score: Callable[[list[Pair], ScoreOptions], Computed]
) -> None:
    """Compare with the scores that are published for the model.

    Args:
        spec: of the model.
        template: that names pairs and their scores.
        n_bytes: of one of the model's numbers; what is published was computed with four.
        score: scores pairs with the model.

    Raises:
        UsageError: one of them cannot be scored, or differs by more than its tolerance.
    """
    for reference in template.references:
        if reference.model != spec.name:
            continue
        options = ScoreOptions(template=template, instruction=reference.instruction)
        computed = score([Pair(reference.query, reference.document)], options)
        if computed.errors[0] is not None:
            raise UsageError(
                f"--model {spec}: it cannot score a reference pair of the template {template.name}: "
                f"{computed.errors[0]}."
            )
        found = float(computed.values[0, 0])
        rounding = TOLERANCES[n_bytes] * max(1.0, abs(reference.score))
        if not abs(found - reference.score) <= max(reference.tolerance, rounding):
            raise UsageError(
                f"--model {spec}: it gives a reference pair of the template {template.name} the score {found:.6f}, the "
                f"published one is {reference.score:.6f}. These are other weights, or another template is needed."
            )


def _shown(logits: np.ndarray) -> str:
    return " and ".join(f"{logit:.5f}" for logit in logits)
