"""The output layer of a causal language model, for the few tokens whose logits are asked for.

A vocabulary has 50,000 to 250,000 tokens; a score needs two of them, at one position of a prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tasks.options import Formula
from workers.sharding.tensors import fetched


class HeadRows(NamedTuple):
    """Rows of an output layer in fp32.

    Attributes:
        weight: (n_tokens, dim).
        bias: (n_tokens,), if the layer has one.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


class Head:
    """The rows of an output layer.

    Args:
        model: a ``*ForCausalLM``.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._layer = model.get_output_embeddings()
        #: What some models do with their logits: Cohere, Granite, Gemma 2.
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)
        self._divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        self._cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)

    def rows(self, tokens: list[int]) -> HeadRows:
        """Return what the layer has for some tokens of the vocabulary, wherever it is."""
        weight, bias = fetched(self._layer, "weight"), fetched(self._layer, "bias")
        return HeadRows(weight[tokens].float(), None if bias is None else bias[tokens].float())

    def logits(self, hidden: torch.Tensor, rows: HeadRows) -> torch.Tensor:
        """Return the logits of some tokens in fp32, because those of bf16 tie.

        Args:
            hidden: (n_rows, dim) of the last positions.
            rows: of the tokens.

        Returns:
            (n_rows, n_tokens) float32. On a CPU a row's bits do not depend on the other rows; a GPU chooses how it sums
            by the shape.
        """
        weight, bias = rows
        # Not a matrix product, whose order of sums depends on the number of rows, on CPUs too.
        logits = (hidden.float().unsqueeze(1) * weight.to(hidden.device)).sum(dim=-1)
        if bias is not None:
            logits = logits + bias.to(hidden.device)
        logits = logits * self._factor / self._divisor
        return self._cap * torch.tanh(logits / self._cap) if self._cap else logits


def score_of(logits: torch.Tensor, formula: Formula) -> torch.Tensor:
    """Return the scores of rows, (n_rows, 1).

    Args:
        logits: (n_rows, 2) of the positive and the negative token, or (n_rows, 1) for the formula ``logit``.
        formula: of the template.
    """
    if formula == "logit":
        return logits[:, :1]
    difference = logits[:, :1] - logits[:, 1:2]
    # The softmax over both is the sigmoid of their difference.
    return torch.sigmoid(difference) if formula == "probability" else difference
