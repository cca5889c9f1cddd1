"""All recall stores of a folder: bounded by a quota, and rid of those that no disk uses.

What the stores take is what the file system says they have allocated, so it is right after every crash. A store that no
disk uses is kept only where that is wanted, and goes when there is need of room, the one that was left first at first;
a store with a user never goes. Joining and evicting follow each other (the folder's lock), and a store that goes is
first renamed, in one step: killed in between, the next look deletes the rest.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.quota import Quota
from livemount.driver.api import RecallStats
from livemount.driver.ledger import Entry, Ledger
from livemount.driver.recall_store import discard, is_used, left_at, locked, remove_discarded

log = logging.getLogger(__name__)

LOOK_PERIOD = 0.5
"""Seconds between two looks at the ledger; the stores are measured only when it has changed."""
MEASURE_PERIOD = 10.0
"""Seconds after which the stores are measured whatever the ledger says: a file system may grow, say."""
MARGIN = 256 << 20
"""Bytes (or a sixteenth of the quota) that evictions keep free, so that no chunk is dropped before the next one."""


@dataclass(frozen=True)
class RecallPolicy:
    """What is kept of what was recalled."""

    quota: Quota
    keep_unused: bool
    """Whether stores of ended mounts stay for the next mount of the same copy, while there is room."""


def _allocated(store: Path) -> int:
    """Bytes that a store's files take."""
    return sum(path.stat().st_blocks * 512 for path in store.iterdir() if path.is_file())


class RecallStores:
    """The recall stores below one folder. Any thread may call."""

    def __init__(self, folder: Path, policy: RecallPolicy) -> None:
        self._folder = folder
        self._policy = policy
        self._ledger = Ledger(folder)
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._quota = self._used = 0

    def tidy(self) -> None:
        """Evict what must go, and tell the workers how much room there is."""
        with self._lock, locked(self._folder):
            self._ledger.make()
            remove_discarded(self._folder)
            entries = self._ledger.read()
            kept = entries[Entry.KEPT]
            self._quota = self._policy.quota.bytes_at(self._folder)
            stores = {path: _allocated(path) for path in self._folder.iterdir() if path.is_dir()}
            used = sum(stores.values())
            margin = min(MARGIN, self._quota // 16)
            unused = sorted((left_at(path), path) for path in stores if not is_used(path))
            evictions = 0
            for _, path in unused:
                if self._policy.keep_unused and self._quota - used >= margin:
                    break
                log.info("recall store %s: no disk uses it, deleted", path.name)
                discard(path)
                used -= stores[path]
                evictions += 1
            if evictions and self._policy.keep_unused:
                self._ledger.write(Entry.EVICTIONS, entries[Entry.EVICTIONS] + evictions)
            self._ledger.write(Entry.LIMIT, kept + max(0, self._quota - used))
            self._used = used
            self._seen = (kept, entries[Entry.NOT_KEPT])

    def has_changed(self) -> bool:
        """Whether workers kept, or could not keep, anything since the last `tidy`."""
        entries = self._ledger.read()
        return (entries[Entry.KEPT], entries[Entry.NOT_KEPT]) != self._seen

    def stats(self) -> RecallStats:
        """Quota and use at the last `tidy`, and what came of them."""
        entries = self._ledger.read()
        return RecallStats(
            quota_bytes=self._quota,
            used_bytes=self._used,
            evictions=entries[Entry.EVICTIONS],
            not_kept_chunks=entries[Entry.NOT_KEPT],
        )


class Keeper:
    """The folders of recall stores that a supervisor knows, and the thread that keeps them in bounds."""

    def __init__(self, policy: RecallPolicy) -> None:
        self.policy = policy
        self._stores: dict[Path, RecallStores] = {}
        self._trouble: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="recall-stores").start()

    def stores(self, folder: Path) -> RecallStores:
        """The stores of a folder, kept in bounds from now on. Raises `OSError`, `CorruptError`."""
        with self._lock:
            new = folder not in self._stores
            known = self._stores.setdefault(folder, RecallStores(folder, self.policy))
        if new:
            known.tidy()
        return known

    def wake(self) -> None:
        """Look again soon: a disk is gone, and there may be room."""
        self._wake.set()

    def _run(self) -> None:
        waited = 0.0
        while True:
            woken = self._wake.wait(LOOK_PERIOD)
            self._wake.clear()
            waited = 0.0 if woken or waited >= MEASURE_PERIOD else waited + LOOK_PERIOD
            with self._lock:
                known = dict(self._stores)
            for folder, stores in known.items():
                try:
                    if folder.is_dir() and (not waited or stores.has_changed()):
                        stores.tidy()
                    self._trouble.pop(folder, None)
                except (OSError, LivemountError) as error:
                    # Of what lasts, once is enough.
                    if self._trouble.get(folder) != str(error):
                        self._trouble[folder] = str(error)
                        log.warning("the recall stores in %s are not looked after: %s", folder, error)
