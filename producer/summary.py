"""What a finished job was: the end of `penstock encode` and `penstock score` for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from producer.columns import LAYOUTS, Layout
from tasks.records import JobStatus


def summary(status: JobStatus, *, out: Sequence[str], seconds: float | None, workers: int) -> dict[str, Any]:
    """Return the JSON object of a job.

    ``seconds`` is of the whole command, ``work_seconds`` from the first chunk taken to the last receipt;
    ``rows_per_second`` and ``tokens_per_second`` are over the latter, ``finished_ms`` by the broker's clock. Rows of a
    scoring job are pairs, so that its rows per second are documents per second. ``tokens`` are those of every row.
    ``padded_tokens`` counts what went through the model, padding included, and so neither the rows that took the vector
    of an equal text (``duplicate_rows``) nor those that had one in the cache (``cached_rows``).
    """
    return {
        "job": status.spec.job,
        "operation": status.spec.operation,
        "name": status.spec.name,
        "state": status.state,
        "reason": status.reason,
        "model": str(status.spec.model),
        "out": out[0] if len(out) == 1 else list(out) or None,
        "rows": status.rows,
        "rows_done": status.rows_done,
        "failed_rows": status.failed_rows,
        "truncated_rows": status.truncated_rows,
        "chunks": status.chunks,
        "chunks_done": status.recorded,
        "dim": status.dim,
        "tokens": status.tokens,
        "padded_tokens": status.padded_tokens,
        "duplicate_rows": status.duplicate_rows,
        "cached_rows": status.cached_rows,
        "seconds": None if seconds is None else round(seconds, 3),
        "work_seconds": round(status.work_s, 3),
        "finished_ms": status.finished_ms,
        "rows_per_second": round(status.rows_done / status.work_s, 1) if status.work_s else None,
        "tokens_per_second": round(status.tokens / status.work_s, 1) if status.work_s else None,
        "stage_seconds": {stage: round(value, 3) for stage, value in status.seconds.items()},
        "workers": workers,
    }


def print_summary(result: dict[str, Any], console: Console) -> None:
    """Print the same for a person."""
    table = Table(show_header=False, box=None, pad_edge=False)
    stages = "  ".join(f"{stage} {value:.1f}" for stage, value in result["stage_seconds"].items() if stage != "idle")
    truncated, failed = result["truncated_rows"], result["failed_rows"]
    layout = LAYOUTS[result["operation"]]
    lines = [
        ("job", f"{result['job']} ({result['state']}{': ' + result['reason'] if result['reason'] else ''})"),
        (layout.noun, f"{result['rows_done']:,} of {result['rows']:,}; {truncated:,} truncated, {failed:,} failed"),
        *_reused(result),
        ("tokens", f"{result['tokens']:,}; {_computed(result)}"),
        ("seconds", f"{stages}  (summed over slots)"),
        *_device(result["stage_seconds"]),
        ("speed", _speed(result, layout)),
    ]
    if result["out"]:
        out = result["out"]
        lines.append(("written", out if isinstance(out, str) else ", ".join(out)))
    for name, value in lines:
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table, soft_wrap=True, highlight=False)


def _speed(result: dict[str, Any], layout: Layout) -> str:
    """Say how fast it was: rerankers are compared by documents, encoders by tokens."""
    workers = result["workers"]
    speed = f"{result['tokens_per_second'] or 0:,.0f} tokens/s"
    if not layout.is_vector:
        speed = f"{result['rows_per_second'] or 0:,.0f} {layout.pace}, {speed}"
    return f"{speed} over {result['work_seconds']:.1f} s, {workers} worker{'s' * (workers != 1)}"


def _reused(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line on rows that needed no model, if there were any."""
    duplicates, cached = result["duplicate_rows"], result["cached_rows"]
    if not (duplicates or cached):
        return []
    share = f" ({cached / result['rows_done']:.1%})" if cached else ""
    return [("reused", f"{duplicates:,} duplicates, {cached:,}{share} from the cache")]


def _computed(result: dict[str, Any]) -> str:
    """Say what the model computed; its padding can only be told where it computed all tokens of every row.

    Rerankers compute the tokens that pairs share once.
    """
    tokens, padded = result["tokens"], result["padded_tokens"]
    if result["duplicate_rows"] or result["cached_rows"] or padded < tokens:
        return f"{padded:,} through the model, padding included"
    return f"{1 - tokens / padded if padded else 0:.1%} padding"


def _device(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """Return the line on how busy the device was, if the receipts tell it."""
    model_s, idle_s = seconds["model"], seconds["idle"]
    return [("device", f"{model_s / (model_s + idle_s):.1%} in the model")] if idle_s else []
