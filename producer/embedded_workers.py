"""The local nodes of an embedded run: one ``python -m workers.launch`` and what it starts."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable

from producer.embedded import cut, environment
from producer.runs import Run, private
from tasks import lifeline
from tasks.backoff import Backoff
from tasks.endings import EXIT_NOT_STARTED, describe
from tasks.errors import UsageError, WorkerStopped
from tasks.messages import ModelSpec
from tasks.options import Operation
from tasks.settings import Settings

log = logging.getLogger(__name__)

#: Deaths without a chunk done in between, after which nothing is started any more.
MOST_DEATHS = 5


class EmbeddedWorkers:
    """The workers, started again when they die.

    Args:
        run: where their log goes.
        settings: theirs.
        bury: strikes off the slots of those that died, and returns how many chunks are done.
    """

    def __init__(self, run: Run, settings: Settings, bury: Callable[[], int]) -> None:
        self._run = run
        self._settings = settings
        self._bury = bury
        self._backoff = Backoff()
        self._deaths = 0
        self._done = -1
        self._start()

    @property
    def operation(self) -> Operation:
        """What they do."""
        return self._settings.operation

    @property
    def model(self) -> ModelSpec:
        """What they load for it."""
        return ModelSpec.parse(str(self._settings.model), self.operation)

    def check(self) -> None:
        """Look after the workers: start them again, after a pause, if they died.

        Raises:
            UsageError: one of their settings is wrong.
            WorkerStopped: they cannot start, or died again and again.
        """
        status = self._process.poll()
        if status is None:
            return
        if self._restart_at is None:
            self._note_death(status)
        elif time.monotonic() >= self._restart_at:
            self.stop()  # closes the line to the dead
            self._start()

    def stop(self) -> None:
        """Cut the lifeline of nodes and slots. Chunks in work are done again by the next run."""
        cut(self._process)

    def _start(self) -> None:
        with open(self._run.worker_log, "ab", opener=private) as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.launch"],
                env={**environment(), **self._settings.environment(), lifeline.LIFELINE_VARIABLE: "1"},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started = time.monotonic()
        self._restart_at: float | None = None

    def _note_death(self, status: int) -> None:
        if status == UsageError.exit_code:
            raise UsageError(self._last_words(status))
        if status == EXIT_NOT_STARTED:
            raise WorkerStopped(f"The embedded workers ended: {self._last_words(status)} (log: {self._run.worker_log})")
        pause_s = self._backoff.pause_s(time.monotonic() - self._started)
        self._restart_at = time.monotonic() + pause_s  # a death counts once, even if the slots cannot be buried now
        done = self._bury()
        self._deaths = 1 if done > self._done else self._deaths + 1
        self._done = done
        if self._deaths >= MOST_DEATHS:
            raise WorkerStopped(
                f"The embedded workers ended {self._deaths} times without finishing a chunk, at last so: "
                f"{describe(status)} (log: {self._run.worker_log})"
            )
        log.warning(
            "The embedded workers ended: %s. Starting them again in %.0f s (log: %s)",
            *(describe(status), pause_s, self._run.worker_log),
            extra={"action": "restart"},
        )

    def _last_words(self, status: int) -> str:
        with self._run.worker_log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()
        said = [line for line in lines if "failed: " in line or line.startswith("penstock worker: ")]
        return said[-1].split("failed: ")[-1].removeprefix("penstock worker: ") if said else describe(status)
