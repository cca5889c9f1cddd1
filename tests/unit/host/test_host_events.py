"""The event log of a host: ordered, waited for, kept over a restart, also one that was torn."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from livemount.host.api import EventKind
from livemount.host.events import EventLog


def test_events_are_numbered_and_kept(tmp_path: Path) -> None:
    log = EventLog()
    log.open("m", tmp_path)
    log.add("m", EventKind.STORES_READY, "one")
    log.add("m", EventKind.TARGET_READY, "two")
    assert [e.number for e in log.after("m", 0)] == [1, 2]
    assert [e.text for e in log.after("m", 1)] == ["two"]
    again = EventLog()
    again.open("m", tmp_path)
    assert again.after("m", 0) == log.after("m", 0)


def test_a_torn_last_line_is_not_served(tmp_path: Path) -> None:
    log = EventLog()
    log.open("m", tmp_path)
    log.add("m", EventKind.STORES_READY, "one")
    log.add("m", EventKind.TARGET_READY, "two")
    file = tmp_path / "events.jsonl"
    file.write_text(file.read_text()[:-20])
    again = EventLog()
    again.open("m", tmp_path)
    assert [e.text for e in again.after("m", 0)] == ["one"]
    again.add("m", EventKind.GUEST_UP, "three")
    third = EventLog()
    third.open("m", tmp_path)
    assert [e.text for e in third.after("m", 0)] == ["one", "three"]


def test_waiting_for_an_event(tmp_path: Path) -> None:
    log = EventLog()
    log.open("m", tmp_path)
    timer = threading.Timer(0.2, lambda: log.add("m", EventKind.GUEST_UP, "up"))
    timer.start()
    began = time.monotonic()
    assert [e.text for e in log.after("m", 0, wait=10)] == ["up"]
    assert time.monotonic() - began < 5
    timer.join()
    assert log.after("m", 1, wait=0.05) == []


def test_a_closed_mount_keeps_nothing(tmp_path: Path) -> None:
    log = EventLog()
    log.open("m", tmp_path)
    log.close("m")
    log.add("m", EventKind.GUEST_UP, "late")
    assert log.after("m", 0) == []
    assert list(tmp_path.iterdir()) == []
