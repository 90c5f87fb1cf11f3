"""Clipping characters before tokenising: a 10 MB line is not tokenised whole to keep 256 tokens.

A text is cut only between a character that is no white space and a plain space. Tokenizers split there or, without
such a split, have no token that spans it from the left, so the tokens before the cut are those of the whole text. In a
run of white space that is not so: GPT-2's makes one piece of a line break and the spaces behind it. A text without
such a place is not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

R = TypeVar("R")
T = TypeVar("T")

#: Characters per token to begin with; four to five are usual in English, so most texts need no second look.
CHARS_PER_TOKEN = 8
#: How much wider the next look is.
WIDEN = 4


def clip(text: str, n_chars: int) -> str:
    """Return a beginning of about ``n_chars`` characters that ends with a whole word, or the text itself."""
    if len(text) <= n_chars:
        return text
    cut = text.rfind(" ", 1, n_chars + 1)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 1, cut)
    return text[:cut] if cut > 0 else clip(text, WIDEN * n_chars)


def tokenise_clipped(
    rows: Sequence[R],
    limit: int,
    cut: Callable[[R, int], R],
    tokenise: Callable[[list[R]], list[T]],
    is_settled: Callable[[R, R, T], bool],
) -> list[T]:
    """Tokenise the beginnings of rows, wider and wider, until each is whole or more of it would change nothing.

    Args:
        rows: what to tokenise.
        limit: tokens that the model takes.
        cut: returns a row's beginning of about so many characters, such as ``clip``, or the row itself if it is whole.
        tokenise: makes one encoding of each row, cut at the limit.
        is_settled: whether the encoding of a row's beginning is that of the whole row: (row, beginning, encoding).
    """
    n_chars = CHARS_PER_TOKEN * limit
    clipped = [cut(row, n_chars) for row in rows]
    encodings = tokenise(clipped)
    waiting = list(range(len(rows)))
    while waiting := [
        i for i in waiting if clipped[i] is not rows[i] and not is_settled(rows[i], clipped[i], encodings[i])
    ]:
        n_chars *= WIDEN
        for i in waiting:
            clipped[i] = cut(rows[i], n_chars)
        for i, encoding in zip(waiting, tokenise([clipped[i] for i in waiting]), strict=True):
            encodings[i] = encoding
    return encodings
