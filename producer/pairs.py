"""The input of a scoring job: queries, documents, and which of them meet."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, Literal

from producer.candidates import Candidates, CandidatesLike, read_candidates
from producer.chunking import PairChunk, cut_pairs, utf8_bytes
from producer.corpus import Opened, submission_key
from producer.demands import Demands
from producer.matching import Matching
from producer.pair_records import OpenedRecords, RecordsLike, read_records
from producer.text_blocks import BlockPacker, TextBlock
from producer.texts import Texts, TextsLike, read_texts
from tasks.errors import UsageError
from tasks.settings import Settings

#: Texts whose places are noted at a time.
_PAGE = 10_000


class OpenedPairs(Opened):
    """Queries that meet their candidates, or all documents.

    Queries and documents are read twice: once for their ids, which are checked before anything is sent, and once for
    the texts of those that are needed. What cannot be read twice is kept in a temporary file meanwhile. All texts go
    before the first chunk, because a chunk may need any of them.

    Args:
        queries: in the order of the results.
        documents: in the order of each query's results without candidates.
        candidates: which documents each query meets, in the order of its results; all if None.

    Attributes:
        demands: what their output asks for.
    """

    def __init__(self, queries: Texts, documents: Texts, candidates: Candidates | None = None) -> None:
        identities = [queries.key, documents.key, *([candidates.key] if candidates else [])]
        is_repeatable = None not in identities
        key = submission_key(identities) if is_repeatable else secrets.token_hex(16)
        super().__init__(key, is_repeatable=is_repeatable)
        self._queries, self._documents, self._candidates = queries, documents, candidates
        self.demands = Demands()
        self._matching: Matching | None = None

    @property
    def n_pairs(self) -> int:
        """How many pairs there are. Reads all ids and checks them; after that, the warnings are there.

        Raises:
            BadInput: a record cannot be read, an id is not unique or cannot be written, or a candidate is no document.
        """
        return self._matched().n_pairs

    def parts(self, settings: Settings) -> Iterator[TextBlock | PairChunk]:
        """Yield the text blocks, then the chunks."""
        matching, packer = self._matched(), BlockPacker()
        for texts in (self._queries, self._documents):
            yield from _blocks(texts, matching, packer)
        yield from packer.take_all()
        yield from cut_pairs(matching.pairs(), chunk_rows=settings.chunk_rows, chunk_bytes=settings.chunk_bytes)
        matching.close()

    def _matched(self) -> Matching:
        if self._matching is None:
            matching = Matching()
            matching.add_texts(self._queries, self._documents)
            if self._candidates is not None:
                self.warnings += matching.add_candidates(self._candidates)
            for texts in (self._queries, self._documents) if self.demands.has_plain_ids else ():
                for number, id_ in matching.ids(texts.kind):
                    self.demands.check_id(texts.place(number), texts.kind, id_)
            self._matching = matching
        return self._matching


def read_pairs(
    queries: TextsLike | None,
    documents: TextsLike | None,
    candidates: CandidatesLike | None,
    pairs: RecordsLike | None,
    **fields: str,
) -> OpenedPairs | OpenedRecords:
    """Open whatever `Client.score` takes.

    Args:
        queries: with documents, and candidates if there are any; or none of them.
        documents: as above.
        candidates: as above.
        pairs: or these.
        fields: query_field, doc_field, query_id_field, doc_id_field, as far as they are not the usual ones.

    Raises:
        BadInput: a file is not there or cannot be read.
        UsageError: these do not go together.
    """

    def open_texts(queries: TextsLike, documents: TextsLike, candidates: CandidatesLike | None) -> OpenedPairs:
        return OpenedPairs(
            read_texts("query", queries, **fields_of("query", fields)),
            read_texts("document", documents, **fields_of("doc", fields)),
            None if candidates is None else read_candidates(candidates),
        )

    def open_pairs(pairs: RecordsLike) -> OpenedRecords:
        return read_records(pairs, **fields)

    return open_either(queries, documents, candidates, pairs, open_texts, open_pairs)


def open_either(
    queries: Any,
    documents: Any,
    candidates: Any,
    pairs: Any,
    open_texts: Callable[[Any, Any, Any], OpenedPairs],
    open_pairs: Callable[[Any], OpenedRecords],
) -> OpenedPairs | OpenedRecords:
    """Open queries and documents, or pairs, whichever of them are given.

    Raises:
        UsageError: both are, or neither.
    """
    if pairs is not None:
        if queries is not None or documents is not None or candidates is not None:
            raise UsageError(
                "Pairs have queries and documents already: give pairs alone, or queries and docs, and candidates if "
                "there are any."
            )
        return open_pairs(pairs)
    if queries is None or documents is None:
        raise UsageError("Nothing to score: give queries and docs, or pairs.")
    return open_texts(queries, documents, candidates)


def fields_of(side: Literal["query", "doc"], fields: dict[str, str]) -> dict[str, str]:
    """Return the fields of one side, as ``read_texts`` and ``open_texts`` call them."""
    names = {f"{side}_field": "text_field", f"{side}_id_field": "id_field"}
    return {names[name]: field for name, field in fields.items() if name in names}


def _blocks(texts: Texts, matching: Matching, packer: BlockPacker) -> Iterator[TextBlock]:
    """Yield the full text blocks, and note where each text lies."""
    places: list[tuple[int, int, int, int]] = []
    for number, id_, text in matching.wanted(texts):
        places.append((number, *packer.add(id_, text), utf8_bytes(text)))
        if len(places) == _PAGE:
            matching.place(texts.kind, places)
            places.clear()
        yield from packer.take()
    matching.place(texts.kind, places)
