"""``penstock doctor``: one OK line per thing that penstock depends on, and the remedy where one is not OK."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import redis
import typer

from producer.commands import options as shared
from producer.embedded import server_binary
from tasks import broker as brokers
from tasks import parking
from tasks.errors import PenstockError
from tasks.ledger import Ledger
from tasks.messages import ModelSpec
from tasks.settings import Settings
from tasks.store import open_store, store_id

#: The oldest server whose commands the ledger's steps use.
OLDEST_SERVER = (6, 2)

_PACKAGES = ("penstock", "celery", "kombu", "redis", "obstore", "pyarrow")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog="[bold]Example[/bold]\n\n  penstock doctor --model BAAI/bge-m3")(doctor)


def doctor(
    model: shared.Model = None,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Check broker, store, model, device and versions: one line each, with the remedy where something is wrong."""
    settings = Settings.load(model=model, broker_url=broker, store_url=store)
    checks = list(_checks(settings))
    if as_json:
        shared.print_json(checks)
    else:
        for check in checks:
            mark = "OK  " if check["ok"] else "FAIL"
            shared.out.print(f"{mark} {check['name']}: {check['detail']}", markup=False)
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def _checks(settings: Settings) -> Iterator[dict[str, str | bool]]:
    yield _check("python", lambda: f"{sys.version.split()[0]} at {sys.executable}")
    yield _check("packages", lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES))
    if settings.broker_url is None:
        yield _check("broker", lambda: f"none configured: embedded, with {server_binary()}")
    else:
        yield _check("broker", lambda: _broker(settings))
        yield _check("parked messages", lambda: _parked(settings))
    if settings.store_url or settings.broker_url:
        yield _check("store", lambda: _store(settings))
    else:
        yield _check("store", lambda: _state_folder(settings))
    yield from _worker_checks(settings)
    if settings.broker_url and settings.model:
        yield _check("workers", lambda: _workers(settings))


def _check(name: str, look: Callable[[], str]) -> dict[str, str | bool]:
    try:
        return {"name": name, "ok": True, "detail": look()}
    except PenstockError as exc:
        return {"name": name, "ok": False, "detail": str(exc)}


def _broker(settings: Settings) -> str:
    ledger = _ledger(settings)
    started = time.perf_counter()
    ledger.ping()
    millis = (time.perf_counter() - started) * 1000
    with ledger.reaching():
        info = ledger.redis.info("server")
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        raise PenstockError(f"{ledger.where} is Redis {version}; penstock needs 6.2 or newer: upgrade it.")
    policy = _eviction_policy(ledger)
    if policy not in {"noeviction", "unknown"}:
        raise PenstockError(
            f"{ledger.where} evicts keys when full (maxmemory-policy {policy}) and would lose jobs: set noeviction."
        )
    return f"{ledger.where}, {info.get('server_name', 'redis')} {version}, {millis:.1f} ms"


def _parked(settings: Settings) -> str:
    found = parking.reasons(_ledger(settings))
    if found:
        shown = "; ".join(f"{count} x {why}" for why, count in found.most_common(3))
        raise PenstockError(f"{found.total()} that no node could read: {shown}. `penstock parked` lists them.")
    return "none"


def _eviction_policy(ledger: Ledger) -> str:
    try:
        return str(ledger.redis.config_get("maxmemory-policy").get("maxmemory-policy", "unknown"))
    except redis.ResponseError:  # managed services deny CONFIG
        return "unknown"


def _store(settings: Settings) -> str:
    store = open_store(str(settings.store_url or settings.broker_url))
    name, key = store_id(store), f"doctor/{secrets.token_hex(4)}"
    store.put(key, b"penstock")
    store.get(key)
    store.delete(key)
    return f"{store.url}, id {name}, readable and writable"


def _state_folder(settings: Settings) -> str:
    folder = settings.state_dir.expanduser()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise PenstockError(f"{there} is not writable: name another folder with PENSTOCK_STATE_DIR.")
    return f"none configured: embedded, in {folder}"


def _worker_checks(settings: Settings) -> list[dict[str, str | bool]]:
    environment = {**os.environ, **settings.environment(), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it left no message"])[-1]
        return [{"name": "worker", "ok": False, "detail": last}]
    checks = list(json.loads(done.stdout))
    if settings.broker_url is None:
        return checks
    # With a cluster this machine may be one that only submits.
    return [{**check, "ok": check["ok"] or check["name"] == "worker packages"} for check in checks]


def _workers(settings: Settings) -> str:
    queue = ModelSpec.parse(str(settings.model)).queue("encode")
    slots = _ledger(settings).workforce.slots(queue=queue)
    if not slots:
        raise PenstockError(f"none serves {settings.model}: penstock worker --model {settings.model}")
    return f"{len(slots)} slots serve {settings.model}"


def _ledger(settings: Settings) -> Ledger:
    url = str(settings.broker_url)
    return Ledger(brokers.connect(url), url)
