"""The only room with torch: nodes, slots, engines."""

from pathlib import Path

import tasks

# `tasks` is a name that a user's own file may have; then everything after this would fail in ways hard to read.
_ours = Path(__file__).resolve().parent.parent
if Path(tasks.__file__ or "").resolve().parent.parent != _ours:
    raise ImportError(
        f"{tasks.__file__} shadows penstock's package `tasks` (in {_ours}): rename it, or run from another folder."
    )
