"""The users of ops/redis/users.acl on a real server: each can do its work, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis

from producer.embedded import server_binary
from tasks import broker, keys, lifeline
from tasks.messages import ModelSpec
from tests.acceptance.conftest import Shell, texts, wait_until
from tests.acceptance.test_flower import get

USERS_FILE = Path(__file__).resolve().parents[2] / "ops" / "redis" / "users.acl"
USERS = ("submitter", "worker", "monitor", "operator")
QUEUE = ModelSpec.parse("fake").queue("encode")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Guarded:
    """A broker with these users, and a shell."""

    shell: Shell
    port: int
    admin: redis.Redis

    def url(self, user: str) -> str:
        """Return the broker's address for a user."""
        return address(user, self.port)

    def act_as(self, user: str, store_url: str | None = None) -> None:
        """Let the shell's next commands be that user's."""
        self.shell.environment |= {
            "PENSTOCK_BROKER_URL": self.url(user),
            "PENSTOCK_STORE_URL": store_url or self.url(user),
        }

    def denials(self) -> list[str]:
        """Return what the server refused since the last look: user, reason, object."""
        found = self.admin.acl_log()
        self.admin.acl_log_reset()
        return [f"{entry['username']} {entry['reason']} {entry['object']} {entry['client-info']}" for entry in found]


def address(user: str, port: int) -> str:
    """Return the broker's address for a user."""
    return f"redis://{user}:password-of-{user}@127.0.0.1:{port}/0"


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[int]:
    """Run a server as ops/redis/README.md installs it, with one more user for the test itself. Yields its port."""
    rules = USERS_FILE.read_text()
    for user in USERS:
        digest = hashlib.sha256(f"password-of-{user}".encode()).hexdigest()
        assert f"#{user.upper()}_SHA256" in rules
        rules = rules.replace(f"#{user.upper()}_SHA256", f"#{digest}")
    file, port = folder / "users.acl", free_port()
    file.write_text(f"{rules}\nuser admin on >password-of-admin ~* &* +@all\n")
    process = subprocess.Popen(
        [server_binary(), "--port", str(port), "--dir", str(folder), "--save", "", "--aclfile", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - no thread holds a lock yet
    )
    with broker.connect(address("admin", port)) as admin:
        wait_until(lambda: _is_up(admin), "the server answers")
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def guarded(shell: Shell, tmp_path: Path) -> Iterator[Guarded]:
    """Such a server, with a shell that has short times."""
    shell.environment |= {"PENSTOCK_RECONCILE_S": "0.5", "PENSTOCK_HEARTBEAT_S": "0.5", "PENSTOCK_LEASE_S": "3"}
    with run_server(tmp_path) as port, broker.connect(address("admin", port)) as admin:
        here = Guarded(shell, port, admin)
        yield here
        print("\n".join(here.denials()))  # noqa: T201 - shown if the test failed
        shell.end()


def _is_up(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def start_worker(guarded: Guarded, store_url: str | None = None, model: str = "fake") -> None:
    """Start a worker as that user and wait until its slots are ready."""
    guarded.act_as("worker", store_url)
    guarded.shell.start("worker", "--model", model, "--devices", "cpu", "--processes-per-device", 1)
    guarded.act_as("monitor", store_url)
    wait_until(lambda: [s for s in guarded.shell.json("workers") if s["state"] == "ready"], "the slot is ready")


def test_each_role_can_do_its_work(guarded: Guarded) -> None:
    """A whole job through a redis:// store, every command of each role, and nothing that the server had to refuse."""
    shell = guarded.shell
    corpus = shell.write("corpus.txt", texts(60))
    guarded.act_as("submitter")
    early = shell.run("encode", corpus, "--model", "fake", "--chunk-rows", 10, "--detach").stdout.strip()
    start_worker(guarded)
    guarded.act_as("submitter")
    assert shell.json("wait", early)["rows_done"] == 60
    result = shell.json("encode", corpus, "--new", "--model", "fake", "--chunk-rows", 10, "--out", "v.parquet")
    assert (result["state"], result["rows_done"]) == ("done", 60)
    shell.run("collect", early, "--out", "w.npy")
    shell.run("retry", early)
    cancelled = shell.run("encode", corpus, "--new", "--model", "fake:dim=4", "--detach").stdout.strip()
    assert shell.json("cancel", cancelled)["state"] == "cancelled"
    guarded.act_as("monitor")
    assert {job["job"] for job in shell.json("jobs")} == {early, result["job"], cancelled}
    assert shell.json("status", early)["state"] == "done"
    assert shell.json("parked") == []
    guarded.act_as("operator")
    assert shell.run("doctor", "--model", "fake").returncode == 0
    shell.run("remove", early)
    (node,) = {slot["node"] for slot in shell.json("workers")}
    shell.run("worker", "--drain", node)
    assert shell.json("parked", "--requeue") == {"requeued": 0, "dropped": 0}
    # Doctor does without an answer: a server's configuration holds passwords.
    assert [denial for denial in guarded.denials() if "config|get" not in denial] == []


def test_a_monitor_watches_with_flower(guarded: Guarded) -> None:
    """It shows nodes and tickets, and nothing that it does is refused."""
    shell = guarded.shell
    start_worker(guarded, (shell.folder / "store").as_uri())
    port = free_port()
    guarded.act_as("monitor", (shell.folder / "store").as_uri())
    flower = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "flower", "--address=127.0.0.1", f"--port={port}"],
        env={**shell.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/api"
        wait_until(lambda: get(f"{address}/workers?refresh=1"), "Flower knows the node")
        guarded.act_as("submitter", (shell.folder / "store").as_uri())
        shell.run("encode", shell.write("c.txt", texts(20)), "--model", "fake", "--chunk-rows", 10, "--out", "v.npy")
        wait_until(
            lambda: [t["state"] for t in (get(f"{address}/tasks") or {}).values()] == ["SUCCESS"] * 2,
            "Flower has seen both chunks",
        )
        assert guarded.denials() == []
    finally:
        flower.kill()
        flower.wait()


def test_what_a_broker_lost_is_rebuilt_by_a_node_while_a_submitter_waits(guarded: Guarded) -> None:
    """The submitter may not record results itself; it waits, says nothing, and gets all of them."""
    shell, store, model = guarded.shell, (guarded.shell.folder / "store").as_uri(), "fake:ms_per_row=10"
    start_worker(guarded, store, model)
    guarded.act_as("submitter", store)
    corpus = shell.write("c.txt", texts(300))
    client = shell.start("encode", corpus, "--model", model, "--chunk-rows", 10, "--out", "v.npy")
    wait_until(
        lambda: any(guarded.admin.hlen(key) > 3 for key in guarded.admin.scan_iter(keys.done("*"))), "it is under way"
    )
    guarded.admin.flushall()
    said = client.finish()
    assert client.returncode == 0, said
    assert "refuses this user" not in said
    assert np.load(shell.folder / "v.npy").shape == (300, 32)


RESULT = f"{keys.redis_folder(keys.result_path('encode-0001', 0, 1))}"
INPUT = f"{keys.redis_folder(keys.input_path('encode-0001', 0))}"


@pytest.fixture(scope="module")
def denying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Run a server with these users alone; yields a function that returns its address for a user."""
    with run_server(tmp_path_factory.mktemp("denying")) as port:
        yield lambda user: address(user, port)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("submitter", ("HSET", keys.done("encode-0001"), "0", "1 1 0 0 1 1 1 1")),
        ("submitter", ("DEL", keys.done("encode-0001"))),
        ("submitter", ("EVAL", f"return redis.call('HSET', '{keys.done('encode-0001')}', '0', '1')", "0")),
        ("submitter", ("HSET", RESULT, "x", "y")),
        ("submitter", ("HSET", keys.slot("node/0"), "state", "ready")),
        ("submitter", ("ZADD", keys.SLOTS, "1", "node/0")),
        ("submitter", ("SADD", keys.DRAINED, "node")),
        ("submitter", ("RPOP", keys.PARKED)),
        ("submitter", ("LPUSH", keys.PARKED, "{}")),
        ("submitter", ("PUBLISH", "/0.celery.pidbox", "shutdown")),
        ("submitter", ("HGETALL", "unacked")),
        ("monitor", ("HSET", keys.job("encode-0001"), "state", "cancelled")),
        ("monitor", ("DEL", keys.JOBS)),
        ("monitor", ("SADD", keys.ACTIVE, "encode-0001")),
        ("monitor", ("LPUSH", QUEUE, "x")),
        ("monitor", ("RPOP", QUEUE)),
        ("monitor", ("SADD", keys.DRAINED, "node")),
        ("monitor", ("RPOP", keys.PARKED)),
        ("monitor", ("HGETALL", INPUT)),
        *((user, ("FLUSHALL",)) for user in USERS),
        *((user, ("CONFIG", "GET", "*")) for user in USERS),
        *((user, ("ACL", "LIST")) for user in USERS),
        *((user, ("KEYS", "*")) for user in USERS),
        *((user, ("SHUTDOWN",)) for user in USERS),
        *((user, ("SCRIPT", "FLUSH")) for user in USERS),
        *((user, ("FUNCTION", "FLUSH")) for user in USERS),
        *((user, ("SET", "somebody-else:key", "x")) for user in USERS),
        *((user, ("GET", "somebody-else:key")) for user in USERS),
    ],
    ids=str,
)
def test_what_a_role_does_not_need_it_may_not_do(
    denying: Callable[[str], str], user: str, command: tuple[str, ...]
) -> None:
    """The server refuses it."""
    with broker.connect(denying(user)) as client:
        assert client.ping()
        with pytest.raises((redis.exceptions.NoPermissionError, redis.ResponseError), match=r"(?i)permission"):
            client.execute_command(*command)


def test_a_wrong_password_is_one_line(guarded: Guarded) -> None:
    """Which names no password and exits with 3."""
    url = f"redis://worker:wrong-password@127.0.0.1:{guarded.port}/0"
    done = guarded.shell.run("jobs", "--broker", url, code=3)
    assert "refuses this user" in done.stderr
    assert "wrong-password" not in done.stderr


def test_a_monitor_that_submits_gets_one_line(guarded: Guarded) -> None:
    """The job is not made."""
    guarded.act_as("monitor", (guarded.shell.folder / "store").as_uri())
    done = guarded.shell.run("encode", guarded.shell.write("c.txt", texts(5)), "--model", "fake", "--detach", code=3)
    assert "refuses this user" in done.stderr
    assert json.loads(guarded.shell.run("jobs", "--json").stdout) == []
