"""Where vectors are kept across chunks and jobs: a folder of one machine, or a Redis for many.

A cache is never needed: whatever fails in one is raised as CacheFault, and means that the vectors are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class CacheFault(Exception):
    """A cache does not do what it should; the text says which one, and why."""


class Cache(Protocol):
    """Values by key; whoever reads one checks that it is whole."""

    def get(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what is there of these keys.

        Raises:
            CacheFault: it cannot be read now.
        """

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values, over older ones of the same key.

        Raises:
            CacheFault: it cannot be written now.
        """

    def close(self) -> None:
        """Give back files and connections."""
