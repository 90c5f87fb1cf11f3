"""penstock against sentence-transformers on short, mixed and long texts: the table of docs/benchmarks.md.

    python tests/benchmarks/encode.py DATA [TOKENS]

DATA is a folder with `tatoeba/*.eng.txt` (a sentence a line) and `cisi/docs.jsonl` (an abstract in each `text`). Of
each corpus about TOKENS tokens are used, drawn at random but always the same: short are Tatoeba's English sentences,
long the abstracts of CISI, mixed both, shuffled. penstock runs with one slot a core, sentence-transformers with as many
threads at its best batch sizes. The figures of each run, the plots and the table go to a new folder below out/bench.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workers.bench import showing
from workers.bench.encoding.layout import LAYOUT, title
from workers.bench.plan import CEILING, PENSTOCK, SENTENCE_TRANSFORMERS, cores

#: Tokens of each corpus: some ten seconds of work at 4,000 a second.
N_TOKENS = 40_000
#: Characters a token has in English, about.
TOKEN_CHARS = 4.3
ROUNDS = 3
#: The least ratio that is aimed at.
TARGETS = {"short": 1.3, "mixed": 1.5, "long": 1.5}

HEADINGS = (
    *("corpus", "rows", "tokens a row", "sentence-transformers, tokens/s", "batch", "penstock, tokens/s", "ratio"),
    *("target", "of ceiling", "model's share of the slots' time"),
)


def main() -> int:
    """Run a bench on each corpus and print the tables."""
    if len(sys.argv) < 2:
        sys.exit("usage: make bench-encode DATA=FOLDER, a folder with tatoeba/*.eng.txt and cisi/docs.jsonl")
    data = Path(sys.argv[1])
    n_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else N_TOKENS
    folder = Path("out/bench") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    results = {}
    for name, texts in read_corpora(data).items():
        corpus = folder / f"{name}.jsonl"
        chosen = choose(texts, n_tokens)
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        results[name] = bench(corpus, len(chosen))
    page = "\n\n".join(
        [
            comparison(results),
            *(f"{title(result)}\n\n{showing.markdown(result, LAYOUT)}" for result in results.values()),
        ]
    )
    (folder / "tables.md").write_text(page + "\n")
    print(f"\n{page}\n\nwritten: {folder}")
    return 0


def read_corpora(data: Path) -> dict[str, list[str]]:
    """Return the texts of each corpus."""
    short = [
        line for file in sorted((data / "tatoeba").glob("*.eng.txt")) for line in file.read_text("utf-8").splitlines()
    ]
    long = [json.loads(line)["text"] for line in (data / "cisi" / "docs.jsonl").read_text("utf-8").splitlines()]
    if not short:
        sys.exit(f"{data}: there is no tatoeba/*.eng.txt in it")
    return {"short": short, "mixed": short + long, "long": long}


def choose(texts: list[str], n_tokens: int) -> list[str]:
    """Draw texts until they have so many tokens, about."""
    chosen, n_chars = [], 0.0
    for text in random.Random(0).sample(texts, len(texts)):  # noqa: S311 - no secret
        if n_chars >= n_tokens * TOKEN_CHARS:
            break
        chosen.append(text)
        n_chars += len(text)
    return chosen


def bench(corpus: Path, n_rows: int) -> dict[str, Any]:
    """Run the command on a corpus and return its figures."""
    out = corpus.with_suffix(".json")
    command = [
        *(sys.executable, "-P", "-m", "producer.cli", "bench", "encode", "--corpus", str(corpus), "--out", str(out)),
        *("--peers", SENTENCE_TRANSFORMERS, "--processes", str(cores())),
        *("--rounds", str(ROUNDS), "--max-rows", str(n_rows)),
    ]
    subprocess.run(command, check=True)
    return json.loads(out.read_text())


def comparison(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of the targets."""
    lines = [
        f"| {' | '.join(HEADINGS)} |",
        f"|---|{'---:|' * (len(HEADINGS) - 1)}",
    ]
    for name, result in results.items():
        rows = [row for row in result["contenders"] if row["tokens_per_s"] and row["name"] != CEILING]
        ours = next(row for row in rows if row["name"] == PENSTOCK)
        theirs = max((row for row in rows if row is not ours), key=lambda row: row["tokens_per_s"]["median"])
        ratio, speeds = ours["ratio"], [row["tokens_per_s"]["median"] for row in (theirs, ours)]
        lines.append(
            f"| {name} | {result['corpus']['rows']:,} | {result['corpus']['mean_tokens']:.0f} "
            f"| {speeds[0]:,.0f} | {theirs['batch_size']} | {speeds[1]:,.0f} "
            f"| {ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f}) | {TARGETS[name]} "
            f"| {ours['of_ceiling']['median']:.0%} | {ours['model_share']:.0%} |"
        )
    machine = next(iter(results.values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores; {versions}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
