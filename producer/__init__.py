"""The front door: ``Client`` and ``Job`` for scripts, the ``penstock`` command. Never imports torch."""

from pathlib import Path

import tasks

# `tasks` is a name that a user's own file may have; then everything after this would fail in ways hard to read.
_ours = Path(__file__).resolve().parent.parent
if Path(tasks.__file__ or "").resolve().parent.parent != _ours:
    raise ImportError(
        f"{tasks.__file__} shadows penstock's package `tasks` (in {_ours}): rename it, or run from another folder."
    )

from producer.client import Client  # noqa: E402 - after the check
from producer.job import Job  # noqa: E402

__all__ = ["Client", "Job"]
