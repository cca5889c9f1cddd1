"""The recaller: reads of the source for one disk, from many threads, and patience with a source that is away.

Like a multipath device's `no_path_retry`, the patience counts from when the source stopped answering: I/O is held
until it is over, and fails at once from then on, until the source answers again.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UnavailableError
from livemount.driver.layout import Facts

if TYPE_CHECKING:
    from livemount.media.source import Source

log = logging.getLogger(__name__)

FIRST_RETRY = 0.1
SLOWEST_RETRY = 2.0


class Recaller:
    """Opens the source when the first block is missing, and recalls from it."""

    def __init__(self, uri: str, password_file: Path | None, hold: float) -> None:
        """`hold` is the patience in seconds."""
        self._uri = uri
        self._password_file = password_file
        self._hold = hold
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._last_message = 0.0
        self._stopped = threading.Event()
        self._away_since: float | None = None
        self._last_failure = 0.0
        self.facts: Facts | None = None
        """Set when the source must be a certain one."""

    def source(self) -> Source:
        """The open source. Raises what opening it raises, and `ConflictError` when its content is another."""
        with self._lock:
            if self._source is None:
                # Imported late: a disk whose blocks are all here needs none of it.
                from livemount.media.registry import open_source

                source = open_source(self._uri, self._password_file)
                if self.facts is not None and (source.identity, source.size) != (self.facts.identity, self.facts.size):
                    source.close()
                    raise ConflictError(f"{self._uri} is not what it was when this disk was made")
                self._source = source
            return self._source

    def stop(self) -> None:
        """Let nothing wait for the source any longer."""
        self._stopped.set()

    def __call__(self, offset: int, length: int, background: bool) -> bytes:
        """Recall some chunks; every failure is an `OSError`, `ETIMEDOUT` when the source is away."""
        pause = FIRST_RETRY
        while True:
            try:
                data = self.source().read(offset, length)
            except (UnavailableError, NotFoundError) as error:
                # A source that was there when the disk was made and is not now is away, too.
                left = self._patience()
                self._say(offset, length, error, None)
                if background or left <= 0 or self._stopped.wait(min(pause, left)):
                    raise OSError(errno.ETIMEDOUT, f"recall failed: {error}") from error
                pause = min(2 * pause, SLOWEST_RETRY)
            except Exception as error:
                self._say(offset, length, error, None if isinstance(error, LivemountError) else error)
                raise OSError(errno.EIO, f"recall failed: {error}") from error
            else:
                if self._away_since is not None:
                    log.info("the source answers again")
                    self._away_since = None
                return data

    def _patience(self) -> float:
        """Note that the source is away, and say how much longer I/O may wait for it, in seconds."""
        now = time.monotonic()
        with self._lock:
            # Nobody asked for long: what was the matter then says nothing about now.
            if self._away_since is None or now - self._last_failure > max(self._hold, SLOWEST_RETRY):
                self._away_since = now
            self._last_failure = now
            return self._away_since + self._hold - now

    def _say(self, offset: int, length: int, error: Exception, detail: Exception | None) -> None:
        if time.monotonic() - self._last_message > 1:
            self._last_message = time.monotonic()
            log.warning("recall of %d bytes at %d failed: %s", length, offset, error, exc_info=detail)
