"""Clipping: the tokens of a clipped text are those of the whole one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import clipping
from workers.clipping import CHARS_PER_TOKEN, clip, tokenise_clipped

#: How tokenizers cut a text before they look pieces up: at white space (BERT), and as in GPT-2 and Qwen, where white
#: space belongs to what follows it and its runs are pieces themselves.
SPLITS = {
    "words": r"\S+",
    "gpt2": r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+",
    "qwen": r"[^\r\n\w]?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

#: Few characters, so that all kinds of neighbours occur.
TEXTS = st.lists(st.sampled_from(["a", "bcd", "7", ";", " ", "    ", "\n", "\t", "\u00a0", "é"]), max_size=120).map(
    "".join
)


def pieces_of(split: str, text: str) -> list[str]:
    """Cut a text as a tokenizer does; what is left of each piece, from its end, are tokens of two characters."""
    return [
        piece[max(0, end - 2) : end]
        for piece in re.findall(SPLITS[split], text)
        for end in sorted(range(len(piece), 0, -2))
    ]


class Tokeniser:
    """A tokenizer that takes `limit` tokens and remembers what it was given."""

    def __init__(self, split: str, limit: int) -> None:
        self.split = split
        self.limit = limit
        self.seen: list[list[str]] = []

    def __call__(self, texts):
        """Return the tokens that fit, and whether there were more, of each text."""
        self.seen.append(texts)
        rows = [pieces_of(self.split, text) for text in texts]
        return [(row[: self.limit], len(row) > self.limit) for row in rows]


def is_full(_text, _beginning, encoding):
    """Return what the tokenizer noted."""
    return encoding[1]


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=200)
@given(texts=st.lists(TEXTS, max_size=3), limit=st.integers(1, 6), chars_per_token=st.integers(1, 8))
def test_clipping_changes_no_token(split, texts, limit, chars_per_token):
    """Tokens and the note that there were more are those of the whole text, for any text."""
    tokenise = Tokeniser(split, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipping, "CHARS_PER_TOKEN", chars_per_token)
        clipped = tokenise_clipped(texts, limit, clip, tokenise, is_full)
    assert clipped == Tokeniser(split, limit)(texts)


@given(TEXTS, st.integers(1, 50))
def test_a_text_is_cut_between_a_character_and_a_space(text, n_chars):
    """What is kept is a beginning of the text that ends with a word, and what follows is a plain space."""
    kept = clip(text, n_chars)
    assert text.startswith(kept)
    if kept != text:
        assert not kept[-1].isspace()
        assert text[len(kept)] == " "


def test_a_short_text_is_not_cut():
    """It costs nothing to look at all of it."""
    assert clip("a b c", 5) == "a b c"


def test_a_text_without_spaces_is_not_cut():
    """There is no place where a tokenizer surely splits."""
    assert clip("x" * 1000, 10) == "x" * 1000
    assert clip(" " * 1000, 10) == " " * 1000
    assert clip("a\n b" * 100, 10) == "a\n b" * 100


def test_a_long_first_word_is_kept_whole():
    """The look widens until it finds the end of a word."""
    assert clip("x" * 100 + " y" * 100, 10) == "x" * 100 + " y" * 29 + " y"


def test_a_long_text_is_not_read_to_its_end():
    """A line of megabytes costs as much as the tokens that the model takes."""
    tokenise = Tokeniser("words", 4)
    (row,) = tokenise_clipped(["word " * 1_000_000], 4, clip, tokenise, is_full)
    assert row == (["wo", "rd"] * 2, True)
    assert [len(text) for (text,) in tokenise.seen] == [CHARS_PER_TOKEN * 4 - 3]


def test_only_texts_that_came_out_short_are_looked_at_again():
    """A text of long words needs a wider look, its neighbours do not."""
    long_words = f"{'x' * 20} " * 40
    tokenise = Tokeniser("words", 8)
    first, second = tokenise_clipped(["a b " * 500, long_words], 8, clip, tokenise, is_full)
    assert len(tokenise.seen[0]) == 2
    assert all(len(texts) == 1 and texts[0].startswith("xxx") for texts in tokenise.seen[1:])
    assert (first, second) == tuple(Tokeniser("words", 8)(["a b " * 500, long_words]))


def test_no_texts_give_no_tokens():
    """An empty chunk is no special case."""
    assert tokenise_clipped([], 8, clip, Tokeniser("words", 8), is_full) == []
