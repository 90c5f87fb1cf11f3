"""penstock against one pair at a time and against CrossEncoder.predict: the tables of docs/benchmarks.md.

    python tests/benchmarks/score.py DATA [PAIRS]

DATA is a folder with `docs.jsonl` and `queries.jsonl`, an `id` and a `text` in each line, as of the CISI collection.
Each query meets the 50 documents that BM25 finds first; the first PAIRS of these pairs are scored. The models have
random weights in published shapes: two causal rerankers, of Qwen2's shape in a quarter of its width and of
Qwen2.5-0.5B's own, both with Qwen2's output layer, and a cross-encoder of MiniLM-L6's. Everything alternates within a
round. The figures of each run, the plots and the table go to a new folder below out/bench.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
from models import MINILM_L6, QWEN2_HALF_B, QWEN2_SMALL, Shape, save_cross_encoder, save_qwen2

from workers.bench import showing
from workers.bench.plan import CROSS_ENCODER, PENSTOCK, cores
from workers.bench.scoring.layout import LAYOUT, title
from workers.bench.scoring.plan import NAIVE

ROUNDS = 3
#: Documents of a query.
TOP = 50


class Case(NamedTuple):
    """A model, how many pairs it scores, and the least ratios that are aimed at.

    Attributes:
        template: how a causal reranker is asked.
        save: writes the model.
        speedup: to one pair at a time, all cores; None if nothing is aimed at.
        ratio: to CrossEncoder.predict at its best batch size.
    """

    name: str
    template: str | None
    save: Callable[[Path, Shape, Sequence[str]], str]
    shape: Shape
    n_pairs: int
    speedup: float | None
    ratio: float | None


CASES = (
    Case("qwen2-small", "lychee-rerank", save_qwen2, QWEN2_SMALL, 300, 8.0, 2.0),
    Case("qwen2.5-0.5b", "lychee-rerank", save_qwen2, QWEN2_HALF_B, 100, 8.0, 2.0),
    Case("minilm-l6", None, save_cross_encoder, MINILM_L6, 1000, None, 1.2),
)

HEADINGS = (
    *("model", "pairs", "tokens a pair", "one pair at a time, docs/s", "CrossEncoder, docs/s", "batch"),
    *("penstock, docs/s", "to one at a time", "aim", "to CrossEncoder", "aim", "differs by", "equal ranks"),
)


def main() -> int:
    """Run a bench on each model and print the tables."""
    if len(sys.argv) < 2:
        sys.exit("usage: make bench-score DATA=FOLDER, a folder with docs.jsonl and queries.jsonl")
    data = Path(sys.argv[1])
    folder = Path("out/bench") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    texts = write_candidates(data, folder / "bm25.trec")
    results = {}
    for case in CASES:
        case.save(folder / case.name, case.shape, texts)
        n_pairs = int(sys.argv[2]) if len(sys.argv) > 2 else case.n_pairs
        results[case] = bench(data, folder, case, n_pairs)
    page = "\n\n".join(
        [
            comparison(results),
            *(f"{title(result)}\n\n{showing.markdown(result, LAYOUT)}" for result in results.values()),
        ]
    )
    (folder / "tables.md").write_text(page + "\n")
    print(f"\n{page}\n\nwritten: {folder}")
    return 0


def write_candidates(data: Path, run: Path) -> list[str]:
    """Write the run of BM25, and return all texts."""
    docs, queries = (
        [json.loads(line) for line in (data / name).read_text("utf-8").splitlines()]
        for name in ("docs.jsonl", "queries.jsonl")
    )
    doc_texts, query_texts = ([record["text"] for record in records] for records in (docs, queries))
    index = bm25s.BM25()
    index.index(bm25s.tokenize(doc_texts, stopwords="en", show_progress=False), show_progress=False)
    found, scores = index.retrieve(
        bm25s.tokenize(query_texts, stopwords="en", show_progress=False), k=TOP, show_progress=False
    )
    with run.open("w", encoding="utf-8") as file:
        for query, places, values in zip(queries, found, scores, strict=True):
            for rank, (place, value) in enumerate(zip(places, values, strict=True), 1):
                print(query["id"], "Q0", docs[place]["id"], rank, f"{value:.4f}", "bm25", file=file)
    return doc_texts + query_texts


def bench(data: Path, folder: Path, case: Case, n_pairs: int) -> dict[str, Any]:
    """Run the command with a model and return its figures."""
    model, out = (folder / case.name).absolute(), folder / f"{case.name}.json"
    template = [] if case.template is None else ["--template", case.template]
    command = [
        *(sys.executable, "-P", "-m", "producer.cli", "bench", "score", "--model", str(model)),
        *("--queries", str(data / "queries.jsonl"), "--docs", str(data / "docs.jsonl")),
        *("--candidates", str(folder / "bm25.trec"), "--max-pairs", str(n_pairs), *template),
        *("--processes", str(cores()), "--rounds", str(ROUNDS), "--out", str(out)),
    ]
    subprocess.run(command, check=True)
    return json.loads(out.read_text())


def comparison(results: dict[Case, dict[str, Any]]) -> str:
    """Return the table of the targets."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|---|{'---:|' * (len(HEADINGS) - 1)}"]
    for case, result in results.items():
        rows = result["contenders"]
        alone = next(row for row in rows if row["name"] == NAIVE and row["processes"] == 1)
        theirs = max((row for row in rows if row["name"] == CROSS_ENCODER), key=_speed)
        ours = next(row for row in rows if row["name"] == PENSTOCK)
        cells = [
            *(case.name, f"{result['pairs']['pairs']:,}", f"{result['pairs']['mean_tokens']:.0f}"),
            *(f"{_speed(alone):,.1f}", f"{_speed(theirs):,.1f}", str(theirs["batch_size"]), f"{_speed(ours):,.1f}"),
            *(_ratio(ours["speedup"]), _aim(case.speedup), _ratio(ours["ratio"]), _aim(case.ratio)),
            *(f"{ours['largest_difference']:.1e}", f"{ours['equal_ranks']:.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine = next(iter(results.values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n".join([*lines, "", f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores; {versions}."])


def _speed(row: dict[str, Any]) -> float:
    return row["documents_per_s"]["median"] if row["documents_per_s"] else 0.0


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"


def _aim(least: float | None) -> str:
    return "" if least is None else f"{least:g}"


if __name__ == "__main__":
    sys.exit(main())
