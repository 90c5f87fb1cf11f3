"""The penstock command."""

from __future__ import annotations

import functools
import importlib.metadata
import signal
import sys
import traceback
from typing import Annotated

import typer

from producer.terminal import say
from tasks.errors import PenstockError, place_of
from tasks.redaction import redact_text

app = typer.Typer(
    name="penstock",
    help="Encode text corpora on many workers: every row exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(importlib.metadata.version("penstock"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Goes anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Encode text corpora on many workers: every row exactly once."""


def main() -> None:
    """Run the command: an error becomes one line and an exit code; ``--debug`` shows the traceback."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # So that servers, workers and half-written files are cleaned up as they are after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        full_app()(args=arguments, prog_name="penstock")
    except Exception as exc:  # noqa: BLE001 - a process boundary
        if debug:
            sys.stderr.write(redact_text(traceback.format_exc()))
        say(_line_of(exc))
        sys.exit(exc.exit_code if isinstance(exc, PenstockError) else PenstockError.exit_code)


@functools.cache
def full_app() -> typer.Typer:
    """Return the application with all its commands, which are imported only now: an error of theirs is a line too."""
    from producer.commands import (
        bench,
        doctor,
        encode,
        jobs,
        parked,
        plan_model,
        recover,
        remove,
        report,
        score,
        verify,
        worker,
    )

    for module in (encode, score, worker, plan_model, jobs, verify, remove, recover, parked, doctor, bench, report):
        module.register(app)
    return app


def _line_of(exc: Exception) -> str:
    """Say what happened, for any exception: its own words where they are known to hold no record's text."""
    if isinstance(exc, PenstockError):
        return str(exc)
    if isinstance(exc, OSError):
        return f"{exc.filename or 'a system call'}: {exc.strerror or exc}."
    if isinstance(exc, MemoryError):
        return "no memory is left. Smaller chunks (--chunk-rows, --chunk-bytes) and smaller records need less."
    return f"a fault in penstock: {place_of(exc)}. Run it again with --debug and report what that shows."


if __name__ == "__main__":
    main()
