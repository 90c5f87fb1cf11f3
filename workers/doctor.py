"""The worker's part of ``penstock doctor``: torch, devices, the model's files. Prints one JSON list on stdout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys

from tasks import weights
from tasks.errors import PenstockError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.planning import plan_nodes

Check = dict[str, str | bool]


def main() -> int:
    """Look, and print what was found."""
    settings = Settings.load()
    json.dump([_torch(), _device(settings), _model(settings)], sys.stdout)
    return 0


def _torch() -> Check:
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "sentence-transformers")]
    except importlib.metadata.PackageNotFoundError as exc:
        remedy = f"{exc.name} is missing; for workers on this machine: pip install 'penstock[worker]'"
        return {"name": "worker packages", "ok": False, "detail": remedy}
    return {"name": "worker packages", "ok": True, "detail": ", ".join(versions)}


def _device(settings: Settings) -> Check:
    try:
        plans = plan_nodes(settings, ModelSpec(engine="fake", name="fake"))
    except PenstockError as exc:
        return {"name": "device", "ok": False, "detail": str(exc)}
    shown = "; ".join(f"{plan.device}: up to {plan.slots} slots x {plan.threads} threads" for plan in plans)
    return {"name": "device", "ok": True, "detail": f"{shown} ({os.cpu_count()} cores)"}


def _model(settings: Settings) -> Check:
    if settings.model is None:
        return {"name": "model", "ok": True, "detail": "none named (--model checks one)"}
    try:
        place = weights.locate(ModelSpec.parse(settings.model))
    except PenstockError as exc:
        return {"name": "model", "ok": False, "detail": str(exc)}
    if ModelSpec.parse(settings.model).engine == "fake":
        return {"name": "model", "ok": True, "detail": f"{place}: the fake engine"}
    if not place.startswith("/"):
        return {"name": "model", "ok": True, "detail": f"{place}: on the hub, fetched when a worker starts"}
    return {"name": "model", "ok": True, "detail": place}


if __name__ == "__main__":
    sys.exit(main())
