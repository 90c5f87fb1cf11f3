"""A TCP proxy that breaks connections on purpose: silent, cut, slow, or just at the request that a test waits for.

It knows nothing of the protocol but this: a request is what the client sends until the server answers, and a trap is
sprung when a request, or the answer to it, holds certain bytes.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: Seconds between two looks of a link at what became of it.
POLL_S = 0.02
#: Bytes that are read at a time, and bytes of a request that are remembered.
BLOCK = 1 << 16


class Verdict(enum.Enum):
    """What becomes of the bytes that sprang a trap."""

    FORWARD = "they go on"
    DROP = "they vanish, and all that would follow on this connection"
    CUT = "they vanish, and both ends see a reset"


#: What a trap does with the connection and with the bytes at hand: those of the request, or of the answer.
Act = Callable[["Link", bytes], Verdict]


@dataclass
class Trap:
    """What happens at a certain request.

    Attributes:
        request: bytes that the request holds.
        act: called once the trap is sprung; while it runs, the connection stands still.
        reply: None to act before the request goes on; else bytes of the answer, to act before that goes back.
        times: how often it springs; None for ever.
        sprung: how often it did.
    """

    request: bytes
    act: Act
    reply: bytes | None = None
    times: int | None = 1
    sprung: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def springs(self) -> bool:
        """Whether it is this one's turn; of several connections at once, no more than ``times`` get it."""
        with self._lock:
            if self.times is not None and self.sprung >= self.times:
                return False
            self.sprung += 1
            return True


class Link:
    """One connection through the proxy.

    Attributes:
        port: the port at the client's end, by which its process is found.
        request: the first bytes of the request that was sent last.
        fate: what becomes of bytes from now on.
    """

    def __init__(self, client: socket.socket, server: socket.socket | None, proxy: Proxy) -> None:
        self.port: int = client.getpeername()[1]
        self.request = b""
        self.fate = Verdict.FORWARD if server else Verdict.DROP
        self._is_answered = False
        self._met: set[int] = set()
        self._client, self._server, self._proxy = client, server, proxy

    def answer(self, data: bytes) -> Verdict:
        """Answer the request in the server's place."""
        self._client.sendall(data)
        self._client.shutdown(socket.SHUT_WR)
        return Verdict.DROP

    def tear_answer(self, data: bytes) -> Verdict:
        """Pass the first half of an answer, and reset."""
        self._client.sendall(data[: len(data) // 2])
        return Verdict.CUT

    def tear_request(self, data: bytes) -> Verdict:
        """Pass the first half of a request, and reset."""
        if self._server:
            self._server.sendall(data[: len(data) // 2])
        return Verdict.CUT

    def carry(self) -> None:
        """Carry bytes both ways until an end closes, or fate says otherwise."""
        is_open = True
        with selectors.DefaultSelector() as ends, contextlib.suppress(OSError):
            for end in filter(None, (self._client, self._server)):
                ends.register(end, selectors.EVENT_READ)
            while is_open and self.fate is not Verdict.CUT and not self._proxy.is_closed:
                if self.fate is Verdict.DROP and self._server and self._server in ends.get_map():
                    ends.unregister(self._server)  # the client is not to hear of its end
                is_open = all(self._pump(key.fileobj) for key, _ in ends.select(POLL_S))
        self._close()

    def _pump(self, end: socket.socket) -> bool:
        data = end.recv(BLOCK)
        if data:
            self._take(data, is_request=end is self._client)
        return bool(data)

    def _take(self, data: bytes, *, is_request: bool) -> None:
        if self.fate is Verdict.FORWARD:
            self.fate = self._judge(data, is_request=is_request)
        if self.fate is Verdict.FORWARD and self._server:
            time.sleep(self._proxy.delay_s)
            (self._server if is_request else self._client).sendall(data)

    def _judge(self, data: bytes, *, is_request: bool) -> Verdict:
        if is_request and self._is_answered:
            self.request, self._is_answered, self._met = b"", False, set()
        if is_request:
            self.request = (self.request + data)[:BLOCK]
        else:
            self._is_answered = True
        for trap in self._proxy.traps:
            if id(trap) not in self._met and self._fits(trap, data, is_request=is_request) and trap.springs():
                self._met.add(id(trap))
                verdict = trap.act(self, data)
                if verdict is not Verdict.FORWARD:
                    return verdict
        return self.fate  # it may have changed meanwhile

    def _fits(self, trap: Trap, data: bytes, *, is_request: bool) -> bool:
        if trap.request not in self.request:
            return False
        return is_request if trap.reply is None else not is_request and trap.reply in data

    def _close(self) -> None:
        for end in (self._client, self._server):
            if end and self.fate is Verdict.CUT:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if end:
                end.close()


class Proxy:
    """Listens on a port of its own and carries to a server.

    Args:
        connect: opens a connection to the server.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(POLL_S)
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.address: tuple[str, int] = self._listener.getsockname()
        self.traps: list[Trap] = []
        self.delay_s = 0.0
        self.is_silent = False
        self.is_closed = False
        self._start(self._accept)

    def set(self, trap: Trap) -> Trap:
        """Lay a trap."""
        self.traps = [*self.traps, trap]
        return trap

    def clear(self) -> None:
        """Break nothing any more. Connections that fell silent stay so."""
        self.traps, self.delay_s, self.is_silent = [], 0.0, False

    def silence(self, *, new_ones: bool) -> int:
        """Swallow whatever comes on all connections, as a firewall that forgot them does.

        ``new_ones``: also on those that are made until ``clear``. Returns how many connections there were.
        """
        self.is_silent = new_ones
        return self._doom(Verdict.DROP)

    def cut(self) -> int:
        """Reset all connections. Returns how many there were."""
        return self._doom(Verdict.CUT)

    def close(self) -> None:
        """End all."""
        self.is_closed = True
        for thread in self._threads:
            thread.join()

    def _doom(self, fate: Verdict) -> int:
        with self._lock:
            links = list(self._links)
        for link in links:
            link.fate = fate
        return len(links)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]
        thread.start()

    def _accept(self) -> None:
        while not self.is_closed:
            with contextlib.suppress(TimeoutError):
                self._start(self._serve, self._listener.accept()[0])
        self._listener.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = None if self.is_silent else self._connect()
            link = Link(client, server, self)
        except OSError:  # the server is away, or the client is gone again
            client.close()
            return
        with self._lock:
            self._links.append(link)
        link.carry()
        with self._lock:
            self._links.remove(link)
