"""The penstock command."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from tasks.errors import PenstockError

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
    """Run the command: a penstock error becomes one line and its exit code; ``--debug`` shows the traceback."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # So that servers, workers and half-written files are cleaned up as they are after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        from producer.commands import doctor, encode, jobs, worker

        for module in (encode, worker, jobs, doctor):
            module.register(app)
        app(args=arguments, prog_name="penstock")
    except PenstockError as exc:
        if debug:
            raise
        _say(str(exc))
        sys.exit(exc.exit_code)
    except OSError as exc:
        if debug:
            raise
        _say(f"{exc.filename or 'a system call'}: {exc.strerror or exc}.")
        sys.exit(PenstockError.exit_code)


def _say(line: str) -> None:
    Console(stderr=True).print(f"penstock: {line}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
