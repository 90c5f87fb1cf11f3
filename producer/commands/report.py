"""``penstock report``: what a job did, as one page with plots."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from producer.commands import options as shared
from producer.drafts import draft_file
from producer.outputs import check_name, check_parent, exists, no_name
from producer.submission import PATIENCE_S
from producer.summary import summary
from tasks.errors import UsageError
from tasks.retrying import retry_transient

if TYPE_CHECKING:
    from producer.client import Client
    from producer.reporting.page import Findings

T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add the command."""
    example = "penstock report encode-3f9a1c02de --out report.html"
    app.command("report", epilog=f"[bold]Example[/bold]\n\n  {example}")(report)


def report(
    job: shared.JobId,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="The page to write.", show_default="JOB.html")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")] = False,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Write one page that shows what a job did: its speed, slots, stages, texts, slowest chunks and failures.

    Whatever the job's state is: the page has what is recorded so far. It needs no server and no network.
    """
    with shared.client_of(job, broker, store) as client:
        path = check_report(out or f"{client.ledger.spec(job).job}.html", overwrite=overwrite)
        found = write_report(client, job, path)
    if as_json:
        shared.print_json(_numbers(found, str(path)))
    else:
        shared.out.print(str(path), markup=False)


def check_report(out: str, *, overwrite: bool, option: str = "--out") -> Path:
    """Return where the page goes, if one can be made and written there.

    Raises:
        UsageError: a library is missing, or the file cannot be written.
    """
    if any(importlib.util.find_spec(name) is None for name in ("jinja2", "matplotlib")):
        raise UsageError("A report needs Jinja2 and Matplotlib: pip install 'penstock[report]'.")
    if "://" in out:
        raise UsageError(f"{option} {out}: a report is written to a file on this machine. Name one, as report.html.")
    try:
        path = Path(out).resolve()
        is_folder = out.endswith("/") or path.is_dir()
    except (OSError, RuntimeError, ValueError) as exc:  # too long, a loop of links, or a NUL in it
        raise no_name(out, exc, option) from exc
    if is_folder:
        raise UsageError(f"{option} {out}: that is a folder. Name a file in it, such as {Path(out) / 'report.html'}.")
    check_name(out, path, option)
    check_parent(out, path, option)
    if path.exists() and not overwrite:
        raise exists(out, option)
    return path


def write_report(client: Client, job: str, path: Path) -> Findings:
    """Write the page, whole or not at all. Returns what it tells."""
    from producer.reporting.page import render

    found = _find(client, job)
    page = render(found).encode("utf-8", "backslashreplace")
    with draft_file(path) as file:
        file.write(page)
    return found


def _find(client: Client, job: str) -> Findings:
    """Read all that the ledger and the store have to tell of a job."""
    from producer.reporting.page import MOST_ERRORS, Findings
    from producer.reporting.receipts import read_receipts
    from producer.reporting.tally import Tally

    found, read_at = client.job(job), time.time()
    found.check_store()
    status = retry_transient(found.status, for_s=PATIENCE_S)
    return Findings(
        status=status,
        tally=Tally.of(_counted(read_receipts(client.ledger, client.store, status), status.recorded)),
        errors=found.errors(MOST_ERRORS),
        refusals=client.ledger.refusals(job),
        read_at=read_at,
    )


def _counted(items: Iterable[T], total: int) -> Iterator[T]:
    """Show on a terminal how many of the receipts are read."""
    with shared.err.status("receipts") as shown:
        for number, item in enumerate(items, 1):
            yield item
            if number % 100 == 0:
                shown.update(f"receipts: {number:,} of {total:,}")


def _numbers(found: Findings, out: str) -> dict[str, Any]:
    """Return the report as one JSON object: the job's summary, and what only the receipts tell."""
    tally = found.tally
    return {
        **summary(found.status, out=[out], seconds=None, workers=len(tally.slots)),
        "receipts": tally.totals.chunks,
        "unreadable_results": tally.n_problems,
        "machines": len(tally.hosts),
        "span_seconds": round(tally.span_s, 3),
        "idle_share": _rounded(tally.totals.idle_share),
        "padding_share": _rounded(tally.padding_share),
        "memory_splits": tally.totals.memory_splits,
        "median_chunk_seconds": _rounded(tally.walls.at(0.5)),
        "slowest_chunks": [slow.chunk for slow in tally.slowest],
        "slots": [slot.name for slot in tally.ordered_slots()],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
