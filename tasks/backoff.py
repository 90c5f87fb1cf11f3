"""When a process that died is started again."""

from __future__ import annotations

#: Seconds before the first new start; doubled each time, up to the longest.
FIRST_S = 1.0
LONGEST_S = 30.0
#: Seconds of life after which the pauses begin anew.
CALM_S = 60.0


class Backoff:
    """The pauses between the starts of one process."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def pause_s(self, lived_s: float) -> float:
        """Return how long to wait, after a life of so many seconds."""
        pause_s = FIRST_S if lived_s > CALM_S else self._next_s
        self._next_s = min(2 * pause_s, LONGEST_S)
        return pause_s
