"""What a causal reranker is asked for a job: by a template, with an instruction, for a few tokens of its vocabulary."""

from __future__ import annotations

from typing import Any

from tasks.options import Template
from workers.engines.prompts import Prompts, tokens_of


class Question:
    """A template, made ready for one model.

    Args:
        tokenizer: of the model.
        template: how the model is asked.
        instruction: of the job; the template's own if None.

    Attributes:
        template: the same.
        prompts: makes the prompts of pairs.
        n_fixed: tokens of a prompt without query and document.
        tokens: of the labels: the positive one, and the negative one if there is one.
        problem: why the model cannot be asked so, or None.
    """

    def __init__(self, tokenizer: Any, template: Template, instruction: str | None) -> None:
        self.template = template
        self.prompts = Prompts(tokenizer, template, instruction)
        self.n_fixed = self.prompts.count_fixed()
        labels = [label for label in (template.positive, template.negative) if label is not None]
        ids = {label: tokens_of(tokenizer, label) for label in labels}
        self.tokens = [found[0] for found in ids.values() if len(found) == 1]
        self.problem = next(
            (
                f"the template {template.name} wants {label!r} to be one token, and this model makes {len(found)} of "
                "it; name another with --template"
                for label, found in ids.items()
                if len(found) != 1
            ),
            None,
        )
        if instruction is not None and not template.has_instruction:
            self.problem = f"the template {template.name} has no place for an instruction; leave out --instruction"
