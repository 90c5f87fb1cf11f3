"""The numbers of LASER's pieces, and what is refused."""

from __future__ import annotations

import pytest

from workers.engines.laser.vocabulary import checked, numbered

SPECIALS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


def test_pieces_are_numbered_by_their_lines():
    """From 4 on; a piece may hold blanks that are no spaces."""
    assert numbered(["▁a 12\n", "\u00a0 3\n", "b 1\n"]) == {**SPECIALS, "▁a": 4, "\u00a0": 5, "b": 6}


@pytest.mark.parametrize("line", ["<html>\n", "\n", "b\n", "b 1.5\n", "b -1\n"])
def test_a_line_that_is_none_is_named_by_its_number(line):
    """Its text may be long."""
    with pytest.raises(ValueError, match="line 2 is no piece with a count behind it"):
        numbered(["a 2\n", line])


def test_a_piece_twice_is_named_by_its_line():
    """All numbers behind it would be wrong by one."""
    with pytest.raises(ValueError, match="line 3 repeats a piece"):
        numbered(["a 3\n", "b 2\n", "a 1\n"])


def test_a_dictionary_that_fits_is_taken():
    """With the special tokens at their places, as the published code puts them."""
    assert checked({"a": 4, "b": 5, "<s>": 5, "</s>": 2}, 6) == {**SPECIALS, "a": 4, "b": 5}


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [
        ("seven", "dictionary is not that of an embedding of 6 rows"),
        ({"a": 4}, "dictionary of 1 pieces is not that"),
        ({**SPECIALS, "a": 6}, "numbers beyond the 6 rows"),
        ({**SPECIALS, "a": -1}, "numbers beyond the 6 rows"),
        ({**SPECIALS, "a": True}, "other things than pieces and numbers"),
        ({**SPECIALS, "a": 4.0}, "other things than pieces and numbers"),
        ({**SPECIALS, 4: 4}, "other things than pieces and numbers"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(dictionary, said):
    """It would fail at the first text that has the piece, or give it another one's vector."""
    with pytest.raises(ValueError, match=said):
        checked(dictionary, 6)
