"""Secrets and records' texts are in nothing that penstock prints, logs, sends or shows to a process list.

Shell checks the same of every command that any acceptance test runs.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tasks import broker, delivery
from tasks.messages import ModelSpec
from tests.acceptance.conftest import PENSTOCK, PLANT, Shell, check_shows_no_secret, texts, tree, wait_until
from tests.acceptance.test_roles import Guarded, address, guarded

__all__ = ["guarded"]  # a fixture

MODEL = "fake:faults=1"
#: Texts of which one raises, quoting itself, and one ends its process.
POISONED = [*texts(40), f"!raise {PLANT}", f"!exit {PLANT}", *texts(3)]


def run(shell: Shell, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is to fail, with its traceback, and check what it says."""
    done = subprocess.run(
        [*PENSTOCK, "--debug", *map(str, arguments)],
        cwd=shell.folder,
        env={**shell.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr
    check_shows_no_secret(done.stdout + done.stderr)
    return done


@contextmanager
def listening(url: str) -> Iterator[list[str]]:
    """Collect all of Celery's events meanwhile."""
    app = delivery.make_app(url)
    events: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: events.append(json.dumps(event))})
        listener = threading.Thread(
            target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False), daemon=True
        )
        listener.start()
        yield events
        receiver.should_stop = True
        wait_until(lambda: not listener.is_alive(), "the listener ends")
    app.close()


def test_a_job_with_poison_rows_shows_no_secret_and_no_text(guarded: Guarded) -> None:
    """Not in commands, JSON logs, tickets, events, command lines, or what a node says of itself."""
    shell, queue = guarded.shell, ModelSpec.parse(MODEL).queue("encode")
    users = {name: f"{PLANT}-{name}" for name in ("submitter", "worker", "monitor")}
    for user, password in users.items():
        guarded.admin.acl_setuser(user, passwords=[f"+{password}"], enabled=True)
    keys = shell.folder / "signing.keys"
    keys.write_text(f"{PLANT}-0123456789abcdef0123456789abcdef")

    def act_as(user: str) -> None:
        url = f"redis://{user}:{users[user]}@127.0.0.1:{guarded.port}/0"
        shell.environment |= {"PENSTOCK_BROKER_URL": url, "PENSTOCK_STORE_URL": url}

    shell.environment |= {"PENSTOCK_LOG_FORMAT": "json", "PENSTOCK_SIGNING_KEY_FILE": str(keys)}
    act_as("submitter")
    corpus = shell.write("corpus.txt", POISONED)
    job = shell.run("encode", corpus, "--model", MODEL, "--chunk-rows", 10, "--detach").stdout.strip()
    tickets = guarded.admin.lrange(queue, 0, -1)
    assert len(tickets) == 5
    with listening(address("admin", guarded.port)) as events:
        act_as("worker")
        worker = shell.start("worker", "--model", MODEL, "--devices", "cpu", "--processes-per-device", 1)
        act_as("submitter")
        result = shell.json("wait", job, code=1)
        command_lines = [" ".join(process.cmdline()) for process in tree(worker.pid)]
        app = delivery.make_app(address("admin", guarded.port))
        said = [str(app.control.inspect(timeout=5, limit=1).conf()), str(app.control.inspect(limit=1).stats())]
        app.close()
    assert (result["state"], result["failed_rows"]) == ("done", 2)
    assert any("task-succeeded" in event for event in events)
    act_as("monitor")
    shell.run("workers")
    shell.run("status", job)
    shell.run("doctor", "--model", MODEL, code=1)
    for text in (*tickets, *events, *command_lines, *said):
        check_shows_no_secret(text)
    worker.terminate()
    logged = worker.finish()
    assert "Chunk finished" in logged
    check_shows_no_secret(logged)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://worker:{PLANT}@127.0.0.1:{{port}}/0",
        f"redis://worker:{PLANT}@127.0.0.1:1/0",
        f"redis://worker:{PLANT}/x@127.0.0.1:1/0",
        f"redis://worker:x{PLANT}#@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={PLANT}&nonsense={PLANT}",
        f"rediss://worker:{PLANT}@127.0.0.1:{{port}}/0",
        f"amqp://worker:{PLANT}@127.0.0.1/",
        f"unix://worker:{PLANT}@/nowhere.sock",
        f"worker:{PLANT}@127.0.0.1",
    ],
)
def test_a_broker_that_cannot_be_used_is_named_without_its_password(guarded: Guarded, url: str) -> None:
    """Wrong passwords, addresses and options, with --debug too."""
    run(guarded.shell, "jobs", PENSTOCK_BROKER_URL=url.format(port=guarded.port))


@pytest.mark.parametrize(
    "arguments",
    [
        (f"https://127.0.0.1:1/corpus.jsonl?sig={PLANT}",),
        (f"https://user:{PLANT}@127.0.0.1:1/corpus.jsonl",),
        (f"https://127.0.0.1:1/corpus?sig={PLANT}",),
        ("s3://bucket/corpus.jsonl",),
        ("bad.jsonl",),
        ("c.txt", "--store", f"s3://bucket/x?sig={PLANT}"),
        ("c.txt", "--store", f"ftp://user:{PLANT}@host/x"),
        ("c.txt", "--store", "s3://bucket/x"),
        ("c.txt", "--out", f"https://127.0.0.1:1/v.npy?sig={PLANT}"),
        ("c.txt", "--out", f"az://account/x/v.npy?sig={PLANT}"),
    ],
    ids=str,
)
def test_an_input_store_or_output_that_cannot_be_used_shows_no_secret(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Signatures in addresses, credentials in the environment, and the text of a record that cannot be read."""
    shell.write("bad.jsonl", ['{"text": "good"}', f'{{"text": "{PLANT}'])
    shell.write("c.txt", ["good"])
    endpoint = {"AWS_ENDPOINT_URL": f"http://user:{PLANT}@127.0.0.1:1", "AWS_ACCESS_KEY_ID": f"id-{PLANT}"}
    run(shell, "encode", *arguments, "--model", "fake", **endpoint, AWS_REGION="us-east-1")


def test_the_settings_show_no_password() -> None:
    """Not where the whole object is printed, as in a traceback of somebody's own program."""
    from tasks.settings import Settings

    settings = Settings(broker_url=f"redis://worker:{PLANT}@host/0", store_url=f"rediss://:{PLANT}@host/0")
    check_shows_no_secret(f"{settings!r} {settings}")
    with broker.connect(settings.broker_url or "") as client:
        check_shows_no_secret(repr(client))


def test_all_that_an_embedded_run_leaves_is_this_users_alone(shell: Shell) -> None:
    """Folders 0700, files 0600, whatever the umask: server, log, list of jobs, inputs and results."""
    shell.write("corpus.txt", texts(20))
    before = os.umask(0)
    try:
        shell.run("encode", "corpus.txt", "--model", "fake", "--workers", 1, "--chunk-rows", 10)
    finally:
        os.umask(before)
    (folder,) = (shell.folder / "state" / "penstock" / "runs").iterdir()
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}
    kinds = {path.name for path in found} | {path.suffix for path in found}
    assert {"run.json", "worker.log", "lock", "server.log", ".aof", ".arrow", ".json"} <= kinds
