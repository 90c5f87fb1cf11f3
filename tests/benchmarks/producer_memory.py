"""Peak memory of every process of an embedded job, as the corpus grows.

    python tests/benchmarks/producer_memory.py [ROWS ...]

Encodes generated corpora of short lines with the fake engine, and prints the peak resident memory (VmHWM) of the
command, its private server, its node and its slots. Fails if the command needs more than 400 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

#: Bytes that the producer may need, whatever the size of the corpus.
LIMIT_BYTES = 400 * 10**6


def main() -> int:
    """Measure each size. Returns 1 if the producer needs too much."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [20_000, 200_000, 2_000_000]
    worst = 0
    print("| rows | chunks | seconds | rows/s | command MB | server MB | node MB | largest slot MB |")
    print("|---|---|---|---|---|---|---|---|")
    for n_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            result, peaks = measure(Path(folder), n_rows)
        shown = " | ".join(f"{peaks.get(role, 0) / 10**6:.0f}" for role in ("command", "server", "node", "slot"))
        rate = n_rows / result["work_seconds"]
        print(
            f"| {n_rows:,} | {result['chunks']:,} | {result['seconds']:.1f} | {rate:,.0f} | {shown} |",
            flush=True,
        )
        worst = max(worst, peaks["command"])
    return int(worst > LIMIT_BYTES)


def measure(folder: Path, n_rows: int) -> tuple[dict[str, float], dict[str, int]]:
    """Encode ``n_rows`` lines and return the command's summary and the peak bytes of each role."""
    corpus = folder / "corpus.txt"
    with corpus.open("w") as file:
        file.writelines(f"line {i} of a corpus of short lines\n" for i in range(n_rows))
    command = [sys.executable, "-P", "-m", "producer.cli", "encode", str(corpus), "--model", "fake:dim=64"]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--out", str(folder / "vectors.npy"), "--json"],
        env={**os.environ, "XDG_STATE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for role, size in look(process.pid):
            peaks[role] = max(peaks.get(role, 0), size)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"the command ended with {process.returncode}")
    return json.loads(process.communicate()[0]), peaks


def look(pid: int) -> list[tuple[str, int]]:
    """Return role and peak bytes of a command and all that it started."""
    found = []
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            status = Path(f"/proc/{process.pid}/status").read_text()
            kib = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
            found.append((role_of(process, pid), 1024 * int(kib)))
    except (psutil.NoSuchProcess, OSError):
        pass
    return found


def role_of(process: psutil.Process, pid: int) -> str:
    """Name what a process does."""
    line = " ".join(process.cmdline())
    if process.pid == pid:
        return "command"
    if "tasks.lifeline" in line:
        return "guard"
    if "server" in process.name():
        return "server"
    return "slot" if "spawn_main" in line or "billiard" in line else "node"


if __name__ == "__main__":
    sys.exit(main())
