"""What the process of a contender of ``penstock bench score`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.options import Template
from workers.bench.scoring import pairs, peers
from workers.bench.scoring.survey import survey
from workers.bench.ways import Timed


def perform(task: dict[str, Any]) -> Timed | dict[str, Any]:
    """Run a peer, or find out what the survey is."""
    given = task["setup"]
    template = None if given["template"] is None else Template.model_validate(given["template"])
    setup = peers.ScoreSetup(**{**given, "devices": tuple(given["devices"]), "template": template})
    rows = pairs.read(Path(task["pairs"])).pairs
    return survey(setup, rows) if task["name"] == "survey" else peers.run(task["name"], setup, rows)
