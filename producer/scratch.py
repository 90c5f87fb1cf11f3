"""A private database on disk, for what need not fit into memory. It has no name, and goes with the process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import BadInput, UsageError

#: KiB of the database that are in memory at most, and about as many again where something is sorted.
CACHE_KIB = 64 * 1024


def open_scratch(tables: str) -> sqlite3.Connection:
    """Open a database with these tables. All that is done to it is one transaction, and nothing is taken back."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # whoever drops it closes it
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    database.executescript(tables)
    database.execute("BEGIN")
    return database


@contextmanager
def in_scratch() -> Iterator[None]:
    """Say in one line why a database cannot be written, or read: what it sorts takes room on the disk too.

    Raises:
        UsageError: the disk is full, or fails.
        BadInput: a text is larger than SQLite takes.
    """
    try:
        yield
    except sqlite3.DataError as exc:
        raise BadInput(f"A text or an id has more than a gigabyte ({exc}): cut it, or leave it out.") from exc
    except sqlite3.OperationalError as exc:
        raise UsageError(
            f"The ids cannot be kept in the folder for temporary files ({exc}): make room, or set TMPDIR to another."
        ) from exc
