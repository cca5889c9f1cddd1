"""A TCP proxy before a server, on a port of its own, by which the server is dead, silent or cuts its answers short."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator

PIECE = 1 << 16
LENGTH = re.compile(rb"^content-length: *(\d+)\r?$", re.IGNORECASE | re.MULTILINE)
METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


class Requests:
    """The heads of HTTP's requests in one connection."""

    def __init__(self) -> None:
        self._head = b""
        self._body = 0

    def found(self, piece: bytes) -> Iterator[str]:
        """Those that end in the next piece of it; none in what is not HTTP."""
        while piece:
            passed = min(self._body, len(piece))
            self._body -= passed
            self._head += piece[passed:]
            head, end, piece = self._head.partition(b"\r\n\r\n")
            if not head.startswith(METHODS):
                self._head = b""
                return
            if not end:
                return
            self._head = b""
            length = LENGTH.search(head)
            self._body = int(length[1]) if length else 0
            yield head.decode("latin-1")


class TcpProxy:
    """Forwards to 127.0.0.1:`port`; the heads of HTTP's requests are in `requests`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._answering = threading.Event()
        self._answering.set()
        self._limit: int | None = None
        self.requests: list[str] = []
        self.port = 0
        self._listener: socket.socket
        self.revive()

    def revive(self) -> None:
        """Listen, again on the same port."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def die(self) -> None:
        """Refuse connections, and end those that are open."""
        # Closing alone would leave `accept` waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Take what comes, and let nothing of the answers through until `go_on`."""
        self._answering.clear()

    def go_on(self) -> None:
        """Let answers through, whole."""
        self._limit = None
        self._answering.set()

    def cut(self, count: int) -> None:
        """End each connection after so many bytes of answers, until `go_on`; open connections end now."""
        self._limit = count
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self.die()
        self._answering.set()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            self._start(self._questions, client, server)
            self._start(self._answers, server, client)

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        requests = Requests()
        while piece := self._receive(client):
            self.requests += requests.found(piece)
            with contextlib.suppress(OSError):
                server.sendall(piece)
        self._end(server)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        sent = 0
        while piece := self._receive(server):
            self._answering.wait()
            limit = self._limit
            part = piece if limit is None else piece[: max(0, limit - sent)]
            with contextlib.suppress(OSError):
                client.sendall(part)
            sent += len(part)
            if len(part) < len(piece):
                break
        self._end(client)
        self._end(server)

    def _receive(self, each: socket.socket) -> bytes:
        try:
            return each.recv(PIECE)
        except OSError:
            return b""

    def _end(self, each: socket.socket) -> None:
        with self._lock:
            self._open.discard(each)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
