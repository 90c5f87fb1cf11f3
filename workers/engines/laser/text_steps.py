"""From a text to token numbers, by the steps with which LASER was trained."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sacremoses import MosesPunctNormalizer
from sentencepiece import SentencePieceProcessor

BOS, PAD, EOS, UNKNOWN = range(4)
SPECIALS = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN}
#: What vectors depend on beside a checkpoint's files: these steps, and the tables of those who do them.
FACTS = (
    f"1 unicode {unicodedata.unidata_version} sacremoses {version('sacremoses')} sentencepiece "
    f"{version('sentencepiece')}"
)
#: Files of pieces, and of their numbers, that are kept in memory once for all checkpoints of a process.
MOST_SHARED = 4


class _Printable(dict[int, int | str]):
    """A table for ``str.translate``: characters of Unicode's category C (control, format, unassigned) become spaces."""

    def __missing__(self, code: int) -> int | str:
        character = self[code] = " " if unicodedata.category(chr(code)).startswith("C") else code
        return character


#: One for all checkpoints: it grows to 80 MB where texts have every character of Unicode.
_PRINTABLE = _Printable()


class TextSteps:
    """Turns texts into token numbers.

    Args:
        pieces: sentencepiece model.
        numbers: of the pieces.
        begins: whether ``<s>`` is put before a text; ``</s>`` always ends it.
    """

    def __init__(self, pieces: Path, numbers: Mapping[str, int], *, begins: bool) -> None:
        self._pieces = _processor(pieces, stamp_of(pieces))
        self._numbers = numbers
        self._first = [BOS] if begins else []
        self._punctuation = MosesPunctNormalizer("en", perl_parity=True)
        # As LASER was trained: Moses 4.0 makes double quotes of these two, and not single ones.
        rules = self._punctuation.substitutions
        for mark in ("\u2018", "\u201a"):
            rules[[rule for rule, _ in rules].index(mark)] = (mark, '"')

    @property
    def n_special(self) -> int:
        """Tokens that every text has."""
        return len(self._first) + 1

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the numbers of each text's tokens, (n_tokens,) int32."""
        return [np.array([*self._first, *self._number(text), EOS], np.int32) for text in texts]

    def _number(self, text: str) -> list[int]:
        cleaned = self._punctuation.normalize(text.translate(_PRINTABLE)).lower()
        pieces: list[str] = self._pieces.encode(cleaned, out_type=str)
        # Parted at white space once more, as the published steps pass the pieces on as one line.
        return [self._numbers.get(piece, UNKNOWN) for piece in " ".join(pieces).split()]


def stamp_of(path: Path) -> tuple[int, int]:
    """Return the size of a file and when it, or who may read it, was changed: another content has others."""
    found = path.stat()
    return found.st_size, found.st_ctime_ns


@lru_cache(MOST_SHARED)
def _processor(path: Path, _stamp: tuple[int, int]) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(path.read_bytes())  # as an argument of the class, an empty file would be none
    return processor
