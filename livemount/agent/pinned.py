"""Copies that an agent keeps from being forgotten: those that clients read, and for a day after.

Clients cannot pin: the repository is out of their reach. A mount's connection lasts as long as the mount; the day is
for agents and hosts that are away. What is pinned is written down, so that an agent that was killed unpins it, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from livemount.core.errors import CorruptError, LivemountError
from livemount.core.files import replace_file
from livemount.media.registry import pin_source, unpin_source

log = logging.getLogger(__name__)

KEEP = 24 * 3600.0
"""Seconds after the last use."""
WRITTEN_EVERY = 600.0
"""Seconds between two notes of what is in use."""
RETRIED_AFTER = 600.0
"""Seconds until a pin whose repository is away is tried again."""


class Pinned:
    """What this agent has pinned, by URI."""

    def __init__(self, state: Path, password_of: Callable[[str], Path | None] = lambda _: None) -> None:
        """`password_of` tells the password file of a source's URI. Raises `CorruptError` for a damaged note."""
        self._file = state / "pinned.json"
        machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60] or "agent"
        self._holder = f"agent.{machine}.{hashlib.sha256(str(state).encode()).hexdigest()[:12]}"
        self._machine = machine
        self._password_of = password_of
        self._lock = threading.Lock()
        self._written = 0.0
        try:
            said = json.loads(self._file.read_bytes()) if self._file.exists() else {}
            self._used = {str(uri): float(used) for uri, used in said.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise CorruptError(f"{self._file} is damaged", hint="delete it, and release its pins by hand") from error

    def pin(self, uri: str) -> None:
        """Pin what `uri` names, where it is subject to retention. Raises what `pin_source` raises."""
        with self._lock:
            # Written first: a pin that is not written down would stay for ever.
            known = uri in self._used
            self._used[uri] = time.time()
            self._write()
            try:
                reason = f"served by the media agent on {self._machine}"
                pin_source(uri, self._name(uri), reason, self._password_of(uri))
            except BaseException:
                if not known:
                    del self._used[uri]
                    self._write()
                raise

    def sweep(self, in_use: Collection[str], keep: float = KEEP) -> None:
        """Unpin what nobody has used for `keep` seconds; `in_use` are the URIs that are in use now."""
        with self._lock:
            now = time.time()
            self._used |= {uri: now for uri in in_use if uri in self._used}
            old = [uri for uri, used in self._used.items() if uri not in in_use and now - used >= keep]
            for uri in old:
                try:
                    unpin_source(uri, self._name(uri), self._password_of(uri))
                except LivemountError as error:
                    log.warning("a pin stays for now: %s", error)
                    self._used[uri] = now - keep + RETRIED_AFTER
                    continue
                del self._used[uri]
            if old or now - self._written > WRITTEN_EVERY:
                self._write()

    def _name(self, uri: str) -> str:
        return f"{self._holder}.{hashlib.sha256(uri.encode()).hexdigest()[:16]}"

    def _write(self) -> None:
        self._written = time.time()
        replace_file(self._file, json.dumps(self._used).encode())
