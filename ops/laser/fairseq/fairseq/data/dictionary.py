"""Which token has which number."""

from __future__ import annotations

from pathlib import Path


class Dictionary:
    """Tokens and their numbers: the four special ones first, then those of a file.

    Attributes:
        indices: number of each token.
        bos_index: number of the first token of a sentence.
        pad_index: number of what short sentences are filled up with.
        eos_index: number of the last token of a sentence.
        unk_index: number of every token that is not known.
    """

    def __init__(self) -> None:
        self.indices: dict[str, int] = {}
        self.bos_index, self.pad_index, self.eos_index, self.unk_index = map(
            self.add_symbol, ("<s>", "<pad>", "</s>", "<unk>")
        )

    @classmethod
    def load(cls, path: str | Path) -> Dictionary:
        """Read a file with ``token count`` a line, in the order of their numbers."""
        dictionary = cls()
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                token, _, count = line.rstrip().rpartition(" ")
                if not token or not count.isdecimal() or token in dictionary.indices:
                    raise ValueError(f"{path}, line {number}: not a new token and its count")
                dictionary.add_symbol(token)
        return dictionary

    def add_symbol(self, token: str) -> int:
        """Add a token if it is not there, and return its number."""
        return self.indices.setdefault(token, len(self.indices))

    def __len__(self) -> int:
        return len(self.indices)
