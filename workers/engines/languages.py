"""Languages of a model whose tokenizer puts a token of the text's language beside it, as those of M2M100 and NLLB do.

Which languages there are is the tokenizer's to say, and which one is set is state that it keeps between calls. So each
call that tokenises sets it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.options import LANGUAGE_PATTERN, EncodeOptions

#: Letters that a name must begin with to be offered for one that the model lacks: ``wolof`` brings up ``wol_Latn``.
CODE_LETTERS = 3

#: What a message may quote. A field that is not meant may hold anything else, and no error shows a record's values.
_looks_like_code = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z]{2,4})?").fullmatch


class Languages:
    """The languages of one tokenizer; most have none.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        #: By their small letters, in order.
        self._codes = {code.lower(): code for code in sorted(codes_of(tokenizer))}
        self._known = frozenset(self._codes.values())
        self._loaded = tokenizer.src_lang if self._codes else None

    def check(self, options: EncodeOptions) -> str | None:
        """Say why the model cannot serve a job's language, or its lack of one; or return None."""
        asked = options.language
        if not self._codes:
            if asked is None and options.language_field is None:
                return None
            return "the model knows no languages: leave out --language and --language-field"
        if asked is None:
            if options.language_field is not None:
                return None
            return (
                f"the model must be told the language of the texts: give --language {self._loaded}, or "
                "--language-field for records that say it"
            )
        if asked in self._known:
            return None
        which = f"language {asked!r}" if _looks_like_code(asked) else "such language"
        return f"the model has no {which}; {self._like(asked.lower())}"

    def set(self, language: str | None) -> None:
        """Have the next texts tokenised in a language; None for the one that the tokenizer was loaded with."""
        if self._codes:
            self._tokenizer.src_lang = language or self._loaded

    def _like(self, asked: str) -> str:
        begin = re.split("[-_]", asked)[0]
        found = [name for name in self._codes if name.startswith(begin[:CODE_LETTERS])]
        if not found and len(begin) <= CODE_LETTERS:  # models of two and of three letters meet: eng_Latn, en
            found = [name for name in self._codes if begin.startswith(name)]
        if found:
            return f"did you mean {' or '.join(self._codes[name] for name in found[:3])}?"
        return f"it has {len(self._codes)}, such as {self._loaded}"


def codes_of(tokenizer: Any) -> frozenset[str]:
    """Return the names of a tokenizer's languages; none where it has no ``src_lang`` to set.

    M2M100's and mBART's list them. NLLB's does not: its languages are those of its special tokens that are names.
    """
    if not hasattr(tokenizer, "src_lang"):
        return frozenset()
    listed = getattr(tokenizer, "lang_code_to_id", None)
    if listed is None:
        listed = filter(re.compile(LANGUAGE_PATTERN).match, map(str, tokenizer.extra_special_tokens))
    return frozenset(listed)


@contextmanager
def any_language(tokenizer: Any) -> Iterator[None]:
    """Have a tokenizer's state not depend on the language that was set last: every job says its own."""
    codes = codes_of(tokenizer)
    if not codes:
        yield
        return
    last, tokenizer.src_lang = tokenizer.src_lang, min(codes)
    try:
        yield
    finally:
        tokenizer.src_lang = last
