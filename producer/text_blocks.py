"""Putting the texts of a scoring job into text blocks, each text once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from producer.chunking import utf8_bytes
from tasks import keys, tables

#: UTF-8 bytes of texts and ids at most, beyond the one that closes a block: a request of the store that is worth its
#: round trip, and little to fetch for the few texts of it that a chunk may need.
BLOCK_BYTES = 2**20

#: Where a text lies: in which text block, and which one it is there, from 0.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Texts that are stored together.

    Attributes:
        number: of the block in the job, from 0.
        ids: (n_texts,)
        texts: (n_texts,)
    """

    number: int
    ids: list[str] = field(default_factory=list, repr=False)
    texts: list[str] = field(default_factory=list, repr=False)

    def path(self, job: str) -> str:
        """Return where it is stored."""
        return keys.texts_path(job, self.number)

    def table(self) -> pa.Table:
        """Return what is stored."""
        return tables.text_block(self.ids, self.texts)


class BlockPacker:
    """Puts texts into blocks in the order in which they come, so that the same texts give the same blocks."""

    def __init__(self) -> None:
        self._full: list[TextBlock] = []
        self._open = TextBlock(0)
        self._n_bytes = 0

    def add(self, id_: str, text: str) -> Place:
        """Add a text and return where it lies."""
        if self._n_bytes >= BLOCK_BYTES:
            self._close()
        self._open.ids.append(id_)
        self._open.texts.append(text)
        self._n_bytes += utf8_bytes(id_) + utf8_bytes(text)
        return self._open.number, len(self._open.texts) - 1

    def take(self) -> Iterator[TextBlock]:
        """Hand out the full blocks, each once."""
        full, self._full = self._full, []
        yield from full

    def take_all(self) -> Iterator[TextBlock]:
        """Hand out the rest."""
        if self._open.texts:
            self._close()
        yield from self.take()

    def _close(self) -> None:
        self._full.append(self._open)
        self._open = TextBlock(self._open.number + 1)
        self._n_bytes = 0
