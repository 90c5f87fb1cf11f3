"""A rank other than 0: ``python -m workers.sharding.rank RANK RANKS MEETING PART DEVICE SPEC``.

It loads its part of the model and runs what rank 0 orders on standard input, whose end is its own. It knows neither
Celery nor ledger nor store.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tasks.errors import PenstockError, place_of
from tasks.logs import log_to_stderr
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.sharding import orders
from workers.sharding.orders import Order

if TYPE_CHECKING:
    from workers.sharding.crew import PartName


def main(arguments: list[str]) -> NoReturn:
    """Work until rank 0 is gone, or this one fails."""
    rank, n_ranks, meeting, part, device, spec = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal or a container tells them all; rank 0 decides
    say = _Voice()
    queue: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_receive, args=(queue, Path(meeting).parent), name="orders", daemon=True).start()
    try:
        settings = Settings.load()
        log_to_stderr(settings.log_format)
        # Here, because it takes seconds.
        from workers.memory import is_out_of_memory
        from workers.sharding.group import join_group
        from workers.sharding.parts import open_part

        say("here")
        join_group(int(rank), int(n_ranks), Path(meeting), device)
        loaded = open_part(cast("PartName", part), ModelSpec.model_validate_json(spec), device, settings)
    except Exception as exc:  # noqa: BLE001 - a process boundary
        say("failed", str(exc) if isinstance(exc, PenstockError) else place_of(exc))
        _leave()
    say("ready")
    while True:
        try:
            loaded.perform(queue.get())
        except Exception as exc:  # noqa: BLE001 - a process boundary; its text may quote a record
            say("full" if is_out_of_memory(exc) else "failed", place_of(exc))
            _leave()


def _leave() -> NoReturn:
    """End at once: the other ranks wait for this one, its libraries would for them, and Python for ``_receive``."""
    sys.stderr.flush()
    os._exit(1)


class _Voice:
    """What this rank says to rank 0, alone on the true standard output: libraries print."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def __call__(self, state: str, error: str = "") -> None:
        said: dict[str, Any] = {"state": state, "error": error}
        self._stream.write(f"{json.dumps(said)}\n")


def _receive(queue: SimpleQueue[Order], folder: Path) -> None:
    """Take orders as they come, also while one is at work: so rank 0's end is noticed within any call."""
    stream = sys.stdin.buffer
    try:
        while (order := orders.read(stream)) is not None:  # type: ignore[arg-type]
            queue.put(order)
    finally:  # whatever happens, this process does not stay alone
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
