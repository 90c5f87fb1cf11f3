"""Notes when a Python process does what: on PYTHONPATH, every interpreter that starts imports this first.

Each process appends lines to a file of its own in the folder that PENSTOCK_TRACE names: seconds since the epoch, and
what began or ended. Only the outermost of the watched modules and calls are noted, so no time is counted twice.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

#: Modules whose import is noted: a command's own, and the heavy ones of others.
WATCHED = {
    *("producer.cli", "producer.client", "producer.commands", "producer.commands.encode"),
    *("tasks.app", "tasks.settings", "tasks.lifeline"),
    *("workers.launch", "workers.run_node", "workers.planning", "workers.boot", "workers.engines.sentence_transformer"),
    *("celery", "celery.apps.worker", "kombu", "redis", "pydantic_settings", "rich", "typer"),
    *("numpy", "pyarrow", "obstore", "psutil", "torch", "transformers", "sentence_transformers"),
}
#: Calls that are noted: module -> class and method.
CALLS = {
    "sentence_transformers.sentence_transformer.model": ("SentenceTransformer", ("__init__", "forward")),
}

_file = (Path(os.environ["PENSTOCK_TRACE"]) / str(os.getpid())).open("a", buffering=1)
_depth = 0


def note(what: str) -> None:
    """Write a line."""
    _file.write(f"{time.time():.6f} {what}\n")


class _Span:
    """Notes beginning and end, unless it lies in another one."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        global _depth  # noqa: PLW0603 - one process, and imports hold a lock
        _depth += 1
        if _depth == 1:
            note(f"begin {self.what}")

    def __exit__(self, *_: object) -> None:
        global _depth  # noqa: PLW0603
        if _depth == 1:
            note(f"end {self.what}")
        _depth -= 1


class _Watcher:
    """Finds the watched modules as Python does, and wraps their loading."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in WATCHED and name not in CALLS:
            return None
        spec = next(
            (found for f in sys.meta_path if f is not self and (found := f.find_spec(name, path, target))), None
        )
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if name in WATCHED:
                with _Span(f"import {name}"):
                    load(module)
            else:
                load(module)
            if name in CALLS:
                _wrap(module, *CALLS[name])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType, cls: str, methods: tuple[str, ...]) -> None:
    for name in methods:
        owner = getattr(module, cls)
        call = getattr(owner, name)

        @functools.wraps(call)
        def timed(*args: object, _call: object = call, _name: str = name, **kwargs: object) -> object:
            with _Span(f"call {cls}.{_name}"):
                return _call(*args, **kwargs)  # type: ignore[operator]

        setattr(owner, name, timed)


note(f"up {' '.join(sys.orig_argv)}"[:300])
sys.meta_path.insert(0, _Watcher())
