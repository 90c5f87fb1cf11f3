"""The ranks of a slot, led from rank 0: started together, ordered together, and gone together.

Nobody can go on without a rank: the others wait for its part of a layer. So when one ends, this process does too; its
node sees a slot die, gives its chunk back, and starts a new slot with new ranks.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from tasks.endings import EXIT_RANK_FULL, EXIT_RANK_LOST, EXIT_ROW_FULL, describe
from tasks.errors import UsageError, place_of
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.memory import is_out_of_memory
from workers.sharding import orders
from workers.sharding.group import join_group, planned_ranks
from workers.sharding.member import Member, State
from workers.sharding.orders import Order

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What can be parted among ranks.
PartName = Literal["embedding", "cross_encoder", "causal"]

#: Seconds in which a rank that ended lets the others fail at what they wait for, by themselves and in better words.
#: Then they are taken to hang in it, as NCCL's do.
LOAD_GRACE_S = 30.0
#: Seconds in which the end of a rank is noticed that made a call of this one fail.
NOTICE_S = 2.0
#: Settings that a rank has no use for: it knows neither broker nor store.
_NOT_TOLD = ("BROKER_URL", "STORE_URL", "CACHE_URL", "SIGNING_KEY_FILE", "BROKER_TLS_CA", "BROKER_TLS_CERT")


class Crew:
    """The other ranks of this process's slot. Waits until their processes are there.

    Args:
        part: what they load, by its name in `workers.sharding.parts`.
        spec: of the model.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.
        n_ranks: this one included.

    Attributes:
        on_shortage: called when a device had no memory for a batch, before this process ends; returns whether the next
            ones can be smaller.
        has_started: whether the model works. Before that, what fails is said, and not tried again.

    Raises:
        UsageError: one of them cannot start.
    """

    def __init__(self, part: PartName, spec: ModelSpec, device: str, settings: Settings, n_ranks: int) -> None:
        self.on_shortage: Callable[[], bool] = lambda: False
        self._n_rows = 0
        self.has_started = self._is_over = False
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-ranks-"))
        self._meeting = self._folder / "meeting"
        told = (str(n_ranks), str(self._meeting), part, device, spec.model_dump_json())
        environment = _environment(settings)
        self._members = [Member(rank, (str(rank), *told), environment, self._note_end) for rank in range(1, n_ranks)]
        self._wait_for("here")  # else one that cannot even start would be waited for in vain
        join_group(0, n_ranks, self._meeting, device)

    @property
    def pids(self) -> list[int]:
        """The processes of the other ranks."""
        return [member.pid for member in self._members]

    @property
    def reason(self) -> str:
        """Why one of them failed, in its own words; empty if none did."""
        return next((member.error for member in self._members if member.state == "failed"), "")

    def wait_until_ready(self) -> None:
        """Wait until all have loaded the model.

        Raises:
            UsageError: one of them cannot.
        """
        self._wait_for("ready")

    def tell(self, order: Order) -> None:
        """Have the others run something in which this rank takes its part by itself."""
        data = orders.encode(order)
        for member in self._members:
            member.send(data)

    def perform(self, order: Order, n_rows: int, run: Callable[[], T]) -> T:
        """Have the others run an order, and run the same here.

        If it fails on any rank, the others may be anywhere: this process ends.

        Args:
            order: what.
            n_rows: of a batch; of those that are more than one, there may be fewer the next time.
            run: this rank's part.
        """
        self._n_rows = n_rows
        self.tell(order)
        try:
            return run()
        except Exception as exc:
            self._give_up(exc)
            raise

    def end(self) -> None:
        """End the others: this slot cannot start."""
        self._is_over = True
        for member in self._members:
            member.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for(self, state: State) -> None:
        for member in self._members:
            if not member.wait_for(state) and member.state == "failed":
                self.end()
                raise UsageError(member.error)
            # One that ended without a word takes this process along, from its own thread.

    def _note_end(self, member: Member) -> None:
        """End this process after a rank, from that one's thread."""
        if self._is_over:
            return
        if member.state == "full":
            self._run_out(f"rank {member.rank}")
        if member.state in {"failed", "full"} and not self.has_started:
            self._wait_for_words()
        else:
            how = member.error or describe(member.status)
            log.error("Slot ends with its rank %d: %s", member.rank, how, extra={"action": "end"})
        self._leave(EXIT_RANK_LOST)

    def _wait_for_words(self) -> None:
        """Wait until rank 0 has failed likewise, and said so to whoever started it; it may wait for that one."""
        deadline = time.monotonic() + LOAD_GRACE_S
        while time.monotonic() < deadline:
            if self._is_over:
                threading.Event().wait()  # nothing is left to do in this thread
            time.sleep(NOTICE_S / 20)

    def _give_up(self, exc: Exception) -> None:
        """Leave a call that failed here. Returns if the error may go on."""
        if is_out_of_memory(exc):
            self._run_out("rank 0")
        lost = [member for member in self._members if member.ends_within(NOTICE_S / len(self._members))]
        if full := [member for member in lost if member.state == "full"]:
            self._run_out(f"rank {full[0].rank}")  # that one's thread does the same, and may come second
        if self.has_started or any(member.state not in {"failed", "full"} for member in lost):
            log.error("Slot ends, its rank 0 failed: %s", place_of(exc), extra={"action": "end"})
            self._leave(EXIT_RANK_LOST)
        self.end()

    def _run_out(self, who: str) -> None:
        """End because a device had no memory for a batch, of which the others have done who knows how much."""
        can_be_less = self.on_shortage() and self._n_rows > 1
        if not can_be_less and not self.has_started:
            return  # not even the engine's own rows
        log.error("Slot ends, %s had no memory for %d rows", who, self._n_rows, extra={"action": "end"})
        self._leave(EXIT_RANK_FULL if can_be_less else EXIT_ROW_FULL)

    def _leave(self, status: int) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(status)


def lead(
    part: PartName, spec: ModelSpec, device: str, settings: Settings, read: Callable[[], T]
) -> tuple[T, Crew | None]:
    """Load a model; if this slot is parted among ranks, together with the others.

    Args:
        part: what the others load.
        spec: of the model.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.
        read: loads this rank's part.

    Returns:
        What was read, and the other ranks, if there are any.

    Raises:
        UsageError: one of them cannot load it.
    """
    n_ranks = planned_ranks()
    if n_ranks == 1:
        return read(), None
    crew = Crew(part, spec, device, settings, n_ranks)
    try:
        done = read()
        crew.wait_until_ready()
    except Exception as exc:
        reason = crew.reason
        crew.end()
        if reason and not isinstance(exc, UsageError):  # it failed first, and this one for want of it
            raise UsageError(reason) from exc
        raise
    return done, crew


def crew_of(model: Any) -> Crew | None:
    """Return the ranks that a model is parted among, if it is."""
    crew: Crew | None = getattr(model, "crew", None)
    return crew


def _environment(settings: Settings) -> dict[str, str]:
    names = {f"PENSTOCK_{name}" for name in _NOT_TOLD}
    return {name: value for name, value in {**os.environ, **settings.environment()}.items() if name not in names}
