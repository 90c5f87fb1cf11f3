"""Options that several subcommands share, and how their output looks."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from producer.client import Client
from producer.runs import Run, find_run, runs
from producer.terminal import say
from tasks.errors import PenstockError, UnknownJob, UsageError
from tasks.messages import ModelSpec
from tasks.redaction import redact
from tasks.settings import Settings


class WhenRowFails(StrEnum):
    """What a row that cannot be processed does."""

    keep = "keep"
    fail = "fail"


Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="Redis or Valkey of the cluster.",
        show_envvar=True,
        envvar="PENSTOCK_BROKER_URL",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where inputs and results live: file:// s3:// gs:// az:// redis://.",
        envvar="PENSTOCK_STORE_URL",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Hugging Face id (ORG/NAME or ORG/NAME@REVISION), folder, pkg:MODULE/SUBPATH, or laser, laser:laser2, "
        "laser:laser3-CODE, laser:FOLDER.",
        envvar="PENSTOCK_MODEL",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="cpu, cpu:0 (a NUMA node), cuda (all), cuda:0,cuda:1, cuda:GPU-... or cuda:MIG-... by UUID. "
        "Default: the GPUs, else the CPU.",
    ),
]
ProcessesPerDevice = Annotated[
    str | None,
    typer.Option("--processes-per-device", metavar="N|auto", help="Slots per device.", show_default="auto"),
]
ThreadsPerProcess = Annotated[
    int | None,
    typer.Option(
        "--threads-per-process", metavar="N", help="Compute threads of a slot. Default: the cores shared out."
    ),
]
MaxBatchTokens = Annotated[
    int | None,
    typer.Option(
        "--max-batch-tokens",
        metavar="N",
        help="Tokens of a batch at most, padding included. Default: found by probing the device.",
    ),
]
MemoryRatio = Annotated[
    float | None,
    typer.Option(
        "--memory-ratio", metavar="R", help="Share of the device's memory that may be in use.", show_default="0.8"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="P", help="fp32, fp16, bf16 or auto: fp32 on CPU, else bf16 or fp16."),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="B", help="torch, onnx or openvino; the latter two are for CPUs."),
]
Engine = Annotated[
    str | None,
    typer.Option("--engine", metavar="E", help="laser_encoders: run LASER by its official package."),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="HOW",
        help="One slot over all the devices, for a model larger than one: auto (whole layers on each), tensor or fsdp "
        "(every layer in parts).",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="Q", help="int8 or int4: numbers that linear layers keep their weights in."),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the model with torch.compile; for long jobs."),
]
Deduplicate = Annotated[
    bool | None,
    typer.Option("--deduplicate/--no-deduplicate", help="Compute equal texts of a chunk once. Default: do."),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR|URL",
        help="Folder or redis:// URL that keeps vectors, so that a text is computed once across chunks and jobs.",
    ),
]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option("--trust-remote-code", help="Run Python code that the model's files bring along."),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME|FILE",
        help="Scoring with a causal reranker: how it is asked, a shipped template or a .toml file. "
        "Default: by the model's hub id.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Embedded: slots in all. Default: one a core, capped by memory; one a GPU."),
]
ChunkRows = Annotated[int | None, typer.Option(metavar="N", help="Rows of a chunk at most.")]
ChunkBytes = Annotated[int | None, typer.Option(metavar="N", help="Bytes of a chunk at most.")]
OnError = Annotated[
    WhenRowFails, typer.Option(help="keep: a failed row is a row with an error. fail: it fails the job.")
]
Report = Annotated[
    str | None, typer.Option("--report", metavar="FILE", help="Also write the page of `penstock report`.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out, and an existing --report.")]
New = Annotated[bool, typer.Option("--new", help="Make a new job, rather than continue that of the same command.")]
Name = Annotated[str, typer.Option(help="What to call the job.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count and estimate, submit nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Cluster: print the job id once all is uploaded.")]
StdinFormat = Annotated[
    str | None, typer.Option(metavar="EXT", help="What - holds: txt, jsonl, csv, tsv. Default: txt or jsonl.")
]
Reproducible = Annotated[
    bool, typer.Option("--reproducible", help="The same row gives the same bits in any chunk and batch; slower.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, as `penstock jobs` lists it.")]

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130
#: Results go to stdout, everything else to stderr.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


#: Options that are called otherwise than the settings that they set.
_SETTINGS = {"broker": "broker_url", "store": "store_url", "cache": "cache_url", "compile_model": "compile"}


def load_settings(options: dict[str, Any]) -> Settings:
    """Read the settings, as the options of a command change them.

    Args:
        options: of a command, by name: its ``locals()`` before it does anything. Those that are no settings do not
            count.
    """
    named = {_SETTINGS.get(name, name): value for name, value in options.items()}
    return Settings.load(**{name: value for name, value in named.items() if name in Settings.model_fields})


def become_worker(settings: Settings, *command: str) -> NoReturn:
    """Become ``python -m`` one of the modules of workers/, the only room that knows models.

    Args:
        settings: with a model; the module finds them in its environment.
        command: the module and its arguments.

    Raises:
        UsageError: the model needs torch, and this machine has none.
    """
    spec = ModelSpec.parse(str(settings.model), settings.operation)
    if spec.engine != "fake" and importlib.util.find_spec("torch") is None:
        raise UsageError("This machine has no torch: pip install 'penstock[worker]'.")
    environment = {**os.environ, **settings.environment(), "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-P", "-m", *command], environment)  # noqa: S606


def print_json(value: Any) -> None:
    """Print a value as one line of JSON on stdout."""
    line = json.dumps(value, ensure_ascii=False)
    # A file's name that is no UTF-8 came in as lone surrogates, which JSON can only hold as escapes.
    typer.echo(line.encode("utf-8", "backslashreplace"))


@contextmanager
def client_of(job: str, broker: str | None, store: str | None) -> Iterator[Client]:
    """Open the cluster's client, or the embedded run in which a job was made.

    Raises:
        UnknownJob: no broker is configured and no state folder knows the job.
    """
    settings = Settings.load(broker_url=broker, store_url=store)
    if settings.broker_url is not None:
        with Client(settings=settings) as client:
            yield client
        return
    run = find_run(settings.state_dir, job) or _find_without_note(settings, job)
    if run is None:
        raise UnknownJob(
            f"No job {job!r}: no broker is configured (--broker, PENSTOCK_BROKER_URL), and no embedded run in "
            f"{settings.state_dir} knows it. `penstock jobs` lists those that there are."
        )
    if store not in {None, os.environ.get("PENSTOCK_STORE_URL")}:
        _check_store(run, job, settings.store_url)
    with Client.embedded(run=run, settings=settings) as client:
        yield client


def open_run(run: Run, settings: Settings) -> Client | None:
    """Open an embedded run, or say why it cannot be opened: others may be."""
    try:
        return Client.embedded(run=run, settings=settings)
    except PenstockError as exc:
        say(str(exc))
        return None


def _find_without_note(settings: Settings, job: str) -> Run | None:
    """Return the run of a job among those whose note was lost; opening a run writes it again."""
    for run in runs(settings.state_dir):
        if run.has_lost_note and (client := open_run(run, settings)):
            with client:
                is_found = job in client.ledger.jobs()
            if is_found:
                return run
    return None


def _check_store(run: Run, job: str, store: str | None) -> None:
    """Raise UsageError if --store is not the run's; the environment's is for new jobs."""
    if store is not None and store != run.store_url():
        raise UsageError(f"Job {job} lives in {redact(run.store_url())}, not in {redact(store)}: leave out --store.")
