"""Running a program and watching it from outside: memory and CPU time of it and all that it starts, and the GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from tasks import lifeline

#: Seconds between two looks.
LOOK_S = 0.25
#: Seconds after which a program counts as hung.
LIMIT_S = 3600.0
#: Seconds that a program gets to end by itself.
GRACE_S = 10.0
GPU_FIELDS = "timestamp,utilization.gpu,memory.used"
GPU_TIME = "%Y/%m/%d %H:%M:%S.%f"


class Look(NamedTuple):
    """What was seen at one moment.

    Attributes:
        at: seconds since the epoch.
        cpu_s: CPU seconds of all processes so far, those that ended included.
        rss_bytes: resident memory of all processes; what they share counts for each.
    """

    at: float
    cpu_s: float
    rss_bytes: int


class GpuLook(NamedTuple):
    """What nvidia-smi said of one GPU at one moment."""

    at: float
    use: float
    memory_bytes: int


class Watched(NamedTuple):
    """A program that ended.

    Attributes:
        status: exit status; negative for a signal, None if it was ended because it hung.
    """

    status: int | None
    seconds: float
    looks: list[Look]
    gpu_looks: list[GpuLook]

    @property
    def peak_bytes(self) -> int:
        """The most memory that was seen at once."""
        return max((look.rss_bytes for look in self.looks), default=0)

    @property
    def gpu_peak_bytes(self) -> int:
        """The most memory that was in use at once on one GPU, whoever used it."""
        return max((look.memory_bytes for look in self.gpu_looks), default=0)

    def cpu_share(self, began: float, ended: float, cores: int) -> float | None:
        """Return the share of the cores' time that was used between two moments, interpolated between looks."""
        if len(self.looks) < 2 or ended <= began:  # noqa: PLR2004 - a stretch has two ends
            return None
        at, cpu_s = [look.at for look in self.looks], [look.cpu_s for look in self.looks]
        spent = np.interp([began, ended], at, cpu_s)
        return float((spent[1] - spent[0]) / ((ended - began) * cores))

    def gpu_share(self, began: float, ended: float) -> float | None:
        """Return the mean utilisation of the GPUs between two moments."""
        seen = [look.use for look in self.gpu_looks if began <= look.at <= ended]
        return float(np.mean(seen)) if seen else None


class _Family:
    """A process and its descendants, those that were ever seen."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[psutil.Process, float] = {}

    def look(self) -> Look:
        rss_bytes = 0
        with contextlib.suppress(psutil.Error):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    self._cpu_s[process] = times.user + times.system
                    rss_bytes += process.memory_info().rss
        return Look(time.time(), sum(self._cpu_s.values()), rss_bytes)

    def kill(self) -> None:
        """Kill whoever is left."""
        for process in self._cpu_s:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil checks that the pid is not another's by now


def run(command: Sequence[str], *, folder: Path, environment: Mapping[str, str], gpus: Sequence[str] = ()) -> Watched:
    """Run a program on a lifeline to its end; ``out`` and ``err`` in the folder get what it says.

    The GPUs with these UUIDs are watched.

    However this is left, nothing that the program started goes on.
    """
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err, _gpu_log(folder, gpus):
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        family = _Family(process.pid)
        looks = []
        try:
            while process.poll() is None and time.monotonic() - began < LIMIT_S:
                looks.append(family.look())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
            status, seconds = process.poll(), time.monotonic() - began
        finally:
            _end(process, family)
    return Watched(status, seconds, looks, read_gpu_log(folder / "gpu.csv"))


def _end(process: subprocess.Popen[bytes], family: _Family) -> None:
    if process.poll() is None:
        family.look()  # so that all are known whom it leaves behind
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    family.kill()
    process.wait()


@contextlib.contextmanager
def _gpu_log(folder: Path, gpus: Sequence[str]) -> Iterator[None]:
    """Have nvidia-smi write down twice a second how busy the GPUs are."""
    program = shutil.which("nvidia-smi") if gpus else None
    if program is None:
        yield
        return
    looks = ["--format=csv,noheader,nounits", "-lms", "500"]
    command = [program, f"--id={','.join(gpus)}", f"--query-gpu={GPU_FIELDS}", *looks]
    with (folder / "gpu.csv").open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.DEVNULL,
            preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - the child calls nothing that needs a lock
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def read_gpu_log(path: Path) -> list[GpuLook]:
    """Read what nvidia-smi wrote; a line that is cut off, or of a GPU that does not tell, is left out."""
    looks = []
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = [field.strip() for field in line.split(",")]
        with contextlib.suppress(ValueError):
            at, use, memory_mib = fields
            looks.append(
                GpuLook(datetime.strptime(at, GPU_TIME).astimezone().timestamp(), int(use) / 100, int(memory_mib) << 20)
            )
    return looks
