"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from producer.columns import LAYOUTS
from tasks.records import JobStatus
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)

#: Seconds of the window over which rates are taken.
WINDOW_S = 30.0
#: Seconds between two looks at a job while it is submitted.
LOOK_S = 0.2
#: Seconds between two plain lines, doubled up to the longest.
FIRST_LINE_S = 2.0
LONGEST_LINE_S = 60.0


class Progress:
    """Shows rows done, rows/s, tokens/s, time left and workers."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._history: deque[tuple[float, int, int]] = deque()
        self._line_at = 0.0
        self._line_every_s = FIRST_LINE_S
        self._looked_at = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, note="")
        self._line_at = time.monotonic() + self._line_every_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Write a line above the bar; where nothing is shown, to the log."""
        if self._enabled:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            log.warning("%s", line)

    def say_once(self, line: str, *, detail: str = "") -> None:
        """Write a line that was not written before. Its detail may differ."""
        if line not in self._said:
            self._said.add(line)
            self.say(line + detail)

    def update(self, status: JobStatus, slots: Sequence[SlotStatus]) -> None:
        """Show the state of a job."""
        if not self._enabled:
            return
        ready = sum(slot.state == "ready" for slot in slots)
        is_loading = not ready and not status.rows_done and any(slot.state == "loading" for slot in slots)
        what = "loading model" if is_loading else status.state
        note = self._note(status, ready)
        if self._bar is not None and self._task is not None:
            total = status.rows if status.is_sealed else None
            self._bar.update(self._task, description=what, total=total, completed=status.rows_done, note=note)
        elif status.is_over or time.monotonic() >= self._line_at:
            print(f"{what}: {note}", file=sys.stderr, flush=True)  # noqa: T201 - what a person sees
            self._line_every_s = min(2 * self._line_every_s, LONGEST_LINE_S)
            self._line_at = time.monotonic() + self._line_every_s

    def update_now_and_then(self, look: Callable[[], tuple[JobStatus, Sequence[SlotStatus]]]) -> None:
        """Show the state of a job unless that was done a moment ago."""
        now = time.monotonic()
        if self._enabled and now - self._looked_at > LOOK_S:
            self._looked_at = now
            self.update(*look())

    def _note(self, status: JobStatus, ready: int) -> str:
        rows_per_s, tokens_per_s = self._rates(status)
        total = f"{status.rows:,}" if status.is_sealed else f"{status.rows:,}+"
        left = status.rows - status.rows_done
        layout = LAYOUTS[status.spec.operation]
        parts = [f"{status.rows_done:,}/{total} {layout.noun}"]
        if rows_per_s:
            parts += [f"{rows_per_s:,.0f} {layout.pace}", f"{tokens_per_s:,.0f} tokens/s"]
            if status.is_sealed and left:
                parts.append(f"{_duration(left / rows_per_s)} left")
        if status.failed_rows:
            parts.append(f"{status.failed_rows:,} failed")
        return ", ".join([*parts, f"{ready} worker{'' if ready == 1 else 's'}"])

    def _rates(self, status: JobStatus) -> tuple[float, float]:
        """Return rows/s and tokens/s over the last seconds."""
        now = time.monotonic()
        if not status.rows_done:
            self._history.clear()  # the model still loads
        self._history.append((now, status.rows_done, status.tokens))
        while now - self._history[0][0] > WINDOW_S:
            self._history.popleft()
        then, rows, tokens = self._history[0]
        if now - then < 0.5:  # noqa: PLR2004 - too short for a rate
            return 0.0, 0.0
        return (status.rows_done - rows) / (now - then), (status.tokens - tokens) / (now - then)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
