"""``python -m workers.bench encode|score PLAN``: run a bench. PLAN is the JSON of its options.

Ends, with all that it started, when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from tasks import lifeline
from tasks.errors import PenstockError
from workers.bench import showing
from workers.bench.encoding.plan import EncodePlan
from workers.bench.encoding.subject import EncodeSubject
from workers.bench.rounds import Bench
from workers.bench.scoring.plan import ScorePlan
from workers.bench.scoring.subject import ScoreSubject
from workers.bench.subject import Subject

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def main() -> int:
    """Run the bench, print the table, write the JSON file and the plot. Returns the exit status.

    It is 1 if a contender failed: the figures of the others count all the same.
    """
    signal.signal(signal.SIGTERM, _end)
    lifeline.hang_on_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
    err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        subject = read_subject(sys.argv[1], sys.argv[2])
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, err.status("") as status:
            bench = Bench(subject, Path(folder), say=err.print, doing=lambda what: status.update(f"{what} ..."))
            result = bench.run()
    except PenstockError as exc:
        err.print(f"penstock: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        err.print("penstock: interrupted; nothing is written.")
        return INTERRUPTED
    layout, out = subject.layout, subject.plan.out
    screen = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    screen.print(showing.table(result, layout, screen.width))
    code = int(any(row["errors"] for row in result["contenders"]))
    for write, path in (
        (_write_figures, out),
        (lambda result, path: showing.plot(result, layout, path), out.with_suffix(".svg")),
    ):
        try:
            with _draft(path) as draft:
                write(result, draft)
        except OSError as exc:
            err.print(f"penstock: {path} cannot be written: {exc.strerror or exc}.")
            code = 1
        except PenstockError as exc:
            err.print(f"penstock: {exc}")
        else:
            err.print(f"written: {path}")
    return code


def read_subject(operation: str, plan: str) -> Subject:
    """Return what is compared.

    Raises:
        UsageError: an option is wrong; the line names it.
    """
    return ScoreSubject(ScorePlan.read(plan)) if operation == "score" else EncodeSubject(EncodePlan.read(plan))


def _end(*_: object) -> None:
    """Clean up and end. A second SIGTERM, from whoever held the lifeline, must not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _write_figures(result: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Give another name to write to, and what is written there the right one, if all went well."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
