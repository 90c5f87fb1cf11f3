"""Flower on penstock's application."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Cluster, texts, wait_until


@pytest.fixture
def flower(cluster: Cluster) -> Iterator[str]:
    """A running Flower; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "flower", "--address=127.0.0.1", f"--port={port}"],
        env={**cluster.shell.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    wait_until(lambda: get(f"{address}/api/workers") is not None, "Flower answers")
    yield address
    process.kill()
    process.wait()


def get(url: str) -> Any:
    """Return the JSON at a URL, or None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def test_flower_shows_the_node_and_each_chunk(cluster: Cluster, flower: str) -> None:
    """Tickets appear under their task's name, with short arguments and the outcome."""
    cluster.shell.write("corpus.txt", texts(50))
    cluster.start_worker("fake", processes=1)
    wait_until(lambda: get(f"{flower}/api/workers?refresh=1"), "Flower knows the node")
    job = cluster.shell.json("encode", "corpus.txt", "--model", "fake", "--out", "v.npy", "--chunk-rows", 10)["job"]

    def finished() -> list[dict[str, Any]]:
        tasks = (get(f"{flower}/api/tasks") or {}).values()
        return [task for task in tasks if task["state"] == "SUCCESS"]

    wait_until(lambda: len(finished()) == 5, "Flower has seen five chunks")
    found = finished()
    assert {task["name"] for task in found} == {"penstock.encode"}
    assert sorted(task["args"] for task in found) == [f"('{job}', {chunk}, 1)" for chunk in range(5)]
    assert {task["uuid"] for task in found} == {f"{job}:{chunk}" for chunk in range(5)}
    assert all("recorded: 10 rows" in task["result"] for task in found)
    assert {task["root_id"] for task in found} == {job}
