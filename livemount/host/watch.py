"""Watches the guests of a host: who fetched a script, logged in, is up; closes and opens the script; repairs targets.

One thread, polling: tgtd and nginx offer no notifications. The script carries the CHAP secret over plain HTTP, so it
is served only until the first login. A guest that restarts asks for it again: the watch then closes the target's old
sessions. A guest that is alive logs in again within seconds by itself; only one that does not gets its script back.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from livemount.boot.api import RequestKind
from livemount.core.errors import LivemountError
from livemount.host.api import EventKind
from livemount.host.mounts import Mounts

log = logging.getLogger(__name__)

PERIOD = 0.5
"""Seconds between two looks."""
RELOGIN = timedelta(seconds=10)
"""How long a guest that is alive has to log in again after its sessions were closed."""
PROBE_INTERVAL = timedelta(seconds=60)
"""At most one such test in this time, so that a user in the guest cannot keep its disk from it."""


@dataclass
class _Seen:
    """What the watch knows of one mount."""

    since: datetime
    logged_in: bool = False
    probed: datetime | None = None
    asked: datetime | None = None
    counted: set[tuple[datetime, RequestKind]] = field(default_factory=set)


class Watch:
    """The watching thread of a host."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._seen: dict[str, _Seen] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        trouble: dict[str, str] = {}
        while not self._stop.wait(PERIOD):
            mounts = list(self._mounts.records.mounts())
            self._seen = {mount: seen for mount, seen in self._seen.items() if mount in mounts}
            for mount in mounts:
                lock = self._mounts.lock(mount)
                if not lock.acquire(blocking=False):
                    continue  # being made or deleted
                try:
                    self.look(mount)
                    trouble.pop(mount, None)
                except LivemountError as error:
                    # A part that is away for a while is told of once.
                    if trouble.get(mount) != str(error):
                        trouble[mount] = str(error)
                        log.warning("watching %s: %s", mount, error)
                except Exception:
                    log.exception("watching %s", mount)
                finally:
                    lock.release()

    def look(self, mount: str) -> None:
        """Look at one mount once. The caller holds its lock."""
        record = self._mounts.records.read(mount)
        if record is None or not record.prepared:
            return
        seen = self._seen.get(mount)
        if seen is None or seen.since < record.created:
            # After a restart of the service only what was not told before is told.
            last = max(
                (
                    t
                    for kind in (EventKind.SCRIPT_FETCHED, EventKind.GUEST_UP)
                    if (t := self._mounts.events.seen(mount, kind))
                ),
                default=record.created,
            )
            seen = self._seen[mount] = _Seen(since=last)
            seen.logged_in = self._mounts.events.seen(mount, EventKind.TARGET_LOGGED_IN) is not None
        self._read_requests(mount, record.request.address, seen)
        if not self._mounts.target.exists(mount):
            self._mounts.repair(mount)
        self._gate(mount, record.request.address, seen)

    def _read_requests(self, mount: str, address: str, seen: _Seen) -> None:
        for request in self._mounts.boot.requests(address, seen.since):
            key = (request.time, request.kind)
            if key in seen.counted:
                continue
            seen.counted.add(key)
            if request.kind is RequestKind.UP:
                self._mounts.events.add(mount, EventKind.GUEST_UP, f"guest at {address} has reached multi-user")
            elif request.status == 200:
                self._mounts.events.add(mount, EventKind.SCRIPT_FETCHED, f"boot script fetched by {address}")
            else:
                seen.asked = request.time

    def _gate(self, mount: str, address: str, seen: _Seen) -> None:
        sessions = self._mounts.target.sessions(mount)
        if any(session.address != address for session in sessions):
            # Somebody else has the secret. The guest, whose session is closed too, logs in again by itself.
            strangers = ", ".join(sorted({s.address for s in sessions if s.address != address}))
            self._mounts.target.disconnect(mount)
            self._mounts.events.add(mount, EventKind.STRANGER, f"sessions closed: a login came from {strangers}")
            return
        now = datetime.now(UTC)
        if sessions:
            if not seen.logged_in:
                seen.logged_in = True
                self._mounts.events.add(
                    mount, EventKind.TARGET_LOGGED_IN, f"{sessions[0].initiator} logged in from {sessions[0].address}"
                )
            if address in self._mounts.boot.published():
                self._mounts.boot.withdraw(address)
                seen.asked = None
                self._mounts.events.add(mount, EventKind.SCRIPT_WITHDRAWN, "boot script withdrawn after the login")
            elif seen.asked and (seen.probed is None or now - seen.probed > PROBE_INTERVAL):
                seen.probed = now
                self._mounts.target.disconnect(mount)
        elif seen.asked and seen.probed and now - seen.probed > RELOGIN:
            seen.asked, seen.logged_in = None, False
            self._mounts.events.add(mount, EventKind.TARGET_LOGGED_OUT, "the guest restarts")
            record = self._mounts.records.read(mount)
            if record is not None:
                self._mounts.publish(mount, record)
