"""``penstock score``: queries and documents go in, rankings come out."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from producer.candidates import open_candidates
from producer.commands import options as shared
from producer.commands.submitting import Order, check_order, print_estimate, run_order
from producer.corpus import Opened
from producer.estimate import estimate_pairs
from producer.extensions import check_top_k
from producer.pair_records import OpenedRecords, open_records
from producer.pairs import OpenedPairs, fields_of, open_either
from producer.texts import open_texts
from producer.writers import check_out, demands_of
from tasks.errors import UsageError
from tasks.options import ScoreOptions
from tasks.templates import read_template

_EXAMPLES = """
[bold]Examples[/bold]

  penstock score --queries queries.jsonl --docs docs.jsonl --candidates bm25.trec
  --model cross-encoder/ms-marco-MiniLM-L6-v2 --out reranked.trec --top-k 10

  penstock score --queries q.tsv --docs 'docs/*.parquet' --doc-field body --model ./my-reranker
  --template qwen3-reranker --instruction 'Find the paper that answers the question' --out scores.parquet

  penstock score --pairs pairs.jsonl --model BAAI/bge-reranker-v2-m3 --out scores.npy
"""

#: Pairs above which the command asks before it goes on.
MANY_PAIRS = 10_000_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("score", epilog=_EXAMPLES)(score)


def score(  # noqa: PLR0913 - one parameter an option
    queries: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File, glob or URL: .txt .jsonl .csv .tsv .parquet, also .gz and .zst."),
    ] = None,
    docs: Annotated[str | None, typer.Option(metavar="FILE", help="The same for documents.")] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Which documents each query meets: a TREC run, or .jsonl with query_id and doc_id or doc_ids. "
            "Default: all.",
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Instead of these: a query and a document in each record, and their ids."),
    ] = None,
    model: shared.Model = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help=".trec .run .jsonl: rankings. .parquet .arrow .npy, or a folder or URL ending in /: pairs in order. "
            "Without it, results stay in the store for `penstock collect`.",
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Best documents of a query. Default: all.")] = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a causal reranker judges by. Default: its template's.")
    ] = None,
    template: shared.Template = None,
    query_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with a query's text: text, or query of --pairs.")
    ] = None,
    doc_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with a document's text: text, or document of --pairs.")
    ] = None,
    query_id_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with a query's id: id, or query_id of --pairs.")
    ] = None,
    doc_id_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with a document's id: id, or doc_id of --pairs.")
    ] = None,
    workers: shared.Workers = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a pair at most; the document loses its end.")
    ] = None,
    reproducible: shared.Reproducible = False,
    stdin_format: shared.StdinFormat = None,
    chunk_rows: shared.ChunkRows = None,
    chunk_bytes: shared.ChunkBytes = None,
    on_error: shared.OnError = shared.WhenRowFails.keep,
    report: shared.Report = None,
    overwrite: shared.Overwrite = False,
    new: shared.New = False,
    name: shared.Name = "",
    dry_run: shared.DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask above ten million pairs.")] = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    detach: shared.Detach = False,
    devices: shared.Devices = None,
    processes_per_device: shared.ProcessesPerDevice = None,
    threads_per_process: shared.ThreadsPerProcess = None,
    max_batch_tokens: shared.MaxBatchTokens = None,
    memory_ratio: shared.MemoryRatio = None,
    precision: shared.Precision = None,
    shard: shared.Shard = None,
    quantize: shared.Quantize = None,
    trust_remote_code: shared.TrustRemoteCode = None,
    as_json: shared.AsJson = False,
) -> None:
    """Score pairs of query and document, and rank each query's documents.

    Without a broker everything runs here: a private server, local workers, a state folder. With a broker, --workers
    and the workers' own options do not count. Either way the same command again goes on where an interrupted one
    stopped.
    """
    settings, started = shared.load_settings(locals() | {"operation": "score"}), time.monotonic()
    page = check_order(settings, out=out, report=report, overwrite=overwrite, detach=detach)
    check_top_k(top_k, "score")
    how = ScoreOptions.of(
        instruction=instruction,
        template=None if settings.template is None else read_template(settings.template),
        max_tokens=max_tokens,
        reproducible=reproducible,
    )
    if out is not None:
        check_out(out, operation="score", top_k=top_k, overwrite=overwrite)
    fields = {
        "query_field": query_field,
        "doc_field": doc_field,
        "query_id_field": query_id_field,
        "doc_id_field": doc_id_field,
    }
    named = {name: field for name, field in fields.items() if field is not None}
    opened = _open(queries, docs, candidates, pairs, stdin_format, named)
    if out is not None:
        opened.demands = demands_of(out, top_k)
    if dry_run:
        print_estimate(estimate_pairs(opened, settings), as_json=as_json)
        return
    _agree(opened, is_agreed=yes)
    run_order(
        Order(
            settings=settings,
            options=how,
            corpus=opened,
            keep_fields=(),
            missing_id=None,
            on_error=on_error.value,
            name=name,
            new=new,
            out=out,
            top_k=top_k,
            overwrite=overwrite,
            page=page,
            detach=detach,
            as_json=as_json,
            started=started,
        )
    )


def _open(
    queries: str | None,
    docs: str | None,
    candidates: str | None,
    pairs: str | None,
    stdin_format: str | None,
    fields: dict[str, str],
) -> OpenedPairs | OpenedRecords:
    """Open the input."""
    if [queries, docs, candidates].count("-") > 1:
        raise UsageError("Standard input can be read once: name files for all but one of the inputs.")

    def open_matching(queries: str, docs: str, candidates: str | None) -> OpenedPairs:
        return OpenedPairs(
            open_texts("query", [queries], stdin_format=stdin_format, **fields_of("query", fields)),
            open_texts("document", [docs], stdin_format=stdin_format, **fields_of("doc", fields)),
            None if candidates is None else open_candidates([candidates], stdin_format=stdin_format),
        )

    def open_pairs(pairs: str) -> OpenedRecords:
        return open_records([pairs], stdin_format=stdin_format, **fields)

    return open_either(queries, docs, candidates, pairs, open_matching, open_pairs)


def _agree(opened: Opened, *, is_agreed: bool) -> None:
    """Say how many pairs there are where that can be known, and ask if they are very many."""
    if not isinstance(opened, OpenedPairs):
        return
    with shared.err.status("reading ids"):
        n_pairs = opened.n_pairs
    shared.err.print(f"pairs: {n_pairs:,}", markup=False)
    if n_pairs <= MANY_PAIRS or is_agreed:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"That is {n_pairs:,} pairs. Pass --yes if they are meant, or --candidates with fewer.")
    if not typer.confirm(f"Score {n_pairs:,} pairs?", err=True):
        raise typer.Exit(1)
