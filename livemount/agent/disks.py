"""The disks an agent serves: sources opened once for all connections, kept open a while, read through the cache."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass, field

from livemount.agent.cache import BLOCK, Cache
from livemount.core.errors import CorruptError, LivemountError, NotFoundError, UnavailableError
from livemount.media.source import Extent, Source

log = logging.getLogger(__name__)

OPEN_PATIENCE = 6.0
"""Seconds that a client waits for a source to be opened before it is told to come again: less than clients wait."""
LINGER = 60.0
"""Seconds that a source stays open when nobody is connected: opening one can take longer than a client waits."""
LARGEST_CHUNK = 1 << 20
STRIPES = 1024
OPENERS = 8


class Counters:
    """What an agent has done since it was started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Count."""
        with self._lock:
            self._counts.update(counts)

    def all(self) -> dict[str, int]:
        """The counts by name."""
        with self._lock:
            return dict(self._counts)


class Reader:
    """Reads a source through the cache. Two threads that want one chunk read it from the source once."""

    def __init__(self, uri: str, source: Source, identity: str, cache: Cache | None, counters: Counters) -> None:
        self.uri = uri
        self.source = source
        self.identity = identity
        self._cache = cache
        self._counters = counters
        self._chunk = max(BLOCK, min(LARGEST_CHUNK, source.chunk_size // BLOCK * BLOCK))
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises what the source raises."""
        if self._cache is None:
            return self._recall(offset, length)
        parts = []
        end = offset + length
        while offset < end:
            number, within = divmod(offset, self._chunk)
            count = min(end - offset, self._chunk - within)
            parts.append(self._part(self._cache, number, within, count))
            offset += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, cache: Cache, number: int, within: int, count: int) -> bytes:
        key = (self.identity, self._chunk, number)
        begin = number * self._chunk
        length = min(self._chunk, self.source.size - begin)
        kept = cache.get(key, length, within, count)
        if kept is None:
            with self._stripes[number % STRIPES]:
                kept = cache.get(key, length, within, count)
                if kept is None:
                    data = self._recall(begin, length)
                    cache.put(key, data)
                    return data[within : within + count]
        self._counters.add(cache_hits=1, cache_bytes=count)
        return kept

    def _recall(self, offset: int, length: int) -> bytes:
        data = self.source.read(offset, length)
        self._counters.add(source_reads=1, source_bytes=length)
        return data

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The source's."""
        return self.source.extents(offset, length)


@dataclass
class _Opened:
    """A source that is open, or being opened."""

    reader: Future[Reader]
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    stale: bool = False
    """What it reads is gone or damaged: who comes next has it opened anew."""


class Disks:
    """The sources that are open, by the name of their export."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="opener")

    def acquire(self, name: str, open: Callable[[], Reader]) -> tuple[Reader, Callable[[LivemountError | None], None]]:
        """An open source, and what is to be called in the end, with the error that made it useless if there was one.

        Raises what `open` raises, and `UnavailableError` while it takes longer than a client waits.
        """
        with self._lock:
            opened = self._opened.get(name)
            if opened is None or opened.stale:
                opened = self._opened[name] = _Opened(self._openers.submit(open))
            opened.users += 1
        try:
            reader = opened.reader.result(OPEN_PATIENCE)
        except NotYetError:
            self._release(name, opened, None)
            raise UnavailableError("it is still being opened", hint="try again in a moment") from None
        except BaseException:
            with self._lock:
                if self._opened.get(name) is opened:
                    del self._opened[name]
            raise
        return reader, lambda error: self._release(name, opened, error)

    def _release(self, name: str, opened: _Opened, error: LivemountError | None) -> None:
        with self._lock:
            opened.users -= 1
            opened.idle_since = time.monotonic()
            opened.stale = opened.stale or isinstance(error, CorruptError | NotFoundError)
            gone = opened.stale and opened.users == 0
            if opened.stale and self._opened.get(name) is opened:
                del self._opened[name]
        if gone:
            opened.reader.result().source.close()

    def sweep(self, linger: float = LINGER) -> None:
        """Close what nobody has used for `linger` seconds."""
        with self._lock:
            now = time.monotonic()
            idle = [
                (name, opened)
                for name, opened in self._opened.items()
                if opened.users == 0 and opened.reader.done() and now - opened.idle_since >= linger
            ]
            for name, _ in idle:
                del self._opened[name]
        for _, opened in idle:
            if opened.reader.exception() is None:
                opened.reader.result().source.close()

    def names(self) -> dict[str, int]:
        """The open sources by name, and how many connections each has."""
        with self._lock:
            return {name: opened.users for name, opened in self._opened.items()}

    def uris(self) -> set[str]:
        """What is open."""
        with self._lock:
            readers = [opened.reader for opened in self._opened.values() if opened.reader.done()]
        return {reader.result().uri for reader in readers if reader.exception() is None}
