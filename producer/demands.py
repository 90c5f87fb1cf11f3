"""What an output demands of pairs, so that it is known before they are scored whether it can be written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from producer.rows import quote
from tasks.errors import BadInput

#: What ends a field of a run: readers split at any white space of Unicode, or stop at a NUL.
_BREAK = re.compile(r"[\s\0]")


@dataclass(frozen=True)
class Demands:
    """What must be true of pairs.

    Attributes:
        is_ranked: the pairs of a query stand together.
        has_plain_ids: ids are fields of a TREC run.
    """

    is_ranked: bool = False
    has_plain_ids: bool = False

    def check_id(self, place: str, kind: str, id_: str) -> None:
        """Refuse an id that cannot be written.

        Args:
            place: where it stands.
            kind: query or document.
            id_: of it.

        Raises:
            BadInput: it is none for a run.
        """
        if self.has_plain_ids and not is_plain(id_):
            raise BadInput(
                f"{place}: the {kind} id {quote(id_)} holds white space, which a TREC run cannot say. Write .jsonl or "
                ".parquet instead.",
                id=id_,
            )

    def check_return(self, place: str, query_id: str) -> None:
        """Refuse a query that comes back after another one.

        Raises:
            BadInput: its pairs are to be ranked.
        """
        if self.is_ranked:
            raise BadInput(
                f"{place}: the query {quote(query_id)} comes back after another one, so its pairs cannot be ranked. "
                "Sort the pairs by query, or write all without --top-k as .parquet, .arrow or .npy.",
                id=query_id,
            )


def is_plain(text: str) -> bool:
    """Tell whether a text can be a field of a TREC run."""
    return bool(text) and not _BREAK.search(text)
