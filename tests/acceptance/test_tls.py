"""TLS to the broker: a whole job over it, and one clear line for what is wrong with it.

The server that penstock brings along has no TLS, so a proxy before it ends the connections.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.acceptance.conftest import Cluster, texts


class TlsProxy:
    """Ends TLS connections before a server on a socket file, and asks for a client's certificate."""

    def __init__(self, socket_path: str, context: ssl.SSLContext) -> None:
        self._socket_path = socket_path
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            outer = self._context.wrap_socket(raw, server_side=True)
        except OSError:  # it has no certificate, or does not believe ours
            raw.close()
            return
        inner = socket.socket(socket.AF_UNIX)
        inner.connect(self._socket_path)
        self._ends += [outer, inner]
        threading.Thread(target=_pump, args=(inner, outer), daemon=True).start()
        _pump(outer, inner)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            end.close()


@dataclass
class Guarded:
    """A cluster behind TLS, and the files of one who may enter."""

    cluster: Cluster
    port: int
    ca: Path
    other_ca: Path
    cert: Path


@pytest.fixture
def guarded(cluster: Cluster, tmp_path: Path) -> Iterator[Guarded]:
    """Configure the cluster's shell for TLS with a client's certificate."""
    ca, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    files = [tmp_path / name for name in ("ca.pem", "other.pem", "client.pem")]
    ca.cert_pem.write_to_path(files[0])
    other.cert_pem.write_to_path(files[1])
    ca.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(files[2])
    proxy = TlsProxy(str(cluster.run.socket), context)
    cluster.shell.environment |= {
        "PENSTOCK_BROKER_URL": f"rediss://localhost:{proxy.port}/0",
        "PENSTOCK_STORE_URL": f"rediss://localhost:{proxy.port}/0",
        "PENSTOCK_BROKER_TLS_CA": str(files[0]),
        "PENSTOCK_BROKER_TLS_CERT": str(files[2]),
    }
    yield Guarded(cluster, proxy.port, *files)
    cluster.shell.end()
    proxy.close()


def test_a_whole_job_runs_over_tls(guarded: Guarded) -> None:
    """Client, node, slots, queue and a redis:// store, all with certificates of both sides."""
    shell = guarded.cluster.shell
    guarded.cluster.start_worker("fake", processes=1)
    corpus = shell.write("corpus.txt", texts(30))
    result = shell.json("encode", corpus, "--model", "fake", "--chunk-rows", 10, "--out", "v.npy")
    assert (result["state"], result["rows_done"]) == ("done", 30)
    assert shell.run("doctor", "--model", "fake").returncode == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"PENSTOCK_BROKER_TLS_CA": "other.pem"}, "self-signed certificate in certificate chain"),
        ({"PENSTOCK_BROKER_TLS_CA": ""}, "self-signed certificate in certificate chain"),
        # The server's reason may be overtaken by the end of the connection.
        ({"PENSTOCK_BROKER_TLS_CERT": ""}, "certificate required|it was cut. Check broker_tls_ca, broker_tls_cert"),
        ({"PENSTOCK_BROKER_TLS_CA": "missing.pem"}, "No such file"),
        ({"PENSTOCK_BROKER_URL": "rediss://127.0.0.1:{port}/0"}, "IP address mismatch"),
        ({"PENSTOCK_BROKER_URL": "redis://localhost:{port}/0"}, "are for rediss://"),
    ],
    ids=["wrong CA", "no CA", "no client certificate", "no such CA", "another name", "no TLS"],
)
def test_what_is_wrong_with_tls_is_one_line(guarded: Guarded, changes: dict[str, str], why: str) -> None:
    """It names the cause, and no connection is made without the checks."""
    shell = guarded.cluster.shell
    for name, value in changes.items():
        if value:
            shell.environment[name] = value.format(port=guarded.port)
        else:
            del shell.environment[name]
    done = shell.run("jobs", code=2 if "are for" in why else 3)
    (line,) = done.stderr.splitlines()
    assert re.search(why, line)
    assert done.stdout == ""
