"""Prompts of causal rerankers as token ids.

Every part of a template is tokenised alone, as the templates' sources do. What is too long loses the document's end and
never the parts behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.options import DOCUMENT, Template
from tasks.ports import Pair
from workers.clipping import clip, tokenise_clipped
from workers.engines.blocks import Prepared

Ids = np.ndarray


@dataclass(frozen=True)
class Prompt:
    """A pair's tokens.

    Attributes:
        ids: (n_tokens,) int64.
        prefix: how many of them, from the first one, the prompt of the same query with an empty document has too; at
            least one token less than there are. It depends on the pair alone.
        query: number of its query among those of its block.
    """

    ids: Ids
    prefix: int
    query: int


@dataclass(frozen=True)
class _Frame:
    """What stands around a query's documents.

    Attributes:
        before: tokens of the parts before the one with the document.
        empty: tokens of that part with an empty document.
    """

    before: Ids
    empty: Ids


class Prompts:
    """Makes prompts by one template.

    Args:
        tokenizer: of the model.
        template: how the model is asked.
        instruction: what it is told to judge by; the template's own if None.
    """

    def __init__(self, tokenizer: Any, template: Template, instruction: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._instruction = instruction
        self._place = next(i for i, part in enumerate(template.parts) if part.endswith(DOCUMENT))
        self._first = np.array(_first_tokens(tokenizer) if template.adds_special_tokens else [], np.int64)
        self._tail = np.concatenate([np.empty(0, np.int64), *self._tokenise(self._render("", "")[self._place + 1 :])])

    def count_fixed(self) -> int:
        """Count the tokens of a prompt without query and document."""
        frame = self._frames([""], 0)[0]
        return len(self._first) + len(frame.before) + len(frame.empty) + len(self._tail)

    def prepare(self, pairs: Sequence[Pair], limit: int) -> Prepared:
        """Tokenise pairs into prompts of at most ``limit`` tokens; ``Prepared.rows`` are of ``Prompt``.

        A pair whose query leaves no room for its document has an error.
        """
        numbers = {query: number for number, query in enumerate(dict.fromkeys(pair.query for pair in pairs))}
        frames = self._frames(list(numbers), limit)
        rooms = [limit - len(self._first) - len(frame.before) - len(self._tail) for frame in frames]
        texts = [self._render(pair.query, pair.document)[self._place] for pair in pairs]
        bodies = self._tokenise_to(texts, max(1, *rooms, 1))
        rows: list[Prompt | None] = []
        prepared = Prepared(np.zeros(len(pairs), np.int32), np.zeros(len(pairs), bool), rows)
        for i, (pair, body) in enumerate(zip(pairs, bodies, strict=True)):
            number = numbers[pair.query]
            frame, room = frames[number], rooms[number]
            n_common = _count_common(frame.empty, body)
            if len(body) > room and n_common >= room:
                prepared.errors[i] = f"its query leaves no room for the document within {limit} tokens"
                rows.append(None)
                continue
            ids = np.concatenate([self._first, frame.before, body[:room], self._tail])
            n_prefix = len(self._first) + len(frame.before) + n_common
            rows.append(Prompt(ids, min(n_prefix, len(ids) - 1), number))
            prepared.lengths[i] = len(ids)
            prepared.truncated[i] = len(body) > room
        return prepared

    def _render(self, query: str, document: str) -> tuple[str, ...]:
        return self._template.render(query, document, self._instruction)

    def _frames(self, queries: list[str], limit: int) -> list[_Frame]:
        """Tokenise what is common to the pairs of each query; what is longer than the limit is not tokenised whole."""
        parts = [self._render(query, "")[: self._place + 1] for query in queries]
        ids = self._tokenise_to([text for texts in parts for text in texts], limit)
        width = self._place + 1
        return [
            _Frame(np.concatenate([np.empty(0, np.int64), *ids[start : start + self._place]]), ids[start + self._place])
            for start in range(0, len(ids), width)
        ]

    def _tokenise_to(self, texts: list[str], limit: int) -> list[Ids]:
        """Tokenise texts, at least as far as their first ``limit`` tokens and one more."""
        if not limit:
            return self._tokenise(texts)
        return tokenise_clipped(texts, limit, clip, self._tokenise, lambda _, __, ids: len(ids) > limit)

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenise each text alone. Special tokens in a text are taken as such, as in the templates' sources."""
        if not texts:
            return []
        found = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,  # else it warns of texts that are longer than the model takes
        )
        return [np.array(ids, np.int64) for ids in found["input_ids"]]


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that stands alone."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _first_tokens(tokenizer: Any) -> list[int]:
    """Return what comes before any text; nothing where the same token is padding, as FlagEmbedding has it."""
    first = tokenizer.bos_token_id
    return [] if first is None or first == tokenizer.pad_token_id else [first]


def _count_common(one: Ids, other: Ids) -> int:
    """Count the tokens that both begin with."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n
