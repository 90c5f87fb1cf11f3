"""Another rank of a slot, as rank 0 sees it: its process, what it says of itself, and how it ended.

Its standard input brings orders, and is its lifeline; what it says are JSON lines on its standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

#: What a rank says: it is there, it has loaded the model, a call failed, a call found no memory.
State = Literal["here", "ready", "failed", "full"]


class Member:
    """One rank beside rank 0.

    Args:
        rank: its number.
        arguments: of its command.
        environment: its own.
        on_end: called once, from a thread, when its process is gone.

    Attributes:
        state: what it said last; empty before that.
        error: and why.
        status: its exit status, as of ``subprocess``; None while it runs.
    """

    def __init__(
        self,
        rank: int,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_end: Callable[[Member], None],
    ) -> None:
        self.rank = rank
        self.state: State | Literal[""] = ""
        self.error = ""
        self.status: int | None = None
        self._on_end = on_end
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.sharding.rank", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._listen, name=f"rank {rank}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def send(self, order: bytes) -> None:
        """Send an order. If nobody is there to take it, ``on_end`` is being called."""
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).write(order)
            _pipe(self._process.stdin).flush()

    def wait_for(self, state: State) -> bool:
        """Wait until it says so; return False if it ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self.state == state or self.status is not None)
        return self.state == state

    def ends_within(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self.status is not None, timeout_s)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _listen(self) -> None:
        try:
            for line in _pipe(self._process.stdout):
                self._hear(line)
        finally:
            status = self._process.wait()
            with self._changed:
                self.status = status
                self._changed.notify_all()
            self._on_end(self)

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            state, error = said["state"], said.get("error", "")
        except (ValueError, TypeError, KeyError):
            return  # not a rank's: what Python runs at its start may print
        with self._changed:
            self.state, self.error = state, error
            self._changed.notify_all()


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream
