"""A real Valkey server that tests kill, stop and start again on the same data."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from pathlib import Path

import redis

from producer.embedded import server_binary
from tasks import broker, lifeline
from tasks.steps import STEPS
from tests.conftest import wait_until


class Valkey:
    """A server on a socket in a folder; the folder's path must be short."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "v.sock"
        self.url = f"unix://{self._socket}"
        self.redis = broker.connect(self.url)
        self.start()

    def start(self) -> None:
        """Start it and wait until it has read its data."""
        arguments = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder), "--save", ""]
        self._process = subprocess.Popen(
            [server_binary(), *arguments, "--appendonly", "yes", "--maxmemory-policy", "noeviction"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - the child calls nothing that needs a lock
        )
        wait_until(self._is_up, "the Valkey server answers")
        # So that every step is an EVALSHA, and its answer is never that it is unknown.
        for source in STEPS.values():
            self.redis.script_load(source)

    def connect(self) -> socket.socket:
        """Open a connection, for a proxy."""
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(str(self._socket))
        except OSError:
            end.close()
            raise
        return end

    def kill(self) -> None:
        """Kill it as the kernel does when memory runs out."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop it: it takes connections and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        self.redis.close()
        self.kill()

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "the Valkey server ended"
        with contextlib.suppress(redis.RedisError):
            return bool(self.redis.ping())
        return False
