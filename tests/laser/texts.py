"""Texts of all kinds for tokenizers: every script, punctuation, white space and control character, whole and broken."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from tests.tiny_laser import PUNCTUATION, words

#: Characters that some step of tokenising treats in its own way.
SPECIAL = [
    *(" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\xad", "\u1680", "\u2000"),
    *("\u200b", "\u200d", "\u200e", "\u2028", "\u2029", "\u202e", "\u202f", "\u2060", "\u3000", "\ufeff", "\ufffd"),
    *("\x00", "\x7f", "\ue000", "\uffff", "\U000e0001", "\U0010ffff", "\u0378", "\u0301", "\u20e3", "\ufe0f"),
    *("🎉", "👩\u200d🚀", "🇩🇪", "👍🏽", "İ", "ß", "ſ", "ﬁ", "Ⅷ", "①", "ǅ", "Σ", "ς", "ϴ", "\u212a", "\u1e9e"),
    *("▁", "▁▁", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "##", "@@", "&amp;", "&lt;", "&#124;", "%", "º", "№"),
    *("«", "»", "„", "“", "”", "‘", "’", "‚", "´", "`", "''", '"', "–", "—", "…", "¿", "¡", "，", "。", "、", "”“"),
    *(
        "∶",
        "：",
        "？",
        "《",
        "》",
        "）",
        "！",
        "（",
        "；",
        "１",
        "」",
        "「",
        "０",
        "３",
        "．",
        "～",
        "’",
        "【",
        "】",
        "％",
    ),
    *("1 000", "1,000.50", "12 %", "n º 5", "a :b", "( c )", "-- d", "e;", "f ?", "g !", '."', ',"'),
]


def texts(n: int, seed: int) -> Iterator[str]:
    """Yield n texts, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    known = words(seed, 500) + words(0, 500)
    yield from ("", " ", "\x00", "\n\n", "a", "word " * 3000, "x" * 20_000, "字" * 5000, "‘" * 300)
    for i in range(n - 9):
        yield (_any_characters, _sentence, _sentence, _mixture)[i % 4](rng, known)


def _any_characters(rng: random.Random, _: list[str]) -> str:
    """Characters of all of Unicode, unassigned and private ones too; only surrogates cannot be."""
    codes = (rng.randrange(rng.choice((0x100, 0x3000, 0x10000, sys.maxunicode + 1))) for _ in range(rng.randint(1, 60)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def _sentence(rng: random.Random, known: list[str]) -> str:
    """Words as people write them, in upper and lower case."""
    chosen = [rng.choice((str, str.upper, str.title))(word) for word in rng.choices(known, k=rng.randint(1, 40))]
    return " ".join(chosen) + rng.choice(PUNCTUATION)


def _mixture(rng: random.Random, known: list[str]) -> str:
    """Words with special characters between and in them."""
    parts = (rng.choice(rng.choice((known, SPECIAL, PUNCTUATION))) for _ in range(rng.randint(1, 40)))
    return rng.choice(("", " ")).join(parts)
