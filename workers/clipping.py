"""Clipping characters before tokenising: a 10 MB line is not tokenised whole to keep 256 tokens.

A text is cut only between a character that is no white space and a plain space. Tokenizers split there or, without
such a split, have no token that spans it from the left, so the tokens before the cut are those of the whole text. In a
run of white space that is not so: GPT-2's makes one piece of a line break and the spaces behind it. A text without
such a place is not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Characters per token to begin with; four to five are usual in English, so most texts need no second look.
CHARS_PER_TOKEN = 8
#: How much wider the next look is.
WIDEN = 4


def clip(text: str, n_chars: int) -> str:
    """Return a beginning of the text of about ``n_chars`` characters that ends with a whole word, or all of it."""
    if len(text) <= n_chars:
        return text
    cut = text.rfind(" ", 1, n_chars + 1)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 1, cut)
    return text[:cut] if cut > 0 else clip(text, WIDEN * n_chars)


def tokenise_clipped(
    texts: Sequence[str],
    limit: int,
    tokenise: Callable[[list[str]], list[T]],
    is_full: Callable[[T], bool],
) -> list[T]:
    """Tokenise the beginnings of texts, wider and wider, until each is whole or has reached the limit.

    Args:
        texts: what to tokenise.
        limit: tokens that the model takes.
        tokenise: makes one encoding of each text, cut at the limit.
        is_full: whether an encoding had more tokens than the limit.
    """
    n_chars = CHARS_PER_TOKEN * limit
    clipped = [clip(text, n_chars) for text in texts]
    encodings = tokenise(clipped)
    short = [i for i, text in enumerate(texts) if len(clipped[i]) < len(text) and not is_full(encodings[i])]
    while short:
        n_chars *= WIDEN
        wider = [clip(texts[i], n_chars) for i in short]
        for i, encoding in zip(short, tokenise(wider), strict=True):
            encodings[i] = encoding
        short = [
            i for i, text in zip(short, wider, strict=True) if len(text) < len(texts[i]) and not is_full(encodings[i])
        ]
    return encodings
