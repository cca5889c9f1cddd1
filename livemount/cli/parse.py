"""How the command line reads what people type."""

from __future__ import annotations

from datetime import datetime, timedelta

from livemount.core.duration import seconds
from livemount.core.errors import UsageError
from livemount.core.machine import LONGEST_HOLD
from livemount.workflow.states import LONGEST_LEASE, SHORTEST_LEASE


def parse_duration(text: str) -> timedelta:
    """How long something of a mount lasts: `15m`, `2h`, `1h30m`, `45s` or `1d`. Raises `UsageError`."""
    duration = _parse(text, "15m, 2h, 1h30m or 1d")
    if not SHORTEST_LEASE <= duration <= LONGEST_LEASE:
        raise UsageError(f"{text!r} is too short or too long for a mount", hint="between 10s and 30d")
    return duration


def parse_hold(text: str) -> timedelta:
    """How long I/O is held: `0s` to `1h`. Raises `UsageError`."""
    duration = _parse(text, "20s, 2m or 0s")
    if duration.total_seconds() > LONGEST_HOLD:
        raise UsageError(f"{text!r} is too long to hold I/O", hint="between 0s and 1h")
    return duration


def parse_time(text: str) -> datetime:
    """A time: `2026-12-01T08:00+01:00`; without a zone it is one of this machine's. Raises `UsageError`."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a time", hint="for example 2026-12-01T08:00+01:00, or 2026-12-01") from error


def parse_grace(text: str) -> timedelta:
    """How long after its time something counts as late: `0s`, `30m`, `1d`. Raises `UsageError`."""
    return _parse(text, "30m, 1h or 1d")


def _parse(text: str, examples: str) -> timedelta:
    try:
        return timedelta(seconds=seconds(text))
    except ValueError as error:
        raise UsageError(str(error), hint=f"for example {examples}") from error
