"""The numbers of a checkpoint's pieces."""

from __future__ import annotations

from collections.abc import Iterable

from workers.engines.laser.text_steps import SPECIALS


def numbered(lines: Iterable[str]) -> dict[str, int]:
    """Number the pieces of a student's vocabulary: one a line, with a count behind it.

    Raises:
        ValueError: a line is something else, or repeats a piece, which would shift all numbers behind it.
    """
    numbers = dict(SPECIALS)
    for i, line in enumerate(lines, 1):
        piece, _, count = line.rstrip().rpartition(" ")
        if not count.isdecimal():
            raise ValueError(f"line {i} is no piece with a count behind it")
        if piece in numbers:
            raise ValueError(f"line {i} repeats a piece")
        numbers[piece] = len(numbers)
    return numbers


def checked(dictionary: object, n_rows: int) -> dict[str, int]:
    """Return the numbers of LASER2's pieces if they fit its embedding of so many rows.

    Raises:
        ValueError: they do not, or are something else.
    """
    if not isinstance(dictionary, dict) or len(dictionary) <= n_rows / 2:
        n_pieces = f" of {len(dictionary)} pieces" if isinstance(dictionary, dict) else ""
        raise ValueError(f"its dictionary{n_pieces} is not that of an embedding of {n_rows} rows")
    if not all(isinstance(piece, str) and type(number) is int for piece, number in dictionary.items()):
        raise ValueError("its dictionary holds other things than pieces and numbers")
    if not all(0 <= number < n_rows for number in dictionary.values()):
        raise ValueError(f"its dictionary has numbers beyond the {n_rows} rows of its embedding")
    return {**dictionary, **SPECIALS}
