"""``python -m workers.bench PLAN``: run a bench. PLAN is the JSON of a ``BenchPlan``.

Ends, with all that it started, when its standard input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tasks import lifeline
from tasks.errors import PenstockError
from workers.bench import showing
from workers.bench.plan import BenchPlan
from workers.bench.rounds import Bench

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def main() -> int:
    """Run the bench, write the JSON file and the plot, print the table. Returns the exit status."""
    lifeline.hang_on_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is cleaned up
    err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        plan = BenchPlan.read(sys.argv[1])
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, err.status("") as status:
            bench = Bench(plan, Path(folder), say=err.print, doing=lambda what: status.update(f"{what} ..."))
            result = bench.run()
    except PenstockError as exc:
        err.print(f"penstock: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        err.print("penstock: interrupted; nothing is written.")
        return INTERRUPTED
    plan.out.write_text(json.dumps(result, indent=1) + "\n")
    written = [plan.out]
    try:
        showing.plot(result, plan.out.with_suffix(".svg"))
        written.append(plan.out.with_suffix(".svg"))
    except PenstockError as exc:
        err.print(f"penstock: {exc}")
    Console(highlight=False, width=None if sys.stdout.isatty() else 180).print(showing.table(result))
    err.print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
