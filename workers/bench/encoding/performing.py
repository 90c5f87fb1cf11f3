"""What the process of a contender of ``penstock bench encode`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.bench.corpus import read_texts
from workers.bench.encoding import ceiling, peers
from workers.bench.encoding.survey import survey
from workers.bench.encoding.work import Work
from workers.bench.plan import CEILING
from workers.bench.ways import Setup, Timed


def perform(task: dict[str, Any]) -> Timed | dict[str, Any]:
    """Run a peer, or find out what the survey or the ceiling are."""
    setup = Setup(**{**task["setup"], "devices": tuple(task["setup"]["devices"])})
    if task["name"] == CEILING:
        work = Work([(n_in, n_out) for n_in, n_out in task["linears"]], task["attention"])
        rates = ceiling.measure(work, setup)
        kernel = max(rates, key=lambda name: rates[name])
        return {"kernel": kernel, "flops_per_s": rates[kernel]}
    texts = read_texts(Path(task["corpus"]))
    return survey(setup, texts) if task["name"] == "survey" else peers.run(task["name"], setup, texts)
