"""What the clients of an agent see: each export by its name, with its errors, and documents about the agent.

nbdkit knows a server's exports by name and tells the reason of nothing: so an export that cannot be opened is one
without bytes whose description says why, as `livemount.media.agents` expects.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from livemount import __version__
from livemount.agent.cache import Cache
from livemount.agent.config import AgentConfig
from livemount.agent.disks import Counters, Disks, Reader
from livemount.agent.pinned import Pinned
from livemount.core.errors import LivemountError, NotFoundError, UnsupportedError
from livemount.core.quota import parse_quota
from livemount.media.agents import VERSION, with_sources
from livemount.media.certificates import expiry
from livemount.media.registry import open_source
from livemount.media.repository import Repository
from livemount.media.source import Extent

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 1000
"""Characters; a string of the protocol has at most 4096 bytes."""
SECTOR = 512
HOUSEKEEPING = 5.0
STATUS = ".status"
COPIES = ".copies/"


class Export:
    """What one connection reads: a document, or nothing and why."""

    def __init__(self, facts: dict[str, Any], content: bytes = b"") -> None:
        self.description = json.dumps({"livemount": VERSION, **facts})
        self._content = content

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        return self._content[offset : offset + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All of it is data."""
        yield Extent(offset, length, hole=False)

    def close(self) -> None:
        """The connection has ended."""


class DiskExport(Export):
    """One connection's view of an open source."""

    def __init__(self, reader: Reader, release: Callable[[LivemountError | None], None], counters: Counters) -> None:
        super().__init__({"identity": reader.identity, "chunk_size": reader.source.chunk_size})
        self._reader = reader
        self._release = release
        self._counters = counters
        self._error: LivemountError | None = None

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._reader.source.size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        try:
            data = self._reader.read(offset, length)
        except LivemountError as error:
            self._counters.add(errors=1)
            self._error = error
            raise
        self._counters.add(reads=1, bytes=length)
        return data

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The source's."""
        return self._reader.extents(offset, length)

    def close(self) -> None:
        """The connection has ended."""
        self._release(self._error)


class Exports:
    """All exports of an agent."""

    def __init__(self, config: AgentConfig) -> None:
        """Raises `ConflictError` when another agent uses the state folder, `CorruptError`."""
        self._config = config
        self._began = datetime.now(UTC)
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        quota = parse_quota(config.cache_quota).bytes_at(config.state)
        self._cache = Cache(config.state / "cache", quota)
        self._pinned = Pinned(config.state, config.password_of)
        self._disks = Disks()
        self.counters = Counters()
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()

    def names(self) -> list[str]:
        """The exports that have a name of their own; those of repositories are told by `.copies/NAME`."""
        return [*sorted(self._config.exports), *(COPIES + name for name in sorted(self._config.repositories)), STATUS]

    def open(self, name: str) -> Export:
        """One connection's export. Raises `NotFoundError` for what is not configured."""
        try:
            if name == STATUS:
                return _document(self._status())
            if name.startswith(COPIES):
                return _document(self._copies(name.removeprefix(COPIES)))
            return self._disk(name)
        except LivemountError as error:
            self.counters.add(errors=1)
            log.warning("%r is not served: %s", name, error)
            said = {"error": int(error.exit_code), "message": error.message[:LONGEST_MESSAGE]}
            return Export(said | ({"hint": error.hint[:LONGEST_MESSAGE]} if error.hint else {}))

    def _disk(self, name: str) -> Export:
        first, _, rest = name.partition("/")
        if not rest and first in self._config.exports:
            chosen = self._config.exports[first]
            uri, password_file, identity = chosen.source, chosen.password_file, chosen.identity
            cached = chosen.cache
        elif rest and first in self._config.repositories:
            repository = self._config.repositories[first]
            uri, password_file, identity = repository.uri(rest), repository.password_file, None
            cached = repository.cache
        else:
            raise NotFoundError("there is no such export", hint="the agent's configuration names them")

        def opened() -> Reader:
            self._pinned.pin(uri)
            source = open_source(uri, password_file)
            cache = self._cache if cached and self._cache.quota else None
            return Reader(uri, source, identity or source.identity, cache, self.counters)

        reader, release = self._disks.acquire(name, opened)
        self.counters.add(connections=1)
        return DiskExport(reader, release, self.counters)

    def _copies(self, name: str) -> dict[str, Any]:
        """The copies in a repository; the source of each is the name of its export."""
        chosen = self._config.repositories.get(name)
        if chosen is None:
            raise NotFoundError(f"there is no repository {name}")
        listing = Repository.open(chosen.repository, chosen.password_file).listing()
        found, damaged = [], list(listing.damaged)
        for copy in listing.copies:
            try:
                found.append(with_sources(copy.model_dump(mode="json"), partial(chosen.export, name)))
            except UnsupportedError as error:
                damaged.append(f"{copy.name}@{copy.id[:8]}: {error.message}")
        return {"copies": found, "damaged": damaged}

    def _status(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "since": self._began.isoformat(),
            "certificate_expires": expiry(self._config.certificates, "server").isoformat(),
            "exports": sorted(self._config.exports),
            "repositories": sorted(self._config.repositories),
            "open": self._disks.names(),
            "cache": {"quota": self._cache.quota, "used": self._cache.used},
            "counters": dict.fromkeys(COUNTERS, 0) | self.counters.all(),
        }

    def _keep_house(self) -> None:
        while True:
            time.sleep(HOUSEKEEPING)
            try:
                self._disks.sweep()
                self._pinned.sweep(self._disks.uris())
            except Exception:
                log.exception("housekeeping failed")


COUNTERS = {
    "connections": "Connections to disks",
    "reads": "Reads that were answered",
    "bytes": "Bytes that these brought",
    "errors": "Reads and connections that failed",
    "source_reads": "Reads of sources",
    "source_bytes": "Bytes that these brought",
    "cache_hits": "Chunks, or parts of them, that the cache had",
    "cache_bytes": "Bytes that these brought",
}
"""The agent's counters, and what each means."""


def _document(content: dict[str, Any]) -> Export:
    text = json.dumps(content).encode()
    return Export({"length": len(text)}, text + b" " * (-len(text) % SECTOR))
