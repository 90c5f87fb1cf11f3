"""Globs: the files that a pattern names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import BadInput

#: The parts of a glob that stand for folders at every depth.
_TWO_STARS = re.compile(r"(?<![^/])(?:\*\*(?:/+|$))+")


def files_matching(pattern: str) -> list[str]:
    """Return the files, not the folders, that a glob matches, sorted.

    Raises:
        BadInput: there are none.
    """
    # os.path, as Path raises where a part of the path cannot be looked at
    files = sorted({path for path in _expanded(pattern) if not os.path.isdir(path)})  # noqa: PTH112
    if not files:
        raise BadInput(f"{pattern}: no file matches this glob", source=pattern)
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """Expand a glob as Python does, but let ``**`` follow no links: one that leads back up would repeat every file."""
    stars = _TWO_STARS.search(pattern)
    if stars is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return
    top, rest = pattern[: stars.start()], pattern[stars.end() :]
    for start in glob.iglob(top) if top else [os.curdir]:  # noqa: PTH207
        for folder, below, _ in os.walk(start):
            below[:] = [name for name in below if not name.startswith(".")]
            yield from _expanded(str(Path(glob.escape(folder), rest or "*")))
