"""How a causal reranker is asked by those who do not use penstock's engine."""

from __future__ import annotations

import json
from typing import Any

from tasks.errors import UsageError
from tasks.options import DOCUMENT, Template
from tasks.ports import Pair
from workers.engines.prompts import tokens_of

#: Stand for the texts of a pair where a template is looked at; no text holds them.
_QUERY, _DOCUMENT = "\ue000", "\ue001"


def prompt_ids(tokenizer: Any, template: Template, pair: Pair, instruction: str | None, limit: int) -> list[int]:
    """Return the tokens of the whole prompt; what is too long loses the document's end.

    The parts are tokenised one by one, as the template's source does.
    """
    parts = template.render(pair.query, pair.document, instruction)
    ids = [tokens_of(tokenizer, part) for part in parts]
    if _has_first(tokenizer, template):
        ids.insert(0, [tokenizer.bos_token_id])
    excess = sum(map(len, ids)) - limit
    if excess > 0:
        at = next(i for i, part in enumerate(template.parts) if part.endswith(DOCUMENT)) - len(template.parts)
        ids[at] = ids[at][:-excess]
    return [token for part in ids for token in part]


def label_ids(tokenizer: Any, template: Template) -> tuple[int, int | None]:
    """Return the tokens that say yes and no.

    Raises:
        UsageError: one of them is no single token.
    """
    ids = [tokens_of(tokenizer, label) for label in (template.positive, template.negative) if label is not None]
    if any(len(found) != 1 for found in ids):
        raise UsageError(f"The labels of the template {template.name} are no single tokens of this model.")
    return ids[0][0], ids[1][0] if len(ids) > 1 else None


def chat_template(tokenizer: Any, template: Template, instruction: str | None) -> str:
    """Return the template as sentence-transformers takes it: Jinja, the texts as messages of two roles.

    What stands between the texts goes in as string literals: Jinja would drop the last line break of plain text, and
    read braces in it.
    """
    whole = "".join(template.render(_QUERY, _DOCUMENT, instruction))
    before, _, rest = whole.partition(_QUERY)
    between, _, behind = rest.partition(_DOCUMENT)
    begin = "{{ bos_token }}" if _has_first(tokenizer, template) else ""
    return begin + _text(before) + _content("query") + _text(between) + _content("document") + _text(behind)


def _has_first(tokenizer: Any, template: Template) -> bool:
    """Whether a prompt begins with a token of its own; not where that token is padding too."""
    first = tokenizer.bos_token_id
    return template.adds_special_tokens and first is not None and first != tokenizer.pad_token_id


def _text(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"


def _content(role: str) -> str:
    return f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first }}}}'
