"""The pins of a host's mounts, set and taken away where disks are read: the host's own service may not get there.

`ROOT/driver/unpin/HOLDER.DIGEST.json` is a pin that is to go: written before that is tried, deleted when it is done. So
a mount ends while its repository is away, and a service that was killed takes the pin away later.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import defaultdict
from pathlib import Path

from livemount.core.errors import LivemountError, NotFoundError
from livemount.core.files import replace_file
from livemount.core.machine import Frozen
from livemount.media.pins import check_holder
from livemount.media.registry import pin_source, unpin_source

log = logging.getLogger(__name__)

RETRIED_EVERY = 60.0
"""Seconds between two attempts to take away the pins of repositories that are away."""


class Unpin(Frozen):
    """A pin that is to go."""

    source: str
    holder: str
    password_file: Path | None


class Pinned:
    """The pins of one host. Calls may come from many threads; those of one holder follow each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        threading.Thread(target=self._retry, name="unpin", daemon=True).start()

    def pin(self, source: str, holder: str, reason: str, password_file: Path | None) -> None:
        """Raises what `pin_source` raises."""
        path = self._path(source, holder)
        with self._locks[holder]:
            # A holder has one pin in a repository: the new one takes the place of one that is to go.
            path.unlink(missing_ok=True)
            pin_source(source, holder, reason, password_file)

    def unpin(self, source: str, holder: str, password_file: Path | None) -> None:
        """Now, or when the repository is back."""
        path = self._path(source, holder)
        with self._locks[holder]:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            wanted = Unpin(source=source, holder=holder, password_file=password_file)
            replace_file(path, wanted.model_dump_json().encode())
            try:
                self._take_away(path)
            except LivemountError as error:
                log.warning("the pin %s is taken away later: %s", holder, error)

    def _path(self, source: str, holder: str) -> Path:
        check_holder(holder)
        # Of the repository: what comes before names the kind of source, what follows a snapshot in it.
        place = source.partition("://")[2].partition("?")[0]
        return self._folder / f"{holder}.{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"

    def _take_away(self, path: Path) -> None:
        """The caller holds the holder's lock."""
        try:
            wanted = Unpin.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        try:
            unpin_source(wanted.source, wanted.holder, wanted.password_file)
        except NotFoundError as error:
            log.warning("the pin %s is gone with its repository: %s", wanted.holder, error)
        path.unlink()

    def _retry(self) -> None:
        pause = threading.Event()
        while True:
            for path in sorted(self._folder.glob("*.json")):
                try:
                    with self._locks[path.name.removesuffix(".json").rpartition(".")[0]]:
                        self._take_away(path)
                except Exception as error:
                    log.info("the pin of %s stays for now: %s", path.name, error)
            pause.wait(RETRIED_EVERY)
