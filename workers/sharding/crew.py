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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from tasks.endings import EXIT_RANK_FULL, EXIT_RANK_LOST, EXIT_ROW_FULL, describe
from tasks.errors import UsageError, place_of
from tasks.messages import ModelSpec
from tasks.settings import CONFIG_FILE, Settings
from workers.memory import is_out_of_memory
from workers.sharding import orders
from workers.sharding.group import join_group, planned_ranks
from workers.sharding.member import Member, State
from workers.sharding.orders import Order
from workers.sharding.start import START

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What can be parted among ranks.
PartName = Literal["embedding", "cross_encoder", "causal"]

#: Seconds in which a rank that ended lets the others fail at what they wait for, by themselves and in better words.
#: Then they are taken to hang in it, as NCCL's do.
LOAD_GRACE_S = 30.0
#: Seconds in which the end of a rank is noticed that made a call of this one fail.
NOTICE_S = 2.0
#: How settings begin that a rank has no use for: it knows neither broker nor store. So do other programs' variables.
_NOT_TOLD = ("broker_", "store_", "cache_", "signing_")
_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")


class Crew:
    """The other ranks of this process's slot.

    Args:
        part: what they load, by its name in `workers.sharding.parts`.
        spec: of the model.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.
        n_ranks: this one included.

    Attributes:
        on_shortage: called when a device had no memory for a batch, before this process ends; returns whether the next
            ones can be smaller.
    """

    def __init__(self, part: PartName, spec: ModelSpec, device: str, settings: Settings, n_ranks: int) -> None:
        self.on_shortage: Callable[[], bool] = lambda: False
        self._n_rows = 0
        self._fault: UsageError | None = None
        self._over = threading.Event()
        self._running_out = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-ranks-"))
        self._meeting = self._folder / "meeting"
        self._device, self._n_ranks, self._shard = device, n_ranks, settings.shard
        told = (str(n_ranks), str(self._meeting), part, device, spec.model_dump_json())
        environment = environment_of(settings, self._folder)
        self._members = [Member(rank, (str(rank), *told), environment, self._note_end) for rank in range(1, n_ranks)]

    @property
    def pids(self) -> list[int]:
        """The processes of the other ranks."""
        return [member.pid for member in self._members]

    @property
    def reason(self) -> str:
        """Why one of them failed, in its own words; empty if none did."""
        return next((member.error for member in self._members if member.state in {"failed", "full"}), "")

    def meet(self) -> None:
        """Wait until their processes are there, and be one of them.

        Raises:
            UsageError: one of them cannot start.
        """
        self._wait_for("here")  # else one that cannot even start would be waited for in vain
        join_group(0, self._n_ranks, self._meeting, self._device)

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

    def perform(self, order: Order, n_rows: int | None, run: Callable[[], T]) -> T:
        """Have the others run an order, and run the same here.

        If it fails on any rank, the others may be anywhere: this process ends. Before it has started, the others do,
        and nothing can be performed any more.

        Args:
            order: what.
            n_rows: of a batch; of those that are more than one, there may be fewer the next time. None for what is a
                part of the batch before.
            run: this rank's part.

        Raises:
            UsageError: a rank failed before the slot has started.
        """
        if self._fault:
            raise self._fault
        self._n_rows = self._n_rows if n_rows is None else n_rows
        self.tell(order)
        try:
            return run()
        except Exception as exc:
            self._give_up(exc)
            error = self._in_words(exc)
            self._fault = error if isinstance(error, UsageError) else UsageError(f"rank 0 failed: {place_of(exc)}")
            if error is exc:
                raise
            raise error from exc

    def end(self) -> None:
        """End the others: this slot cannot start."""
        self._over.set()
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
        if self._over.is_set():
            return
        if member.state == "full":
            self._run_out(f"rank {member.rank}")
        if member.state in {"failed", "full"} and not START.is_over:
            if self._over.wait(LOAD_GRACE_S):
                return  # rank 0 failed likewise, and says it in its own words
            if not START.is_over:
                self._fail_to_start()
                return
        how = member.error or describe(member.status)
        log.error("Slot ends with its rank %d: %s", member.rank, how, extra={"action": "end"})
        self._leave(EXIT_RANK_LOST)

    def _fail_to_start(self) -> None:
        """Say why this slot cannot start; rank 0 may hang in a call with a rank that is gone."""
        log.error("Slot failed to start: %s", self.reason, extra={"action": "start"})
        shutil.rmtree(self._folder, ignore_errors=True)
        START.on_failure(self.reason)

    def _give_up(self, exc: Exception) -> None:
        """Leave a call that failed here. Returns if the error may go on."""
        if is_out_of_memory(exc):
            self._run_out("rank 0")
        lost = [member for member in self._members if member.ends_within(NOTICE_S / len(self._members))]
        if full := [member for member in lost if member.state == "full"]:
            self._run_out(f"rank {full[0].rank}")  # that one's thread does the same, and may come second
        if START.is_over or any(member.state not in {"failed", "full"} for member in lost):
            log.error("Slot ends, its rank 0 failed: %s", place_of(exc), extra={"action": "end"})
            self._leave(EXIT_RANK_LOST)
        self.end()

    def _in_words(self, exc: Exception) -> Exception:
        """Return what to raise for an error before the slot has started.

        No shortage: whoever meets one tries a smaller batch, and here is nobody left to run it.
        """
        if is_out_of_memory(exc) or any(member.state == "full" for member in self._members):
            return UsageError(
                f"--shard {self._shard}: a device has no memory for {self._n_rows} rows. Name more devices."
            )
        if self.reason and isinstance(exc, RuntimeError):  # the group's, for want of the rank that failed
            return UsageError(self.reason)
        return exc

    def _run_out(self, who: str) -> None:
        """End because a device had no memory for a batch, of which the others have done who knows how much."""
        with self._running_out:  # rank 0 and another one's thread may both notice, and one of them decides
            can_be_less = self._n_rows > 1 and self.on_shortage()
            if not can_be_less and not START.is_over:
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
        crew.meet()
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


def environment_of(settings: Settings, folder: Path) -> dict[str, str]:
    """Return an environment in which a rank finds these settings, and nothing that opens a broker or a store.

    Args:
        settings: of the worker.
        folder: for a settings file that says nothing else.
    """
    config = folder / CONFIG_FILE
    config.write_text("", encoding="utf-8")
    own = {f"PENSTOCK_{name.upper()}" for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in own and not name.startswith(_CREDENTIALS)}
    hidden = tuple(f"PENSTOCK_{beginning.upper()}" for beginning in _NOT_TOLD)
    told = {name: value for name, value in settings.environment().items() if not name.startswith(hidden)}
    return {**kept, **told, "PENSTOCK_CONFIG": str(config)}
