"""What happened to each mount, in order: kept in memory and in the mount's folder, waited for by clients.

Thread-safe: one lock, one condition for all mounts.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from livemount.host.api import Event, EventKind


class EventLog:
    """The events of all mounts of a host."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}
        self._files: dict[str, Path] = {}
        self._changed = threading.Condition()

    def open(self, mount: str, folder: Path) -> None:
        """Begin (or, after a restart, go on with) the mount's events, kept in `folder/events.jsonl`."""
        with self._changed:
            if mount in self._events:
                return
            file = folder / "events.jsonl"
            text = file.read_text() if file.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # the torn last line of a killed service
                file.write_text(whole)
            events = [Event.model_validate_json(line) for line in whole.splitlines()]
            self._events[mount] = events
            self._files[mount] = file

    def close(self, mount: str) -> None:
        """Forget the mount's events."""
        with self._changed:
            self._events.pop(mount, None)
            self._files.pop(mount, None)
            self._changed.notify_all()

    def add(self, mount: str, kind: EventKind, text: str) -> None:
        """Record that something happened now; nothing is kept of a mount that is closed."""
        with self._changed:
            events = self._events.get(mount)
            if events is None:
                return
            event = Event(number=len(events) + 1, time=datetime.now(UTC), kind=kind, text=text)
            events.append(event)
            with self._files[mount].open("a") as file:
                file.write(event.model_dump_json() + "\n")
            self._changed.notify_all()

    def after(self, mount: str, number: int, wait: float = 0.0) -> list[Event]:
        """The events after `number`; when there are none, wait up to `wait` seconds for one."""
        deadline = time.monotonic() + wait
        with self._changed:
            while True:
                events = self._events.get(mount)
                if events is None:
                    return []
                left = deadline - time.monotonic()
                if len(events) > number or left <= 0:
                    return events[number:]
                self._changed.wait(left)

    def seen(self, mount: str, kind: EventKind) -> datetime | None:
        """When the last event of this kind was, or `None`."""
        with self._changed:
            times = [event.time for event in self._events.get(mount, []) if event.kind is kind]
            return times[-1] if times else None
