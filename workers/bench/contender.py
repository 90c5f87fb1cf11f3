"""One contender in a process of its own: ``python -m workers.bench.contender FOLDER``.

``task.json`` in the folder says what to do; ``result.json`` and ``values.npy`` there say what came of it. The
process ends, with all that it started, when its standard input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tasks import lifeline
from tasks.errors import PenstockError, place_of


def main() -> int:
    """Do the task. Returns 1 if it failed; the reason is in the result."""
    folder = Path(sys.argv[1])
    lifeline.hang_on_stdin(lambda: os.killpg(os.getpgid(0), signal.SIGKILL))
    try:
        result = _perform(json.loads((folder / "task.json").read_text()), folder)
    except ImportError as exc:
        result = {"error": f"{exc.name or 'a module'} is not installed"}
    except Exception as exc:  # noqa: BLE001 - a process boundary; its text may quote a row
        result = {"error": str(exc) if isinstance(exc, PenstockError) else place_of(exc)}
    (folder / "result.json").write_text(json.dumps(result))
    return int("error" in result)


def _perform(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    # Imported here, because an error of theirs is a result too.
    if task["operation"] == "score":
        from workers.bench.scoring.performing import perform
    else:
        from workers.bench.encoding.performing import perform
    found = perform(task)
    if isinstance(found, dict):
        return found
    np.save(folder / "values.npy", found.values)
    return {"began": found.began, "ended": found.ended}


if __name__ == "__main__":
    sys.exit(main())
