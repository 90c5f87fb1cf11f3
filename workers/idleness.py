"""How idle a GPU was under its processes, noted for the next start, which then plans one more if need be.

The parent of a node writes the note, from what its slots report; `workers.planning` reads it. It is a hint, and no
harm is done where it is lost.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.messages import ModelSpec
from tasks.settings import Settings
from tasks.workforce import SlotStatus

#: Names the note's file to a node.
NOTE_VARIABLE = "PENSTOCK_IDLENESS_NOTE"
#: Seconds of work after which a node's slots have a share worth noting.
ENOUGH_S = 60.0


@dataclass(frozen=True)
class Idleness:
    """What was measured: with so many processes, this share of the device's time went without a model's work.

    The device counts as busy for the sum of what each process was, as their work hardly overlaps on it.
    """

    processes: int
    idle_share: float

    @classmethod
    def read(cls, path: Path) -> Idleness | None:
        """Read a note, if there is one that makes sense."""
        try:
            note = cls(**json.loads(path.read_text()))
            is_sound = note.processes >= 1 and 0 <= note.idle_share <= 1
        except (OSError, ValueError, TypeError):
            return None
        return note if is_sound else None

    def write(self, path: Path) -> None:
        """Write the note, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)


def note_path(settings: Settings, spec: ModelSpec, device_title: str) -> Path:
    """Return where the note on a model and a kind of device lies."""
    title = re.sub(r"\W+", "-", device_title).strip("-").lower()
    return settings.state_dir.expanduser() / "devices" / f"processes-{spec.digest}-{title}.json"


class IdlenessNotes:
    """A node's notes on its slots: after ``ENOUGH_S`` of work, and each time that they have worked twice as long.

    Args:
        path: the file, or None to note nothing.
        processes: slots of the node.
    """

    def __init__(self, path: Path | None, processes: int) -> None:
        self._path = path
        self._processes = processes
        self._due_s = ENOUGH_S

    @classmethod
    def of_environment(cls, processes: int) -> IdlenessNotes:
        """Take the file that the plan of this node names; for a CPU it names none."""
        path = os.environ.get(NOTE_VARIABLE)
        return cls(Path(path) if path else None, processes)

    def see(self, slots: Sequence[SlotStatus]) -> None:
        """Note what the slots report, if it is time."""
        worked = [(slot.model_s, slot.model_s + slot.idle_s) for slot in slots if slot.model_s]
        if self._path is None or len(worked) < self._processes or min(total for _, total in worked) < self._due_s:
            return
        self._due_s = 2 * min(total for _, total in worked)
        busy = sum(model_s / total for model_s, total in worked)
        with suppress(OSError):
            Idleness(self._processes, round(max(0.0, 1 - busy), 3)).write(self._path)
