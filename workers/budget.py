"""The token budget of a batch: found by probing the device, kept on disk, lowered when memory runs out.

Probing goes upward from small batches. On a CPU throughput has its best early, while a batch stays in the cache; on a
GPU it rises until the device is full, or memory ends it. What was found holds for one model on one kind of device with
one set of libraries, and is kept in a file of that name. Slots of one device take turns: the first one probes, the
others find its file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from workers.memory import DeviceMemory, is_out_of_memory

log = logging.getLogger(__name__)

#: Tokens of the first probe and of the largest; between them each one is twice the one before.
FIRST_PROBE, LAST_PROBE = 256, 2**19
#: A larger batch must be faster by this share to be worth its memory; two that are not end the probing.
GAIN = 1.03
#: Seconds that probing may take by its own reckoning; a model so large gets the best budget seen until then.
PROBE_S = 3.0
#: Seconds below which a probe is too short to be measured once.
SHORT_S = 0.2
#: Seconds to wait for one's turn.
TURN_S = 120.0
#: Age at which a budget is found anew: drivers and neighbours change.
STALE_S = 30 * 86_400
#: Tokens below which no budget falls; a single row may be longer.
LEAST = 16
#: Full batches without a shortage after which a lowered budget rises again, and by what.
CALM_BATCHES = 64
RISE = 1.125


class Probed(BaseModel):
    """What probing found.

    Attributes:
        tokens: the budget.
        tokens_per_s: padded tokens a second with it.
        bytes_per_token: memory that a batch takes a token; 0 if it could not be told.
        probed_s: Unix time.
    """

    tokens: Annotated[int, Field(ge=LEAST, le=LAST_PROBE)]
    tokens_per_s: Annotated[float, Field(ge=0)]
    bytes_per_token: Annotated[float, Field(ge=0)]
    probed_s: float


class TokenBudget:
    """How many tokens a batch may cost at this moment.

    Args:
        tokens: the most that it ever is.
        memory: of the device.
        bytes_per_token: what a batch takes there; 0 if that is not known.

    Attributes:
        shortages: batches for which there was no memory.
    """

    def __init__(self, tokens: int, memory: DeviceMemory, bytes_per_token: float = 0.0) -> None:
        self._most = self._tokens = tokens
        self._memory = memory
        self._bytes_per_token = bytes_per_token
        self._calm = 0
        self.shortages = 0

    @property
    def tokens(self) -> int:
        """The budget; less if other processes have left no room for it."""
        if not self._bytes_per_token:
            return self._tokens
        return max(LEAST, min(self._tokens, int(self._memory.room_bytes / self._bytes_per_token)))

    def lower(self) -> None:
        """Note that a batch found no memory; halve the budget and give back what torch holds."""
        self.shortages += 1
        self._memory.release()
        self._tokens = max(LEAST, self._tokens // 2)
        self._calm = 0

    def passed(self, tokens: int) -> None:
        """Note that a batch went well; after many full ones, a lowered budget rises again, slowly."""
        if self._tokens == self._most or 2 * tokens < self._tokens:
            return
        self._calm += 1
        if self._calm >= CALM_BATCHES:
            self._tokens, self._calm = min(self._most, int(self._tokens * RISE) + 1), 0


def probe(run: Callable[[int], None], memory: DeviceMemory, most: int = LAST_PROBE) -> Probed:
    """Find the budget by running ever larger batches.

    Args:
        run: runs a batch that costs so many tokens, and returns when it is done.
        memory: of the device; a batch that would not fit below its ratio is not tried.
        most: tokens of the largest batch that is tried.

    Raises:
        Exception: the smallest batch fails.
    """
    first = min(FIRST_PROBE, most)
    run(first)  # compiles kernels and fills caches; not measured
    memory.reset_peak()
    before = memory.peak_bytes
    started = time.perf_counter()
    tokens, misses = first, 0
    best, best_rate, bytes_per_token = tokens, 0.0, 0.0
    while True:
        try:
            rate = tokens / _seconds(run, tokens)
        except Exception as exc:
            if tokens == first or not is_out_of_memory(exc):
                raise
            break
        bytes_per_token = max(bytes_per_token, (memory.peak_bytes - before) / tokens)
        if rate > GAIN * best_rate:
            best, best_rate, misses = tokens, rate, 0
        else:
            misses += 1
        tokens *= 2
        is_over = time.perf_counter() - started + tokens / rate > PROBE_S
        if misses > 1 or tokens > most or is_over or tokens * bytes_per_token > memory.room_bytes:
            break
    memory.release()
    return Probed(tokens=best, tokens_per_s=best_rate, bytes_per_token=bytes_per_token, probed_s=time.time())


def _seconds(run: Callable[[int], None], tokens: int) -> float:
    """Return how long a batch takes: the best of three where it is short."""
    seconds: list[float] = []
    while len(seconds) < 1 or (len(seconds) < 3 and seconds[0] < SHORT_S):  # noqa: PLR2004 - the best of three
        started = time.perf_counter()
        run(tokens)
        seconds.append(time.perf_counter() - started)
    return max(min(seconds), 1e-9)


def find(
    folder: Path, name: dict[str, str], run: Callable[[int], None], memory: DeviceMemory, most: int = LAST_PROBE
) -> Probed:
    """Return what an earlier probe found on such a device with such a model, or probe now.

    Args:
        folder: where budgets are kept; where it cannot be written, each process probes for itself.
        name: what the budget holds for: model, device, dtype, versions.
        run: as for ``probe``.
        memory: as for ``probe``.
        most: as for ``probe``; what was found earlier may be more.
    """
    file = folder / f"budget-{_key(name)}.json"
    with _turn(file.with_suffix(".lock")):
        found = _read(file)
        if found is not None:
            return found
        found = probe(run, memory, most)
        log.info(
            "Budget found: %d tokens a batch",
            found.tokens,
            extra={"action": "probe", "tokens_per_s": round(found.tokens_per_s), **name},
        )
        _write(file, found, name)
    return found


def keep_less(folder: Path, name: dict[str, str], tokens: int) -> bool:
    """Keep half of the tokens of a batch for which there was no memory, for the process after this one.

    Args:
        folder: where budgets are kept.
        name: what the budget holds for.
        tokens: of the batch, or the budget that it kept to.

    Returns:
        Whether there is a half, and it could be kept.
    """
    less = Probed(tokens=max(LEAST, tokens // 2), tokens_per_s=0, bytes_per_token=0, probed_s=time.time())
    with suppress(OSError):  # which writing there meets again
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _write(_shortage_file(folder, name), less, name) and tokens > LEAST


def kept_after_shortage(folder: Path, name: dict[str, str]) -> int:
    """Return the tokens that ``keep_less`` kept, or the most that there ever are."""
    found = _read(_shortage_file(folder, name))
    return LAST_PROBE if found is None else found.tokens


def _shortage_file(folder: Path, name: dict[str, str]) -> Path:
    return folder / f"shortage-{_key(name)}.json"


def _key(name: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Wait until no other slot of this machine probes."""
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        log.warning("Budgets cannot be kept: %s", exc, extra={"action": "probe"})
        yield
        return
    try:
        _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    """Take a lock; go without it where there are none, such as on some NFS, or its holder hangs."""
    deadline = time.monotonic() + TURN_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as exc:
            log.warning("Slots cannot take turns at probing: %s", exc, extra={"action": "probe"})
            return
        else:
            return


def _read(file: Path) -> Probed | None:
    try:
        found = Probed.model_validate(json.loads(file.read_text())["found"])
    except (OSError, ValueError, LookupError, TypeError, ValidationError):
        return None  # never probed, or damaged: it is written again
    return found if abs(time.time() - found.probed_s) < STALE_S else None


def _write(file: Path, found: Probed, name: dict[str, Any]) -> bool:
    """Write a file, in one step; return whether that went well."""
    draft = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        draft.write_text(json.dumps({"of": name, "found": found.model_dump()}, indent=1))
        draft.replace(file)
    except OSError as exc:
        log.warning("Budget not kept: %s", exc, extra={"action": "probe"})
        with suppress(OSError):
            draft.unlink()
        return False
    return True
