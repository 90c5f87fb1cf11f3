"""The rooms keep to themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, *, folder: Path | None = None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["producer.cli", "producer.commands.encode", "tasks.app", "workers.boot"])
def test_torch_is_not_imported_by(module: str) -> None:
    """Producers have no torch, and a node's parent must not load it."""
    heavy = "{'torch', 'transformers', 'sentence_transformers'}"
    done = run(f"import sys, {module}; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("room", ["producer", "workers"])
def test_a_file_that_shadows_tasks_is_named(tmp_path: Path, room: str) -> None:
    """A user's own tasks.py in the way is named, instead of failing later in ways hard to read."""
    (tmp_path / "tasks.py").write_text("")
    done = run(f"import {room}", folder=tmp_path, path=tmp_path)
    assert done.returncode
    assert f"{tmp_path / 'tasks.py'} shadows penstock's package `tasks`" in done.stderr
