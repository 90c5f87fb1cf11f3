"""penstock against LASER's official package on a full-size LASER2: the table of docs/laser.md.

    python -m tests.benchmarks.laser DATA [SENTENCES]

DATA is a folder with `tatoeba/*.txt`, a sentence a line; of these, SENTENCES different ones in all their languages are
drawn, always the same. The weights are random, and the pieces are learned from the same files, so that a sentence has
as many tokens as usual. Each contender runs once, alone, in fresh processes:

- the package as it comes, `LaserEncoderPipeline.encode_sentences` on all sentences; and the same with one thread;
- a pool of threads that share one model, and a pool of processes with one each, by OMP_NUM_THREADS;
- `penstock encode` embedded, by slots and threads; and once with `--engine laser_encoders`.

Sentences a second are over the time from the first sentence taken to the last vector; starting and loading come
before it and are told apart. Memory is the proportional set size (PSS) of all processes of a contender at its peak:
what several of them share counts once. Figures and table go to a new folder below out/bench.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.tiny_laser import make_laser2
from workers.bench import conditions
from workers.bench.plan import cores

#: Sentences that are encoded: a minute or two for the package as it comes.
N_SENTENCES = 5000
#: Seconds between two looks at memory.
LOOK_S = 0.2
#: The largest difference between vectors of two contenders: sums in another order, at a size of 1.
TOLERANCE = 1e-5
#: The least ratios that are aimed at: to the package as it comes, and to the best pool.
TARGETS = 5.0, 1.5

PIPELINE, THREADS, PROCESSES, PENSTOCK = "pipeline", "threads", "processes", "penstock"
TITLES = {
    PIPELINE: "`LaserEncoderPipeline`",
    THREADS: "`ThreadPoolExecutor`, one model",
    PROCESSES: "`ProcessPoolExecutor`",
    PENSTOCK: "penstock",
}
HEADINGS = (
    *("", "workers", "threads each", "sentences/s", "to the first", "first sentence after, s", "whole command, s"),
    *("peak memory, MB", "loads"),
)


@dataclass(frozen=True)
class Contender:
    """Who encodes, and how.

    Attributes:
        name: one of ``TITLES``.
        workers: threads, processes or slots.
        threads: compute threads of each; None as they come.
        engine: penstock's ``--engine``.
    """

    name: str
    workers: int = 1
    threads: int | None = None
    engine: str | None = None

    @property
    def title(self) -> str:
        """For the table."""
        return TITLES[self.name] + (f" with `--engine {self.engine}`" if self.engine else "")


def contenders() -> Iterator[Contender]:
    """Yield all in the order of the table."""
    n_cores = cores()
    yield Contender(PIPELINE)
    yield Contender(PIPELINE, 1, 1)
    for name in (THREADS, PROCESSES):
        for threads in (1, n_cores):
            yield Contender(name, n_cores, threads)
    for workers in (1, 2):
        for threads in (1, 2):
            yield Contender(PENSTOCK, workers, threads)
    yield Contender(PENSTOCK, n_cores, 1, "laser_encoders")


def main() -> int:
    """Run all, print the table. Returns 1 if a target is missed."""
    if len(sys.argv) < 2:
        sys.exit("usage: make bench-laser DATA=FOLDER, a folder with tatoeba/*.txt")
    n_sentences = int(sys.argv[2]) if len(sys.argv) > 2 else N_SENTENCES
    folder = Path("out/bench").absolute() / f"laser-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    machine = conditions.describe([])
    lines = prepare(Path(sys.argv[1]), folder, n_sentences)
    results = []
    for contender in contenders():
        found = run(contender, folder, lines)
        results.append((contender, found))
        print(
            f"{contender.title}, {contender.workers} x {contender.threads}: {found['rate']:,.1f} sentences/s",
            flush=True,
        )
    (folder / "result.json").write_text(
        json.dumps({"machine": machine, "runs": [asdict(who) | found for who, found in results]}, indent=1)
    )
    ratios = targets(results)
    page = f"{table(results)}\n\n{footer(machine, lines, results)}\n"
    (folder / "table.md").write_text(page)
    print(f"\n{page}\npenstock to the package as it comes: {ratios[0]:.1f}, to the best pool: {ratios[1]:.2f}")
    print(f"written: {folder}")
    return int(any(ratio < least for ratio, least in zip(ratios, TARGETS, strict=True)))


def prepare(data: Path, folder: Path, n_sentences: int) -> list[str]:
    """Make model and corpus, and return the sentences."""
    files = sorted((data / "tatoeba").glob("*.txt"))
    if not files:
        sys.exit(f"{data}: there is no tatoeba/*.txt in it")
    everything = [line for file in files for line in file.read_text("utf-8").splitlines()]
    different = sorted({line.strip() for line in everything if line.strip()})
    lines = random.Random(0).sample(different, min(n_sentences, len(different)))  # noqa: S311 - no secret
    make_laser2(folder / "model", full_size=True, sentences=everything)
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return lines


def run(contender: Contender, folder: Path, lines: list[str]) -> dict[str, Any]:
    """Run one contender and return its figures, seconds and bytes.

    Vectors are compared with those of the first.
    """
    state = folder / "state"
    started = time.time()
    seen = watch(command(contender, folder), folder, environment(contender, state), state)
    seconds = time.time() - started
    if contender.name == PENSTOCK:
        figures = json.loads((folder / "out").read_text())
        began, ended = figures["finished_ms"] / 1000 - figures["work_seconds"], figures["finished_ms"] / 1000
        loads, tokens = seen.loads, figures["tokens"]
    else:
        figures = json.loads((folder / "peer.json").read_text())
        began, ended, loads, tokens = figures["began"], figures["ended"], figures["loads"], None
    check(folder)
    return {
        "rate": len(lines) / (ended - began),
        "seconds": ended - began,
        "first_after_s": began - started,
        "command_s": seconds,
        "peak_bytes": seen.peak_bytes,
        "loads": loads,
        "tokens": tokens,
    }


def command(contender: Contender, folder: Path) -> list[str]:
    """Return what is started."""
    if contender.name != PENSTOCK:
        way = [contender.name, str(contender.workers), str(folder)]
        return [sys.executable, "-m", "tests.benchmarks.laser_peers", *way]
    return [
        *(sys.executable, "-P", "-m", "producer.cli", "encode", str(folder / "corpus.txt"), "--new", "--json"),
        *("--model", f"laser:{folder / 'model'}", "--out", str(folder / "values.npy"), "--overwrite"),
        *("--workers", str(contender.workers), "--threads-per-process", str(contender.threads)),
        *(("--engine", contender.engine) if contender.engine else ()),
    ]


def environment(contender: Contender, state: Path) -> dict[str, str]:
    """Return the variables of a contender."""
    found = {**os.environ, "PENSTOCK_STATE_DIR": str(state)}
    return found | ({"OMP_NUM_THREADS": str(contender.threads)} if contender.threads else {})


@dataclass
class Seen:
    """What was seen of a run from outside.

    Attributes:
        peak_bytes: the most memory at once, PSS.
        loads: how often penstock's slots said that they had loaded the model.
    """

    peak_bytes: int = 0
    loads: int = 0


def watch(what: list[str], folder: Path, variables: dict[str, str], state: Path) -> Seen:
    """Run a command to its end; ``out`` and ``err`` in the folder get what it says."""
    seen = Seen()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(what, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=variables)
        try:
            while process.poll() is None:
                seen.peak_bytes = max(seen.peak_bytes, pss_of(process.pid))
                seen.loads = max(seen.loads, count_loads(state))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(what)} failed: {(folder / 'err').read_text()[-2000:]}")
    return seen


def pss_of(pid: int) -> int:
    """Return the proportional set size of a process and its descendants, in bytes."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def count_loads(state: Path) -> int:
    """Return how often the slots of a run say that they have loaded the model; the log goes with the run."""
    n_loads = 0
    for log in state.glob("runs/*/worker.log"):
        with contextlib.suppress(FileNotFoundError):
            n_loads += log.read_text().count(" ready: ")
    return n_loads


def check(folder: Path) -> None:
    """Compare vectors with those of the first contender."""
    values, expected = folder / "values.npy", folder / "expected.npy"
    if not expected.exists():
        values.rename(expected)
        return
    furthest = np.abs(np.load(values) - np.load(expected)).max()
    if not furthest <= TOLERANCE:
        sys.exit(f"vectors differ by {furthest:.1e}")
    values.unlink()


def targets(results: list[tuple[Contender, dict[str, Any]]]) -> tuple[float, float]:
    """Return penstock's best rate over that of the package as it comes, and over that of the best pool."""
    rates = [(who, found["rate"]) for who, found in results]
    ours = max(rate for who, rate in rates if who.name == PENSTOCK and who.engine is None)
    return ours / rates[0][1], ours / max(rate for who, rate in rates if who.name in {THREADS, PROCESSES})


def table(results: list[tuple[Contender, dict[str, Any]]]) -> str:
    """Return the table of docs/laser.md."""
    first = results[0][1]["rate"]
    rows = [
        f"| {who.title} | {who.workers} | {who.threads or 'as they come'} | {found['rate']:,.0f} "
        f"| {found['rate'] / first:.1f} | {found['first_after_s']:.1f} | {found['command_s']:.1f} "
        f"| {found['peak_bytes'] / 1e6:,.0f} | {found['loads']} |"
        for who, found in results
    ]
    return "\n".join([f"| {' | '.join(HEADINGS)} |", f"|---|{'---:|' * (len(HEADINGS) - 1)}", *rows])


def footer(machine: dict[str, Any], lines: list[str], results: list[tuple[Contender, dict[str, Any]]]) -> str:
    """Say what was measured on what."""
    tokens = next(found["tokens"] for _, found in results if found["tokens"])
    names = ("torch", "laser_encoders", "sentencepiece", "sacremoses")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{len(lines):,} sentences, {tokens / len(lines):.1f} tokens each. {machine['date'][:10]}, {machine['cpu']}, "
        f"{machine['cores']} cores, load before {machine['load_before']:.1f}; {versions}."
    )


if __name__ == "__main__":
    sys.exit(main())
