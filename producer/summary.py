"""What a finished job was: the end of `penstock encode` for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.records import JobStatus


def summary(status: JobStatus, *, out: Sequence[str], seconds: float | None, workers: int) -> dict[str, Any]:
    """Return the JSON object of a job.

    ``seconds`` is of the whole command, ``work_seconds`` from the first chunk taken to the last receipt;
    ``tokens_per_second`` is over the latter. ``padded_tokens`` counts what went through the model, padding included.
    """
    return {
        "job": status.spec.job,
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
        "seconds": None if seconds is None else round(seconds, 3),
        "work_seconds": round(status.work_s, 3),
        "tokens_per_second": round(status.tokens / status.work_s, 1) if status.work_s else None,
        "stage_seconds": {stage: round(value, 3) for stage, value in status.seconds.items()},
        "workers": workers,
    }


def print_summary(result: dict[str, Any], console: Console) -> None:
    """Print the same for a person."""
    table = Table(show_header=False, box=None, pad_edge=False)
    padded, tokens = result["padded_tokens"], result["tokens"]
    stages = "  ".join(f"{stage} {value:.1f}" for stage, value in result["stage_seconds"].items())
    truncated = result["truncated_rows"]
    workers = result["workers"]
    speed = result["tokens_per_second"]
    lines = [
        ("job", f"{result['job']} ({result['state']}{': ' + result['reason'] if result['reason'] else ''})"),
        (
            "rows",
            f"{result['rows_done']:,} of {result['rows']:,}; {truncated:,} truncated, {result['failed_rows']:,} failed",
        ),
        ("tokens", f"{tokens:,}; {1 - tokens / padded if padded else 0:.1%} padding"),
        ("seconds", f"{stages}  (summed over slots)"),
        (
            "speed",
            f"{speed or 0:,.0f} tokens/s over {result['work_seconds']:.1f} s, {workers} worker{'s' * (workers != 1)}",
        ),
    ]
    if result["out"]:
        out = result["out"]
        lines.append(("written", out if isinstance(out, str) else ", ".join(out)))
    for name, value in lines:
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table, soft_wrap=True, highlight=False)
