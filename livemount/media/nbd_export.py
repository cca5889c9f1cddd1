"""An NBD export as a `Source`'s bytes and holes: several connections, many requests in flight on each.

A connection belongs to one thread, its driver: nobody else touches libnbd's handle. A server that says nothing for
`PATIENCE` seconds while it is asked, or that hangs up, fails what is in flight with `UnavailableError`; the next read
connects anew. Who connects anew meets the same disk or a `CorruptError`: size, first and last bytes are compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media.source import Extent

CONTEXT = "base:allocation"
DIRTY = "qemu:dirty-bitmap:"
CONNECTIONS = 4
CONNECT_PATIENCE = 10.0
PATIENCE = 15.0
"""Seconds without a byte from a server that was asked."""
FAILURE_IS_NEWS = 0.2
"""Seconds in which a failed attempt to connect answers for the other threads that want to."""
LARGEST_REQUEST = 4 << 20
LARGEST_STATUS = 1 << 30
"""Bytes whose allocation is asked at once; a protocol of 32 bits has no more than four times that."""
SAMPLE = 64 << 10
HUNG_UP = ("non-properly terminated", "pull function", "push function")
"""What GnuTLS says of a connection that ended where it should not."""

Dial = Callable[[Any], None]
"""Sets up a libnbd handle (TLS, export) and starts its connection. Raises `nbd.Error` or a `LivemountError`."""


class _Request:
    """Something in flight: `start` gives it to a handle, and returns its cookie."""

    def __init__(self, start: Callable[[Any], int]) -> None:
        self.start = start
        self.error: Exception | None = None
        self.done = threading.Event()

    def finish(self, error: Exception | None) -> None:
        self.error = error
        self.done.set()


class _Connection:
    """One connection and its driver."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._queue: deque[_Request] = deque()
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._over: str | None = None
        self.load = 0
        self.size = int(handle.get_size())
        self.statuses = bool(handle.can_meta_context(CONTEXT))
        self.shared = bool(handle.can_multi_conn())
        self.block = max(1, int(handle.get_block_size(_nbd().SIZE_MINIMUM)))
        largest = int(handle.get_block_size(_nbd().SIZE_MAXIMUM)) or LARGEST_REQUEST
        self.largest = max(self.block, min(largest, LARGEST_REQUEST) // self.block * self.block)
        threading.Thread(target=self._drive, name="nbd", daemon=True).start()

    @property
    def over(self) -> str | None:
        """Why the connection is of no use any more."""
        return self._over

    def submit(self, start: Callable[[Any], int]) -> _Request:
        """Hand a request to the driver."""
        request = _Request(start)
        with self._lock:
            if self._over is None:
                self.load += 1
                self._queue.append(request)
                os.eventfd_write(self._wake, 1)
                return request
        request.finish(UnavailableError(self._over))
        return request

    def close(self) -> None:
        """Let the driver end."""
        with self._lock:
            self._closing = True
            if self._over is None:
                os.eventfd_write(self._wake, 1)

    def _drive(self) -> None:
        flying: dict[int, _Request] = {}
        reason = "the server hung up"
        try:
            self._exchange(flying)
            if self._closing:
                reason = "the source is closed"
        except TimeoutError:
            reason = f"the server has not answered for {PATIENCE:.0f} s"
        except Exception as error:
            reason = str(error)
        with self._lock:
            self._over = reason
            left = [*flying.values(), *self._queue]
            self._queue.clear()
            os.close(self._wake)
        if self._closing:
            with contextlib.suppress(Exception):
                self._handle.aio_disconnect(0)
        self._handle = None  # which closes the connection
        for request in left:
            request.finish(UnavailableError(reason))

    def _exchange(self, flying: dict[int, _Request]) -> None:
        """Until the connection ends: start requests, move bytes, finish requests."""
        handle = self._handle
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(handle.aio_get_fd(), 0)
        heard = time.monotonic()
        while not self._closing:
            while self._queue:
                request = self._queue.popleft()
                if not flying:
                    heard = time.monotonic()
                try:
                    flying[request.start(handle)] = request
                except _nbd().Error as error:
                    self._finish(request, error)
            direction = handle.aio_get_direction()
            reading, writing = direction & _nbd().AIO_DIRECTION_READ, direction & _nbd().AIO_DIRECTION_WRITE
            poll.modify(handle.aio_get_fd(), (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
            left = heard + PATIENCE - time.monotonic()
            events = dict(poll.poll(max(0.0, left) * 1000 if flying else None))
            if events.pop(self._wake, 0):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            for event in events.values():
                heard = time.monotonic()
                if reading and event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    handle.aio_notify_read()
                elif writing and event & (select.POLLOUT | select.POLLHUP | select.POLLERR):
                    handle.aio_notify_write()
                elif event & (select.POLLHUP | select.POLLERR):
                    return
            while flying and (cookie := handle.aio_peek_command_completed()) > 0:
                try:
                    handle.aio_command_completed(cookie)
                except _nbd().Error as error:
                    self._finish(flying.pop(cookie), error)
                else:
                    self._finish(flying.pop(cookie), None)
            if handle.aio_is_dead() or handle.aio_is_closed():
                return
            if flying and not events and time.monotonic() > heard + PATIENCE:
                raise TimeoutError

    def _finish(self, request: _Request, error: Exception | None) -> None:
        with self._lock:
            self.load -= 1
        request.finish(error)


class NbdExport:
    """An export of an NBD server. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        dial: Dial,
        *,
        read_error: type[LivemountError] = UnavailableError,
        inspect: Callable[[Any], object] = lambda _: None,
        fault: Callable[[], str | None] | None = None,
        bitmap: str = "",
    ) -> None:
        """Connect. `name` is what messages call the export, `read_error` what a read that the server fails raises.

        `inspect` is called with libnbd's handle after each greeting, before a byte is read, and may raise.
        `fault` tells what is the matter with our certificate, if anything is: it is asked when TLS failed.
        `bitmap` is a dirty bitmap of QEMU's that the export must have.

        Raises `UnavailableError`, `NotFoundError` when the server has no such export, `DeniedError` when it refuses
        us or its certificate is not good, `UnsupportedError` for what is no disk.
        """
        self._name = name
        self._dial = dial
        self._read_error = read_error
        self._inspect = inspect
        self._fault = fault
        self._bitmap = f"{DIRTY}{bitmap}" if bitmap else ""
        self._lock = threading.Lock()
        self._open = True
        self._connections: list[_Connection] = []
        self._wanted = 1
        self._failed: tuple[float, LivemountError] | None = None
        first = self._connect()
        if first.size == 0 or first.size % 512:
            first.close()
            raise UnsupportedError(f"{name} is no disk: it has {first.size} bytes, not a multiple of 512")
        self.size = first.size
        """Bytes of the disk."""
        try:
            self.sample = self._sample(first)
            """Of the first and the last bytes, in hex: differs for most disks, but names none."""
        except LivemountError:
            first.close()
            raise
        self._connections.append(first)
        self._wanted = CONNECTIONS if first.shared else 1

    def check(self, offset: int, length: int) -> None:
        """Raises `UsageError` for a range that is not within the disk."""
        if not self._open:
            raise UnavailableError(f"the source {self._name} is closed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(f"{length} bytes at {offset} are not within the {self.size} bytes of {self._name}")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        self.check(offset, length)
        return self._read(self._connection(), offset, length) if length else b""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the server says is zero; all of it data where it cannot say."""
        return self._ranges(offset, length, CONTEXT, _nbd().STATE_ZERO)

    def changed(self) -> list[tuple[int, int]]:
        """What the dirty bitmap names, as (offset, length)."""
        ranges = self._ranges(0, self.size, self._bitmap, 1)
        return [(offset, length) for offset, length, dirty in ranges if dirty]

    def _ranges(self, offset: int, length: int, context: str, flag: int) -> Iterator[Extent]:
        self.check(offset, length)
        end = offset + length
        hole, start = False, offset
        while offset < end:
            for step, zero in self._statuses(offset, min(end - offset, LARGEST_STATUS), context, flag):
                if zero != hole:
                    if offset > start:
                        yield Extent(start, offset - start, hole)
                    hole, start = zero, offset
                offset = min(end, offset + step)
        if end > start:
            yield Extent(start, end - start, hole)

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            self._open = False
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _connection(self) -> _Connection:
        """The connection with the least to do; a new one where there are fewer than the server is good for."""
        with self._lock:
            if not self._open:
                raise UnavailableError(f"the source {self._name} is closed")
            self._connections = [connection for connection in self._connections if connection.over is None]
            idle = any(connection.load == 0 for connection in self._connections)
            if not self._connections or (len(self._connections) < self._wanted and not idle):
                if not self._connections and self._failed and time.monotonic() - self._failed[0] < FAILURE_IS_NEWS:
                    raise self._failed[1]
                try:
                    connection = self._connect()
                    self._compare(connection)
                    self._connections.append(connection)
                except LivemountError as error:
                    if not self._connections:
                        self._failed = time.monotonic(), error
                        raise
                    # It is good for no more than it has given.
                    self._wanted = len(self._connections)
            return min(self._connections, key=lambda connection: connection.load)

    def _connect(self) -> _Connection:
        handle = _nbd().NBD()
        deadline = time.monotonic() + CONNECT_PATIENCE
        try:
            handle.add_meta_context(CONTEXT)
            if self._bitmap:
                handle.add_meta_context(self._bitmap)
            self._dial(handle)
            while handle.aio_is_connecting():
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{self._name} does not answer: no greeting in {CONNECT_PATIENCE:.0f} s")
                handle.poll(200)
            if not handle.aio_is_ready():
                raise UnavailableError(f"{self._name} hung up before it greeted")
            self._inspect(handle)
            if self._bitmap and not handle.can_meta_context(self._bitmap):
                raise NotFoundError(
                    f"{self._name} has no dirty bitmap {self._bitmap.removeprefix(DIRTY)!r}",
                    hint="QEMU exports one by `bitmaps` of block-export-add, qemu-nbd by --bitmap",
                )
            return _Connection(handle)
        except _nbd().Error as error:
            raise self._connect_error(error) from error

    def _connect_error(self, error: Any) -> LivemountError:
        text, number = str(error.string), error.errnum
        if "gnutls" in text or "certificate" in text or "TLS" in text or number in (errno.EPERM, errno.EACCES):
            # A server that does not like our certificate hangs up without a word, as one does that is killed.
            fault = self._fault() if self._fault is not None else None
            if fault is None and self._fault is not None and any(sign in text for sign in HUNG_UP):
                return UnavailableError(f"{self._name} hung up before it greeted: {text}")
            message = f"{self._name} cannot be trusted, or does not trust us: {text}"
            return DeniedError(message, hint=fault)
        if number == errno.ENOENT:
            return NotFoundError(f"the server has no {self._name}: {text}")
        return UnavailableError(f"{self._name} does not answer: {text}")

    def _compare(self, connection: _Connection) -> None:
        same = connection.size == self.size
        try:
            same = same and self._sample(connection) == self.sample
        except LivemountError:
            connection.close()
            raise
        if not same:
            connection.close()
            raise CorruptError(f"{self._name} has another content than before", hint="an export must not change")

    def _sample(self, connection: _Connection) -> str:
        length = min(SAMPLE, connection.size)
        ends = self._read(connection, 0, length) + self._read(connection, connection.size - length, length)
        return hashlib.sha256(ends).hexdigest()

    def _read(self, connection: _Connection, offset: int, length: int) -> bytes:
        """Reads of whole blocks of the server's, in pieces it takes, together."""
        begin = offset // connection.block * connection.block
        end = min(-(-(offset + length) // connection.block) * connection.block, connection.size)
        data = bytearray(end - begin)
        view = memoryview(data)
        requests = []
        for at in range(begin, end, connection.largest):
            part = view[at - begin : at - begin + connection.largest]
            requests.append(connection.submit(partial(_start_read, part, at)))
        for request in requests:
            request.done.wait()
        for request in requests:
            if request.error is not None:
                raise self._error(request.error, f"cannot read {length} bytes at {offset} of")
        return bytes(view[offset - begin : offset - begin + length])

    def _statuses(self, offset: int, length: int, context: str, flag: int) -> list[tuple[int, bool]]:
        """Lengths from `offset` on, and whether each has the flag of the context."""
        connection = self._connection()
        if context == CONTEXT and not connection.statuses:
            return [(length, False)]
        found: list[tuple[int, bool]] = []

        def extent(told: str, _offset: int, entries: list[int], _error: Any) -> int:
            if told == context:
                pairs = zip(entries[::2], entries[1::2], strict=True)
                found.extend((step, bool(flags & flag)) for step, flags in pairs)
            return 0

        begin = offset // connection.block * connection.block
        asked = min(-(-(offset + length) // connection.block) * connection.block, connection.size) - begin
        request = connection.submit(lambda handle: handle.aio_block_status(asked, begin, extent))
        request.done.wait()
        if request.error is not None:
            raise self._error(request.error, "cannot ask for the holes of")
        if not found or any(step <= 0 for step, _ in found):
            raise UnavailableError(f"{self._name} answered nothing about the holes at {offset}")
        first, zero = found[0]
        if first <= offset - begin:
            raise UnavailableError(f"{self._name} answered less than a block about the holes at {offset}")
        return [(first - (offset - begin), zero), *found[1:]]

    def _error(self, error: Exception, what: str) -> LivemountError:
        if isinstance(error, LivemountError):
            return type(error)(f"{what} {self._name}: {error.message}", hint=error.hint)
        number = getattr(error, "errnum", 0)
        message = f"{what} {self._name}: {os.strerror(number) if number else error}"
        if number in (errno.EPERM, errno.EACCES):
            return DeniedError(message)
        if number in (errno.EINVAL, errno.EOVERFLOW, errno.ERANGE):
            return CorruptError(message)
        return self._read_error(message)


def _nbd() -> Any:
    """Debian's binding; imported when it is needed."""
    try:
        import nbd
    except ImportError as error:
        raise UnsupportedError(
            "libnbd's Python binding is not installed", hint="apt-get install python3-libnbd"
        ) from error
    return nbd


def _start_read(into: memoryview, offset: int, handle: Any) -> int:
    return int(handle.aio_pread(into, offset))
